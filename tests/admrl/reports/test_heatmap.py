"""Heat maps of gap tables: one scale, missing cells, other sets of tasks."""

from dataclasses import replace

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from table_tools import toy_table

from admrl.reports.heatmap import plot_gap_heatmap


def test_heat_map_is_drawn_with_one_scale(tmp_path, monkeypatch):
    """Both panels and the colour bar have one scale, which covers the gaps of both and 0."""
    missing = toy_table(method="with a missing cell", optimal_return=np.array([10.0, np.nan, 9.0, 6.0]))
    higher = replace(missing, method="other", episode_return=missing.episode_return - 20)
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot_gap_heatmap([missing, higher], tmp_path / "gap.png")
    monkeypatch.undo()
    (figure,) = figures
    first, second = (axis.images[0] for axis in figure.axes if axis.images)
    for image, table in ((first, missing), (second, higher)):
        np.testing.assert_allclose(image.get_array().filled(np.nan), table.mean_gap().reshape(2, 2).T)
    pooled = np.concatenate([missing.mean_gap(), higher.mean_gap()])
    scale = (min(0.0, np.nanmin(pooled)), np.nanmax(pooled))
    assert first.get_clim() == second.get_clim() == pytest.approx(scale)
    bar = second.colorbar.norm
    assert (bar.vmin, bar.vmax) == pytest.approx(scale) and first.cmap == second.cmap
    plt.close(figure)
    picture = matplotlib.image.imread(tmp_path / "gap.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600
    assert float(picture[..., :3].std()) > 0.1, "not blank"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "linear_quadratic"}, "different families"),
        ({"grid_shape": (4, 1)}, "different grids"),
        ({"optimal_return": np.zeros(4)}, "evaluate the runs together"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plot_gap_heatmap([toy_table(), toy_table(**change)], tmp_path / "gap.png")


@pytest.mark.parametrize("name", ["list.png", "box.pdf"])
def test_other_sets_of_tasks_are_drawn_too(tmp_path, name):
    """A list of tasks as a dot each; a 3-D grid, here 2 x 2 x 2 with one cell missing, in slices."""
    table = toy_table(grid_shape=None)
    if name == "box.pdf":
        table = toy_table(
            psi=np.stack(np.meshgrid([0.0, 1.0], [0.0, 1.0], [4.0, 5.0], indexing="ij"), -1).reshape(8, 3),
            task_names=("a", "b", "c"),
            task_units=("m", "m", ""),
            grid_shape=(2, 2, 2),
            episode_return=np.tile(toy_table().episode_return, (1, 2, 1, 1)),
            optimal_return=np.array([10.0, np.nan, 9.0, 6.0, 10.0, 8.0, 9.0, 6.0]),
            visited_psi=None,
        )
    plot_gap_heatmap([table, replace(table, method="other")], tmp_path / name)
    assert (tmp_path / name).stat().st_size > 8000


def drawn(monkeypatch, tables, path, **options):
    """The figure of a call, still open."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot_gap_heatmap(tables, path, **options)
    monkeypatch.undo()
    (figure,) = figures
    return figure


def test_a_single_task_parameter_is_the_axis(tmp_path, monkeypatch):
    """Gaps over the parameter, wherever the tasks are in the list; those of the training as strokes."""
    table = toy_table(
        psi=np.array([[0.3], [-1.0], [1.0], [0.0]]),
        task_names=("target position",),
        task_units=("m",),
        grid_shape=(4,),
        visited_psi=np.array([[0.5], [-0.25]]),
    )
    (axis,) = drawn(monkeypatch, [table], tmp_path / "gap.png").axes
    assert axis.get_xlabel() == "target position (m)"
    dots, strokes = (next(line for line in axis.lines if line.get_marker() == mark) for mark in "o|")
    np.testing.assert_allclose(dots.get_xydata(), np.stack([table.psi[:, 0], table.mean_gap()], 1))
    np.testing.assert_array_equal(strokes.get_xdata(), [0.5, -0.25])
    (plain,) = drawn(monkeypatch, [toy_table(grid_shape=None)], tmp_path / "list.png").axes
    assert plain.get_xlabel() == "task, in the order of the list"


def texts(artist):
    return [t.get_text() for t in artist.findobj(Text) if t.get_visible() and t.get_text()]


def scaled(size, **changes):
    """Gaps 2, 2, 6 and 2 with errors 1, 1, 1 and 3, all times a size."""
    table = toy_table()
    return replace(
        table,
        episode_return=table.episode_return * size,
        optimal_return=table.optimal_return * size,
        **changes,
    )


@pytest.mark.parametrize(
    ("size", "cell", "title", "factor"),
    [
        (1e-6, ("6.0", "± 1.0"), "(6.0 ± 1.0)e-6", "\u00d710⁻⁶"),
        (1e-3, ("6.0", "± 1.0"), "0.0060 ± 0.0010", "\u00d710⁻³"),
        (0.01, ("0.060", "± 0.010"), "0.060 ± 0.010", ""),
        (1.0, ("6.0", "± 1.0"), "6.0 ± 1.0", ""),
        (1e3, ("6000", "± 1000"), "6000 ± 1000", ""),
        (1e6, ("6.0", "± 1.0"), "(6.0 ± 1.0)e6", "\u00d710⁶"),
        (1e9, ("6.0", "± 1.0"), "(6.0 ± 1.0)e9", "\u00d710⁹"),
    ],
)
def test_gaps_of_every_size_can_be_read(tmp_path, monkeypatch, size, cell, title, factor):
    """Gaps of order 1 were "0 ± 0", those of 1e7 filled their cells with digits."""
    figure = drawn(monkeypatch, [scaled(size)], tmp_path / "gap.png")
    axis, bar = figure.axes
    assert set(cell) <= set(texts(axis))
    assert title.replace(" ", "\u00a0") in axis.get_title()
    label = bar.get_ylabel()
    assert label.endswith(f"({factor})") if factor else "\u00d7" not in label
    ticks = [t for t in texts(bar.yaxis) if t != label]
    unit = size if factor else 1.0
    assert max(map(float, ticks)) == pytest.approx(6 * size / unit, rel=0.2) and max(map(len, ticks)) <= 5
    plt.close(figure)


def test_the_colour_bar_is_in_the_unit_of_the_cells(tmp_path, monkeypatch):
    """Where the cells have a power of ten each, the bar has none in its label; it said "×10⁹"."""
    table = scaled(1e9)
    tiny = replace(
        table,
        optimal_return=np.array([9e-6, 8e9, 9e9, 6e9]),
        episode_return=table.episode_return * np.array([1e-15, 1, 1, 1])[:, None, None],
    )
    figure = drawn(monkeypatch, [tiny], tmp_path / "gap.png")
    axis, bar = figure.axes
    assert {"6.0e9", "1.0e-6"} <= set(texts(axis)) and "\u00d7" not in bar.get_ylabel()
    assert "6e9" in texts(bar.yaxis)
    plt.close(figure)


def test_a_footnote_and_a_title_stay_within_a_single_small_map(tmp_path, monkeypatch):
    """The footnote was cut at both ends; a number was parted from its error."""
    table = scaled(1e7, method="a method with quite a long name, seed 12")
    table = replace(table, optimal_return=np.array([1e8, np.nan, 9e7, 6e7]))
    figure = drawn(monkeypatch, [table], tmp_path / "gap.png")
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    renderer = figure.canvas.get_renderer()
    for text in (figure._supxlabel, figure.axes[0].title):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()
        assert "..." not in text.get_text()
        assert not any(line.endswith("±") or line.startswith("± ?") for line in text.get_text().split("\n"))
    assert "1 task missing" in figure.axes[0].get_title()
    plt.close(figure)


def test_the_footnote_names_only_what_is_drawn(tmp_path, monkeypatch):
    """A list of tasks has no boxes of the training; its footnote explained them."""
    for table, boxes in ((toy_table(), True), (toy_table(grid_shape=None), False)):
        figure = drawn(monkeypatch, [table], tmp_path / "gap.png")
        assert ("boxes:" in figure.get_supxlabel()) is boxes
        plt.close(figure)
