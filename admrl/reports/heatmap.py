"""Gap heat maps, from saved tables alone (AdMRL Fig. 1, 3a, 5a)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize

from admrl.evaluation.gap_table import GapTable
from admrl.number_text import Scale, counted, distinct, number, with_error
from admrl.reports.comparison import Comparison, check_comparable, check_gaps
from admrl.reports.style import CHARACTER, COLOURS, axis_label, fit, number_axis, save_figure

matplotlib.use("Agg", force=False)


TEXT_SHIFTS = (0.0, 0.3, -0.26)  # of a cell's text, in cells
CELL_POINTS = 46  # room for text across a cell
WORST, BOX = "#d62728", "0.1"


@dataclass(frozen=True, eq=False)
class Panel:
    """One heat map: mean gaps of M tasks."""

    title: str
    psi: np.ndarray  # (M, k)
    gap: np.ndarray  # (M,) nan is missing
    error: np.ndarray  # (M,)
    visited: np.ndarray | None = None  # (n, k) tasks of the training, in order


def plot_gap_heatmap(tables: Sequence[GapTable], path: Path | str, j: int = 0, *, part: str = "gap") -> None:
    """Sub-optimality gaps over a grid of tasks, methods side by side on one colour scale (AdMRL Fig. 3a).

    Every cell shows its mean gap and, below, the standard error over policy seeds; the worst task has a frame,
    missing cells are hatched, and small numbers mark the tasks of the training in their order. A 3-D grid has a row
    of maps for every value of its third coordinate; other sets of tasks are drawn as a dot for each task, over the
    task parameter if there is one alone.

    Args:
        tables: one per method, of the same family and tasks.
        path: .png, .pdf or .svg.
        j: which of the tables' sample counts.
        part: "gap", or a part of it, "optimisation" or "model" (`GapTable.part`).

    Raises:
        ValueError: no table, tables that do not belong together, no gap at all, or gaps that were not decomposed.
    """
    if not tables:
        raise ValueError("tables: expected at least one gap table, got none")
    for other in tables[1:]:
        check_comparable(tables[0], other)
    tables, panels = [table.part(part) for table in tables], []
    for table in tables:
        worst, (mean, error) = table.worst(j), table.average(j)
        title = (
            f"{table.method}\nworst\u00a0{with_error(worst.gap, worst.standard_error)} (framed), "
            f"mean\u00a0{with_error(mean, error)}"
        )
        if table.num_missing(j):
            title += f"\n{counted(table.num_missing(j), 'task')} missing"
        panels.append(Panel(title, table.psi, table.mean_gap(j), table.standard_error(j), table.visited_psi))
    _draw(panels, tables[0], j, "± standard error over policy seeds; frame: worst task", path)


def plot_method_heatmap(comparison: Comparison, path: Path | str, j: int = 0) -> None:
    """The same, one panel per method: gaps averaged over its training runs.

    Raises:
        ValueError: no gap at all.
    """
    check_gaps(comparison)
    panels = []
    for method in comparison.methods:
        gaps = method.gaps(j)
        known = np.isfinite(gaps).all(0)
        mean = np.where(known, gaps.mean(0), np.nan)
        title = f"{method.name}, {counted(len(gaps), 'training seed')}"
        worst, average = (number(float(x), 3) for x in (np.nanmax(mean), np.nanmean(mean)))
        title += f"\nworst mean\u00a0{worst} (framed), mean\u00a0{average}"
        if not known.all():
            title += f"\n{counted(int((~known).sum()), 'task')} missing"
        visited = method.tables[0].visited_psi if len(gaps) == 1 else None
        panels.append(Panel(title, comparison.first.psi, mean, method.errors(j), visited))
    over = (
        "training and policy seeds" if any(len(m.tables) > 1 for m in comparison.methods) else "policy seeds"
    )
    note = f"± standard error over {over}; frame: largest mean gap"
    _draw(panels, comparison.first, j, note, path)


def _draw(panels: Sequence[Panel], table: GapTable, j: int, note: str, path: Path | str) -> None:
    label = f"{table.gap_name}, return per episode (n = {table.num_samples[j]})"
    if table.not_covered:
        note += f"; ± leaves out {table.not_covered}"
    grid = table.grid_shape
    visited = any(p.visited is not None and len(p.visited) for p in panels)
    if grid is None or len(grid) not in (2, 3) or min(grid) < 2:
        figure = _dots(panels, table, label)
        if visited and table.psi.shape[1] == 1:
            note += "; strokes: tasks of the training"
    else:
        figure = _maps(panels, table, grid, label)
        if table.psi.shape[1] == 3:
            note += f"; rows: {axis_label(table, 2)}"
        elif visited:
            note += "; boxes: tasks of the training, in order"
    figure.supxlabel(fit(note, figure.get_figwidth(), 8), fontsize=8, color="0.35")
    save_figure(figure, Path(path))


def colour_scale(gaps: np.ndarray) -> Normalize:
    """From the smallest gap, or 0, to the largest."""
    low, high = min(0.0, np.nanmin(gaps)), max(0.0, np.nanmax(gaps))
    return Normalize(low, high if high > low else 1.0)


def _maps(panels: Sequence[Panel], table: GapTable, grid: tuple[int, ...], label: str) -> plt.Figure:
    """A column for every panel, a row for every value of the third coordinate (one row in 2-D)."""
    gaps = np.stack([p.gap for p in panels])
    norm, scale = colour_scale(gaps), Scale.of(gaps.ravel(), np.ravel([p.error for p in panels]))
    axes_values = [levels(table.psi[:, i]) for i in range(table.psi.shape[1])]
    xs, ys = axes_values[:2]
    zs = axes_values[2] if len(axes_values) == 3 else np.zeros(1)
    width, height = max(3.4, 0.8 * len(xs) + 0.9), max(2.9, 0.62 * len(ys) + 1.1)
    figure, axes = plt.subplots(
        len(zs),
        len(panels),
        figsize=(width * len(panels) + 0.9, height * len(zs) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    image = None
    for column, panel in zip(axes.T, panels, strict=True):
        worst = int(np.nanargmax(panel.gap))
        for row, axis in enumerate(column):
            here = np.ones(len(panel.psi), bool)
            if len(axes_values) == 3:
                here = nearest(panel.psi[:, 2], zs) == row
            gap, error, tested = (np.full((len(xs), len(ys)), np.nan) for _ in range(3))
            ix, iy = nearest(panel.psi[:, 0], xs), nearest(panel.psi[:, 1], ys)
            gap[ix[here], iy[here]], error[ix[here], iy[here]] = panel.gap[here], panel.error[here]
            tested[ix[here], iy[here]] = 1
            axis.set_facecolor("0.92")
            image = axis.imshow(
                np.ma.masked_invalid(gap.T), origin="lower", cmap=COLOURS, norm=norm, aspect="auto"
            )
            near = len(axes_values) == 2
            visited = _mark_visited(axis, panel, xs, ys) if near else np.zeros((0, 2))
            _write_cells(axis, gap, error, tested, norm, scale, visited)
            if here[worst]:
                corner = (ix[worst] - 0.47, iy[worst] - 0.47)
                axis.add_patch(plt.Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=WORST, linewidth=3))
            _draw_box(axis, table, xs, ys)
            if row == 0:
                axis.set_title(fit(panel.title, width - 0.3, 10), fontsize=10)
            axis.set_xticks(range(len(xs)), distinct(xs))
            axis.set_yticks(range(len(ys)), distinct(ys))
            axis.set_xlabel(axis_label(table, 0) if row == len(zs) - 1 else "")
            axis.set_ylabel(
                axis_label(table, 1)
                + (
                    f"\n{table.task_names[2]} {distinct(zs)[row]} {table.task_units[2]}"
                    if len(zs) > 1
                    else ""
                )
            )
    assert image is not None
    bar = figure.colorbar(image, ax=axes.ravel().tolist())
    bar.set_label(number_axis(bar.ax.yaxis, scale).label(label.replace(", ", ",\n")))
    return figure


def _dots(panels: Sequence[Panel], table: GapTable, label: str) -> plt.Figure:
    """A dot with an error bar for every task: over the only task parameter, or in the order of the list."""
    num_tasks, along = len(table.psi), table.psi.shape[1] == 1
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(max(6.4, 0.28 * num_tasks + 1.5), 2.1 * len(panels) + 1.0),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    x = table.psi[:, 0] if along else np.arange(1, num_tasks + 1)
    steps = np.diff(np.unique(x))
    half = 0.45 * float(steps.min() if len(steps) else 1.0)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.errorbar(x, panel.gap, panel.error, fmt="o", color="#0072b2", ms=4, capsize=2)
        worst = int(np.nanargmax(panel.gap))
        axis.plot(x[worst], panel.gap[worst], "s", ms=11, fillstyle="none", color=WORST, markeredgewidth=2)
        for m in np.flatnonzero(~np.isfinite(panel.gap)):
            axis.axvspan(
                x[m] - half, x[m] + half, facecolor="0.92", hatch="///", edgecolor="0.6", linewidth=0
            )
        if along and panel.visited is not None:
            bottom = axis.get_xaxis_transform()  # y in shares of the axis
            axis.plot(
                panel.visited[:, 0], np.zeros(len(panel.visited)), "|", color="0.1", ms=12, transform=bottom
            )
        axis.set_title(fit(panel.title.replace("\n", ": ", 1), figure.get_figwidth() - 1.2, 9), fontsize=9)
        axis.grid(axis="y", color="0.9")
    axes[-1, 0].set_xlabel(axis_label(table, 0) if along else "task, in the order of the list")
    if not along:
        axes[-1, 0].set_xticks(x if num_tasks <= 40 else x[:: max(1, num_tasks // 20)])
    scale = number_axis(axes[0, 0].yaxis, np.ravel([p.gap for p in panels]))  # shared
    figure.supylabel(scale.label(label.replace(", ", ",\n")), fontsize=9)
    return figure


def _write_cells(
    axis: plt.Axes,
    gap: np.ndarray,
    error: np.ndarray,
    tested: np.ndarray,
    norm: Normalize,
    scale: Scale,
    visited: np.ndarray,
) -> None:
    """Mean gap and standard error in every cell, in the upper or lower part if a task marker is in the way."""
    for (x, y), value in np.ndenumerate(gap):
        if not np.isfinite(value):
            if np.isfinite(tested[x, y]):
                axis.add_patch(
                    plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.6")
                )
                axis.text(x, y, "missing", ha="center", va="center", fontsize=7, color="0.2")
            continue
        colour = "white" if norm(value) > 0.55 else "black"
        near = visited[np.abs(visited[:, 0] - x) < 0.35]
        room = [np.abs(near[:, 1] - (y + shift)).min(initial=1.0) for shift in TEXT_SHIFTS]
        shift = TEXT_SHIFTS[next((i for i, r in enumerate(room) if r > 0.32), int(np.argmax(room)))]
        shown, uncertainty = scale.pair(float(value), float(error[x, y]))
        for text, size, up in ((shown, 10.0, 0.09), (f"± {uncertainty}", 7.0, -0.12)):
            size = min(size, CELL_POINTS / (CHARACTER * len(text)))
            axis.text(x, y + shift + up, text, ha="center", va="center", color=colour, fontsize=size)


def _mark_visited(axis: plt.Axes, panel: Panel, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Numbered markers at the tasks of the training; their places (n, 2) in cells."""
    if panel.visited is None or len(panel.visited) == 0:
        return np.zeros((0, 2))
    x = np.interp(panel.visited[:, 0], xs, np.arange(len(xs)))
    y = np.interp(panel.visited[:, 1], ys, np.arange(len(ys)))
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


def _draw_box(axis: plt.Axes, table: GapTable, xs: np.ndarray, ys: np.ndarray) -> None:
    """The training box, where tasks lie outside it (AdMRL Fig. 5a)."""
    if table.box is None:
        return
    low, high = table.box[:, :2]
    slack = 1e-6 * (high - low)
    if (table.psi[:, :2] >= low - slack).all() and (table.psi[:, :2] <= high + slack).all():
        return
    x, y = np.interp([low[0], high[0]], xs, range(len(xs))), np.interp([low[1], high[1]], ys, range(len(ys)))
    axis.add_patch(
        plt.Rectangle(
            (x[0], y[0]), x[1] - x[0], y[1] - y[0], fill=False, edgecolor=BOX, linestyle="--", linewidth=1.5
        )
    )
    axis.text((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, "training box", ha="center", va="center", fontsize=8)


def levels(values: np.ndarray) -> np.ndarray:
    """The distinct coordinates of a grid, ascending; those that differ by rounding count once."""
    ordered = np.unique(values)
    rounding = max(1e-6 * np.ptp(values), 1e-12 * np.abs(values).max())
    return ordered[np.concatenate([[True], np.diff(ordered) > rounding])]


def nearest(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The index of the nearest of some levels, for every coordinate."""
    return np.abs(values[:, None] - places).argmin(1)
