"""Pictures, from saved tables alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt
from matplotlib.colors import Normalize

from admrl.evaluation import GapTable
from admrl.files import write_bytes

TEXT_SHIFTS = (0.0, 0.27, -0.27)  # of a cell's text, in cells
COLOURS = "viridis_r"  # light is a small gap, as in the paper; readable in grey and by the colour-blind


def plot_gap_heatmap(tables: Sequence[GapTable], path: Path | str, j: int = 0) -> None:
    """Sub-optimality gaps over a 2-D grid of tasks, methods side by side on one colour scale (AdMRL Fig. 3a).

    Every cell shows its mean gap and, below, the standard error over policy seeds; the worst task has a frame,
    missing cells are hatched, and small numbers mark the tasks of the training in their order.

    Args:
        tables: one per method, of the same family and grid.
        path: .png, .pdf or .svg.
        j: which of the tables' sample counts.

    Raises:
        ValueError: no table, tables that do not belong together, or a grid that is not 2-D.
    """
    check_tables(tables)
    first = tables[0]
    assert first.grid_shape is not None
    gaps = [t.mean_gap(j).reshape(first.grid_shape) for t in tables]
    finite = np.concatenate([g[np.isfinite(g)] for g in gaps])
    norm = Normalize(min(0.0, finite.min()), max(finite.max(), 1e-9))
    rows, columns = first.grid_shape
    xs, ys = np.unique(first.psi[:, 0]), np.unique(first.psi[:, 1])
    width = max(3.4, 0.95 * rows + 0.9)
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(width * len(tables) + 0.9, max(3.4, 0.75 * columns + 1.6)),
        squeeze=False,
        layout="constrained",
    )
    image = None
    for axis, table, gap in zip(axes[0], tables, gaps, strict=True):
        axis.set_facecolor("0.92")
        image = axis.imshow(
            np.ma.masked_invalid(gap.T), origin="lower", cmap=COLOURS, norm=norm, aspect="auto"
        )
        visited = _mark_visited(axis, table, xs, ys)
        _write_cells(axis, gap, table.standard_error(j).reshape(first.grid_shape), norm, visited)
        worst = table.worst(j)
        wx, wy = np.unravel_index(worst.task, first.grid_shape)
        frame = plt.Rectangle(
            (wx - 0.47, wy - 0.47), 0.94, 0.94, fill=False, edgecolor="#d62728", linewidth=3
        )
        axis.add_patch(frame)
        mean, error = table.average(j)
        axis.set_title(
            f"{table.method}\nworst {worst.gap:.0f} ± {worst.standard_error:.0f} (framed), "
            f"mean {mean:.0f} ± {error:.0f}"
            + (f"\n{table.num_missing(j)} tasks missing" if table.num_missing(j) else ""),
            fontsize=10,
        )
        axis.set_xticks(range(rows), [f"{x:.3g}" for x in xs])
        axis.set_yticks(range(columns), [f"{y:.3g}" for y in ys])
        axis.set_xlabel(_label(table, 0))
        axis.set_ylabel(_label(table, 1))
    assert image is not None
    bar = figure.colorbar(image, ax=axes[0].tolist())
    bar.set_label(f"sub-optimality gap, return per episode (n = {first.num_samples[j]})")
    figure.supxlabel(
        "± standard error over policy seeds; frame: worst task; boxes: tasks of the training, in order",
        fontsize=8,
        color="0.35",
    )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=Path(path).suffix[1:])
    plt.close(figure)
    write_bytes(Path(path), picture.getvalue())


def check_tables(tables: Sequence[GapTable]) -> None:
    """Refuse tables that cannot stand on one 2-D colour scale."""
    if not tables:
        raise ValueError("tables: expected at least one gap table, got none")
    first = tables[0]
    if first.grid_shape is None or len(first.grid_shape) != 2 or min(first.grid_shape) < 2:
        raise ValueError(
            f"a heat map needs a 2-D grid of at least 2 x 2 tasks, got {first.grid_shape}; "
            "evaluate with --grid N N"
        )
    for other in tables[1:]:
        if (other.family, other.variant) != (first.family, first.variant):
            raise ValueError(
                f"tables of different families: {first.family} ({first.variant}) and "
                f"{other.family} ({other.variant}); compare runs of one family"
            )
        if other.grid_shape != first.grid_shape or not np.allclose(other.psi, first.psi):
            raise ValueError("tables of different grids; evaluate all runs with the same --grid")
        if not np.allclose(other.optimal_return, first.optimal_return, equal_nan=True):
            raise ValueError(
                "tables with different reference returns A*; evaluate the runs together: admrl evaluate RUN RUN"
            )


def _write_cells(
    axis: plt.Axes, gap: np.ndarray, error: np.ndarray, norm: Normalize, visited: np.ndarray
) -> None:
    """Mean gap and standard error in every cell, in the upper or lower part if a task marker is in the way."""
    for (x, y), value in np.ndenumerate(gap):
        if not np.isfinite(value):
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.6"))
            continue
        colour = "white" if norm(value) > 0.55 else "black"
        near = visited[np.abs(visited[:, 0] - x) < 0.35]
        room = [np.abs(near[:, 1] - (y + shift)).min(initial=1.0) for shift in TEXT_SHIFTS]
        shift = TEXT_SHIFTS[next((i for i, r in enumerate(room) if r > 0.32), int(np.argmax(room)))]
        axis.text(
            x, y + shift + 0.09, f"{round(float(value))}", ha="center", va="center", color=colour, fontsize=10
        )
        if np.isfinite(error[x, y]):
            text = f"± {error[x, y]:.0f}"
            axis.text(x, y + shift - 0.1, text, ha="center", va="center", color=colour, fontsize=7)


def _mark_visited(axis: plt.Axes, table: GapTable, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Numbered markers at the tasks of the training; their places (n, 2) in cells."""
    if table.visited_psi is None:
        return np.zeros((0, 2))
    x = np.interp(table.visited_psi[:, 0], xs, np.arange(len(xs)))
    y = np.interp(table.visited_psi[:, 1], ys, np.arange(len(ys)))
    groups: list[tuple[np.ndarray, list[str]]] = []  # tasks closer than a marker share one
    for i, place in enumerate(np.stack([x, y], axis=1)):
        for center, numbers in groups:
            if np.abs(center - place).max() < 0.12:
                numbers.append(str(i + 1))
                break
        else:
            groups.append((place, [str(i + 1)]))
    for (px, py), numbers in groups:
        axis.annotate(
            ",".join(numbers),
            (px, py),
            fontsize=7,
            ha="center",
            va="center",
            color="black",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "0.3", "linewidth": 0.6},
        )
    return np.array([place for place, _ in groups])


def _label(table: GapTable, i: int) -> str:
    return f"{table.task_names[i]} ({table.task_units[i]})"
