"""Heat maps of gap tables: one scale, missing cells, other sets of tasks."""

from dataclasses import replace

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
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
