"""Every figure function with hostile names and numbers of every size: what its texts say, and that they are seen."""

import importlib
import pkgutil
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from report_tools import HOSTILE, any_comparison, any_gradient_check, any_records, any_tables

import admrl.reports
from admrl.reports import charts, gradient_checks, heatmap, model_fit
from admrl.reports.rows import summary_rows
from admrl.reports.style import STYLES, styles


def compared(plot):
    return lambda names, size, path: plot(any_comparison(names, size=size), path)


def summarised(plot):
    def draw(names, size, path):
        comparison = any_comparison(names, size=size)
        plot(comparison, summary_rows(comparison), path)

    return draw


def fit_report(size):
    coordinates = [{"coordinate": i, "ratio": size * (i + 1)} for i in range(5)]
    horizons = [
        {"steps": h, "error": size, "no_change": 2 * size, "spread": size / 3}
        | {"coverage_50": 0.2, "coverage_90": 0.7}
        for h in (1, 5, 20)
    ]
    return {"coordinates": coordinates, "horizons": horizons}


FIGURES = {
    "plot_gap_heatmap": lambda n, s, p: heatmap.plot_gap_heatmap(
        any_tables(n, size=s, num_seeds=1, missing=True), p
    ),
    "plot_method_heatmap": compared(heatmap.plot_method_heatmap),
    "plot_worst_gap": summarised(charts.plot_worst_gap),
    "plot_average_return": summarised(charts.plot_average_return),
    "plot_model_error": compared(charts.plot_model_error),
    "plot_visited": compared(charts.plot_visited),
    "plot_visited in 3-D": lambda n, s, p: charts.plot_visited(any_comparison(n, size=s, k=3), p),
    "plot_paths": lambda n, s, p: charts.plot_paths(any_records(n, s), any_comparison(n, size=s), p),
    "plot_gap_map": lambda n, s, p: charts.plot_gap_map(any_records(n, s), any_comparison(n, size=s), p),
    "plot_learning_curves": lambda n, s, p: charts.plot_learning_curves(any_records(n, s), p),
    "plot_gradient_checks": lambda n, s, p: gradient_checks.plot_gradient_checks(
        [any_gradient_check(n, s)], p
    ),
    "plot_fit_report": lambda n, s, p: model_fit.plot_fit_report(fit_report(s), p),
}
WITH_NAMES = [name for name in FIGURES if name != "plot_fit_report"]


def test_every_figure_function_is_tested_here():
    found = set()
    for page in pkgutil.iter_modules(admrl.reports.__path__):
        module = importlib.import_module(f"admrl.reports.{page.name}")
        found |= {
            n for n, f in vars(module).items() if n.startswith("plot_") and f.__module__ == module.__name__
        }
    assert {name.split()[0] for name in FIGURES} == found


def drawn(monkeypatch, name, names, size, path):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    FIGURES[name](names, size, path)
    monkeypatch.undo()
    (figure,) = figures
    return figure


def redraw(figure):
    """At the resolution of the screen, for positions."""
    with plt.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.canvas.draw()


def texts(figure):
    """Without the labels of ticks that an axis does not show."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= {t.label1 for t in axis.get_major_ticks() if not low <= t.get_loc() <= high}
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in found if t not in hidden]


@pytest.mark.parametrize("name", WITH_NAMES)
def test_names_are_never_read_as_mathematics_and_stay_in_the_picture(tmp_path, monkeypatch, name):
    """A method named "$\\frac{1$" ended in matplotlib's parser, one that begins with "_" was in no legend."""
    figure = drawn(monkeypatch, name, HOSTILE, 1.0, tmp_path / "figure.pdf")
    redraw(figure)
    shown = texts(figure)
    assert not any(t.get_parse_math() for t in shown)
    everything = "\n".join(t.get_text() for t in shown)
    assert "mathdefault" not in everything, "an axis without a formatter of ours"
    lines = [everything.replace("\n", glue).replace("\u00a0", " ") for glue in ("", " ")]
    for hostile in HOSTILE[:4] if name != "plot_paths" else HOSTILE[:2]:  # that one draws five trainings
        seen = hostile.translate({ord(c): None for c in "\u202e\u202c\u200b\ufeff"})
        assert any(seen in line for line in lines), "whole, without marks that have no width"
    assert "a name without end" in lines[1]
    width, height = figure.canvas.get_width_height()
    for text in shown:
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} leaves the picture: {box} of {width} x {height}"
    plt.close(figure)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3, 1e7, 1e9])
@pytest.mark.parametrize("name", FIGURES)
def test_numbers_of_every_size_are_short_and_different(tmp_path, monkeypatch, name, size):
    """Ticks of every axis: at least two, no two alike, none longer than seven characters."""
    figure = drawn(monkeypatch, name, ("adversarial", "uniform"), size, tmp_path / "figure.png")
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [
                t.label1.get_text()
                for t in axis.get_major_ticks()
                if low <= t.get_loc() <= high and t.label1.get_text()
            ]
            numbers = [x for x in labels if x.lstrip("-\u2212")[0].isdigit()]
            assert len(set(numbers)) == len(numbers) and max(map(len, numbers), default=0) <= 7, labels
    plt.close(figure)


@pytest.mark.parametrize("name", ["plot_worst_gap", "plot_average_return", "plot_learning_curves"])
@pytest.mark.parametrize("names", [("adversarial", "uniform"), HOSTILE], ids=["two", "hostile"])
def test_a_legend_hides_nothing(tmp_path, monkeypatch, name, names):
    """Legends lay over the markers."""
    figure = drawn(monkeypatch, name, names, 1.0, tmp_path / "figure.png")
    redraw(figure)
    assert not any(axes.get_legend() for axes in figure.axes)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    for axes in figure.axes:
        assert not box.overlaps(axes.get_tightbbox()), "the legend lies over an axis"
        size = axes.get_window_extent()
        assert size.height > 150 and size.width > 200, "the legend leaves no room for the picture"
    plt.close(figure)


def test_labels_of_a_3d_panel_are_not_covered_by_the_next(tmp_path, monkeypatch):
    """The label of the third axis was clipped by the panel on its right."""
    figure = drawn(
        monkeypatch, "plot_visited in 3-D", ("adversarial", "uniform"), 1.0, tmp_path / "figure.png"
    )
    redraw(figure)
    panels = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(panels) == 2
    for axes in panels:
        place = axes.get_window_extent()
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            box = axis.label.get_window_extent()
            assert box.x0 >= place.x0 and box.x1 <= place.x1 and box.y0 >= place.y0 and box.y1 <= place.y1
    plt.close(figure)


@pytest.mark.parametrize("plot", ["lines", "dots"])
def test_an_unknown_error_is_no_bar_of_length_0(tmp_path, monkeypatch, plot):
    """Of one training, and of one policy seed: a bar without length says that a number is exact."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    for known in (False, True):
        file = tmp_path / f"{known}.pdf"
        if plot == "lines":
            comparison = any_comparison(("a",), num_seeds=2 if known else 1)
            charts.plot_average_return(comparison, summary_rows(comparison), file)
        else:
            (table,) = any_tables(("a",), num_seeds=1)
            episodes = table.episode_return if known else table.episode_return[:1]
            heatmap.plot_gap_heatmap([replace(table, episode_return=episodes, grid_shape=None)], file)
    monkeypatch.undo()
    bars = []
    for figure in figures:
        (container,) = figure.axes[0].containers
        bars.append(sum(len(segment) > 0 for segment in container.lines[2][0].get_segments()))
        plt.close(figure)
    assert bars[0] == 0 < bars[1]


def test_an_unknown_agreement_is_no_agreement_of_0(tmp_path, monkeypatch):
    (run,) = any_records(("a",))
    for task in run.tasks[::3]:
        task["split_half_cosine"] = None
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    charts.plot_paths([run], any_comparison(("a",)), tmp_path / "figure.pdf")
    monkeypatch.undo()
    heights = [bar.get_height() for bar in figures[0].axes[1].patches]
    np.testing.assert_array_equal(heights, run.split_half)
    assert np.isnan(heights).tolist() == [True, False, False, True, False]
    plt.close(figures[0])


def test_every_method_looks_different():
    look = styles([f"method {i}" for i in range(18)])
    assert len(set(look.values())) == 18
    assert len({s[0] for s in styles([f"method {i}" for i in range(len(STYLES))]).values()}) == len(STYLES)


def test_small_gradients_are_not_drawn_on_the_line_of_zero(tmp_path, monkeypatch):
    """The axes were linear up to 2 and 10, whatever the truth: a gradient of 1e-6 lay on zero."""
    for size in (1e-6, 1e8):
        figure = drawn(
            monkeypatch, "plot_gradient_checks", ("fisher", "resolve"), size, tmp_path / "figure.png"
        )
        for axes in (figure.axes[0], figure.axes[2]):
            height = np.ptp(axes.transData.transform([(0, 3 * size), (0, 0)])[:, 1])
            assert height > 0.1 * axes.get_window_extent().height
        plt.close(figure)
