"""Figures of a comparison but the heat maps, from saved tables and records alone (AdMRL Fig. 2, 3b, 4, 5b, 6).

Methods keep one colour, marker and line style everywhere; the colours are those of Okabe and Ito, which colour-blind
people can tell apart, and the markers survive a black-and-white print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator

from admrl.number_text import counted
from admrl.reports.comparison import Comparison
from admrl.reports.rows import Row
from admrl.reports.style import (
    COLOURS,
    add_legend,
    axis_label,
    fit,
    log_axis,
    number_axis,
    save_figure,
    styles,
)
from admrl.runs.records import RunRecords

matplotlib.use("Agg", force=False)


CURVES = (
    ("return_real_noisy", "real return of the\nexploring policy"),
    ("held_out_loss", "held-out model loss"),
)
INTERVAL_NOTE = "bars: 95 % interval (t) over training and policy seeds"


def plot_worst_gap(comparison: Comparison, rows: Sequence[Row], path: Path | str) -> None:
    """Worst-case gap against n (AdMRL Fig. 3b, 4b, 5b).

    The largest of noisy means (filled) is too large, the one corrected for the choice (open) too small.
    """
    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    look = styles([m.name for m in comparison.methods])
    drawn: dict[str, Artist] = {}
    for i, method in enumerate(comparison.methods):
        colour, marker, line = look[method.name]
        for statistic, filled in (("worst gap", True), ("worst gap, corrected", False)):
            chosen = [r for r in rows if r["method"] == method.name and r["statistic"] == statistic]
            label = method.name if filled else f"{method.name}, corrected"
            if chosen:
                style = line if filled else (0, (1, 3))
                drawn[label] = _errorbar(axis, chosen, i, comparison, colour, marker, style, filled)
    shown = [r for r in rows if r["statistic"] in ("worst gap", "worst gap, corrected")]
    _finish_n(axis, comparison, shown, f"worst-case {comparison.first.gap_name},\nreturn per episode")
    add_legend(figure, drawn)
    save_figure(figure, Path(path))


def plot_average_return(comparison: Comparison, rows: Sequence[Row], path: Path | str) -> None:
    """Average return A_n against n, with the average A* (AdMRL Fig. 2)."""
    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    look = styles([m.name for m in comparison.methods])
    drawn: dict[str, Artist] = {}
    shown = [r for r in rows if r["statistic"] == "mean return"]
    for i, method in enumerate(comparison.methods):
        colour, marker, line = look[method.name]
        if chosen := [r for r in shown if r["method"] == method.name]:
            drawn[method.name] = _errorbar(axis, chosen, i, comparison, colour, marker, line, True)
    keep = comparison.complete(0)
    if keep.any():
        best = float(comparison.first.optimal_return[keep].mean())
        axis.axhline(best, color="0.3", linewidth=1)
        axis.annotate(
            "A*", (1.0, best), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points"
        )
    _finish_n(axis, comparison, shown, "average return per episode")
    add_legend(figure, drawn)
    save_figure(figure, Path(path))


def plot_model_error(comparison: Comparison, path: Path | str) -> bool:
    """One-step errors of the learned models on real transitions of the test tasks (AdMRL Fig. 6).

    A dot is a training run, its mean over tasks; the bar is the mean of the runs.

    Returns:
        Whether there is a figure: the tables must have errors, all on the same transitions.
    """
    tables = [t for m in comparison.methods for t in m.tables]
    samples = {t.provenance.model_error_sample for t in tables}
    if len(samples) > 1 or any(t.model_error is None for t in tables):
        return False
    look = styles([m.name for m in comparison.methods])
    figure, axis = plt.subplots(figsize=(1.4 * len(comparison.methods) + 2.6, 3.7), layout="constrained")
    shown: list[float] = []
    for i, method in enumerate(comparison.methods):
        colour, marker, _ = look[method.name]
        per_run = np.array([np.nanmean(t.model_error) for t in method.tables if t.model_error is not None])
        axis.bar(
            i, per_run.mean(), 0.6, color=colour, alpha=0.35, edgecolor=colour, hatch=("", "//", "..")[i % 3]
        )
        spread = np.linspace(-0.15, 0.15, len(per_run)) if len(per_run) > 1 else np.zeros(1)
        axis.plot(i + spread, per_run, marker, color=colour, markeredgecolor="black", linestyle="none")
        shown += per_run.tolist()
    names = [fit(m.name, 1.3, 9) for m in comparison.methods]
    axis.set_xticks(range(len(names)), names, fontsize=9)
    scale = number_axis(axis.yaxis, shown)
    axis.set_ylabel(scale.label("one-step model error on the test tasks,\nstandard deviations of a step"))
    title = f"test tasks: {comparison.first.test_set}; dots: training runs"
    axis.set_title(fit(title, figure.get_figwidth() - 1, 9), fontsize=9)
    axis.set_ylim(bottom=0)
    save_figure(figure, Path(path))
    return True


def plot_visited(comparison: Comparison, path: Path | str) -> None:
    """Tasks that the trainings visited, in Psi (AdMRL Fig. 4a): a panel per method, darker is later.

    One or two task parameters: the plane; three: the box; more: how close to the boundary each task was.
    """
    first = comparison.first
    size, num = first.psi.shape[1], len(comparison.methods)
    dimension: dict[str, Any] = {"subplot_kw": {"projection": "3d"}} if size == 3 else {}
    figure, axes = plt.subplots(
        1,
        num,
        figsize=((4.1 if size == 3 else 3.6) * num + 0.8, 4.0 if size == 3 else 3.6),
        squeeze=False,
        layout="constrained",
        **dimension,
    )
    look = styles([m.name for m in comparison.methods])
    longest = max(
        (len(t.visited_psi) for m in comparison.methods for t in m.tables if t.visited_psi is not None),
        default=1,
    )
    image = None
    for axis, method in zip(axes[0], comparison.methods, strict=True):
        for t in method.tables:
            if t.visited_psi is None or len(t.visited_psi) == 0:
                continue
            order = np.arange(1, len(t.visited_psi) + 1)
            kind: dict[str, Any] = {
                "c": order, "cmap": "cividis_r", "vmin": 1, "vmax": longest, "marker": look[method.name][1],
                "edgecolors": "black", "linewidths": 0.6, "s": 42,
            }  # fmt: skip
            if size == 3:
                image = axis.scatter(*t.visited_psi.T, depthshade=False, **kind)
            elif size == 2:
                image = axis.scatter(*t.visited_psi.T, clip_on=False, zorder=3, **kind)
            else:
                low, high = (
                    first.box if first.box is not None else (t.visited_psi.min(0), t.visited_psi.max(0))
                )
                unit = np.abs((t.visited_psi - low) / (high - low) * 2 - 1)
                image = axis.scatter(order, unit.max(1), clip_on=False, zorder=3, **kind)
        axis.set_title(fit(f"{method.name}, {counted(len(method.tables), 'run')}", 3.4, 10), fontsize=10)
        _psi_axes(axis, comparison, size, longest)
    if image is not None:
        bar = figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, pad=0.08 if size == 3 else 0.02)
        bar.set_label("order in the training")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, Path(path))


def plot_paths(records: Sequence[RunRecords], comparison: Comparison, path: Path | str) -> bool:
    """Paths of psi with the task gradients and the agreement of their halves, a column per training with gradients.

    Above, the path in Psi (its first two coordinates) with an arrow along each gradient, filled if the halves of the
    data agreed (cosine above 0); below, the cosines.

    Returns:
        Whether there is a figure: some training must have gradients, and at least two task parameters.
    """
    chosen = [r for r in records if np.isfinite(r.gradients).any() and r.psi.shape[1] >= 2][:5]
    if not chosen:
        return False
    first = comparison.first
    figure, axes = plt.subplots(
        2,
        len(chosen),
        figsize=(3.7 * len(chosen) + 0.4, 5.6),
        squeeze=False,
        height_ratios=(3, 1.2),
        layout="constrained",
    )
    low, high = first.box if first.box is not None else (first.psi.min(0), first.psi.max(0))
    for (above, below), run in zip(axes.T, chosen, strict=True):
        _draw_path(above, run, low, high)
        _psi_axis(above.xaxis, comparison, 0)
        _psi_axis(above.yaxis, comparison, 1)
        _draw_agreement(below, run.split_half)
    note = "arrows: direction of the task gradient (lengths mean nothing); filled, solid: halves of its data agree"
    figure.supxlabel(fit(note, figure.get_figwidth(), 8), fontsize=8, color="0.35")
    save_figure(figure, Path(path))
    return True


def _draw_path(axis: plt.Axes, run: RunRecords, low: np.ndarray, high: np.ndarray) -> None:
    """Tasks of a training in the plane of the first two parameters, an arrow along each gradient."""
    psi, cosine, span = run.psi[:, :2], run.split_half, (high - low)[:2]
    # the search climbs in unit coordinates, where a unit of psi_i is (high - low) / 2 long
    step = run.gradients[:, :2] * (span / 2) ** 2
    length = np.abs(step / span).max(1, keepdims=True)
    arrow = np.divide(step, length, out=np.full_like(step, np.nan), where=length > 0) * 0.16
    axis.plot(*psi.T, "-", color="0.7", linewidth=1, zorder=1)
    axis.add_patch(plt.Rectangle(low[:2], *span, fill=False, edgecolor="0.4", linewidth=1))
    for i, (p, a, c) in enumerate(zip(psi, arrow, cosine, strict=True)):
        agree = bool(np.isfinite(c) and c > 0)
        fill = "#0072b2" if agree else "white"
        axis.plot(*p, "o", ms=11, color=fill, markeredgecolor="#0072b2", zorder=2, clip_on=False)
        ink = "white" if agree else "black"
        axis.annotate(str(i + 1), p, ha="center", va="center", fontsize=7, color=ink, zorder=4)
        if np.isfinite(a).all():
            line = "-" if agree else ":"
            look = {"arrowstyle": "->", "color": "#d55e00", "linewidth": 1.6, "linestyle": line}
            axis.annotate("", p + a, p, zorder=3, annotation_clip=False, arrowprops=look)
    axis.set_xlim(low[0] - 0.2 * span[0], high[0] + 0.2 * span[0])
    axis.set_ylim(low[1] - 0.2 * span[1], high[1] + 0.2 * span[1])
    axis.set_title(fit(f"{run.selector}, seed {run.seed}", 3.4, 10), fontsize=10)


def _draw_agreement(axis: plt.Axes, cosine: np.ndarray) -> None:
    """Cosine of the gradients of two halves of the data, a bar for every task (n,) where it is known."""
    number = np.arange(1, len(cosine) + 1)
    colour = ["#0072b2" if c > 0 else "white" for c in cosine]
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.bar(number, cosine, color=colour, edgecolor="#0072b2")
    axis.set_ylim(-1.05, 1.05)
    axis.set_xlim(0.3, len(cosine) + 0.7)
    axis.set_xticks(number if len(number) <= 12 else number[:: len(number) // 6])
    axis.set_xlabel("task of the training")
    axis.set_ylabel("split-half cosine")


def plot_gap_map(records: Sequence[RunRecords], comparison: Comparison, path: Path | str) -> bool:
    """What trainings knew of their gaps by themselves (`admrl.training.gap_map`), a panel for each of the first five.

    A dot for every task that a zero-shot policy was tried on, in the plane of its first two parameters, coloured by
    the estimated gap; a large one where that is more than two standard errors from 0.

    Returns:
        Whether there is a figure: some training must have estimates, of two task parameters or more.
    """
    size = comparison.first.psi.shape[1]
    rows = [(r, r.gap_map[np.isfinite(r.gap_map).all(1)]) for r in records if r.gap_map.shape[1] == size + 7]
    chosen = [(r, found) for r, found in rows if len(found)][:5]
    if not chosen or size < 2:
        return False
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(3.7 * len(chosen) + 1.0, 3.7), squeeze=False, layout="constrained"
    )
    gaps = np.concatenate([found[:, size + 4] for _, found in chosen])
    norm, image = plt.Normalize(min(0.0, gaps.min()), max(gaps.max(), 1e-9)), None
    for axis, (run, found) in zip(axes[0], chosen, strict=True):
        gap, error = found[:, size + 4], found[:, size + 5]
        sizes = np.where(np.abs(gap) > 2 * error, 90.0, 30.0)
        image = axis.scatter(
            *found[:, :2].T, c=gap, s=sizes, cmap=COLOURS, norm=norm, edgecolors="0.3", linewidths=0.6
        )
        _psi_axis(axis.xaxis, comparison, 0)
        _psi_axis(axis.yaxis, comparison, 1)
        axis.set_title(fit(f"{run.selector}, seed {run.seed}", 3.4, 10), fontsize=10)
    assert image is not None
    bar = figure.colorbar(image, ax=axes.ravel().tolist())
    bar.set_label(number_axis(bar.ax.yaxis, gaps).label("estimated gap,\nreturn per episode"))
    note = "large: more than two standard errors from 0; policies of the model as it was when they were tried"
    figure.supxlabel(fit(note, figure.get_figwidth(), 8), fontsize=8, color="0.35")
    save_figure(figure, Path(path))
    return True


def plot_learning_curves(records: Sequence[RunRecords], path: Path | str) -> bool:
    """Real return while exploring, and the model's loss on held-out data, against real samples; a line per run.

    Returns:
        Whether there is a figure: some run must have metrics.
    """
    columns = [
        (name, label)
        for name, label in CURVES
        if any(np.isfinite(r.metrics.get(name, np.zeros(0))).any() for r in records)
    ]
    if not columns:
        return False
    size = (4.6 * len(columns), 3.9)
    figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, layout="constrained")
    look = styles(list(dict.fromkeys(r.selector for r in records)))
    drawn: dict[str, Artist] = {}
    for axis, (name, label) in zip(axes[0], columns, strict=True):
        x, y = [], []
        for run in records:
            if name not in run.metrics:
                continue
            colour, marker, line = look[run.selector]
            samples, values = run.metrics["real_samples"], run.metrics[name]
            keep = np.isfinite(values) & np.isfinite(samples)
            x += samples[keep].tolist()
            y += values[keep].tolist()
            kind: dict[str, Any] = {"marker": marker, "ms": 3.5, "color": colour, "alpha": 0.8}
            (drawn[run.selector],) = axis.plot(samples[keep], values[keep], line, **kind)
        axis.set_xlabel(number_axis(axis.xaxis, x).label("real samples of the training"))
        axis.grid(color="0.92")
        if name == "held_out_loss":
            axis.set_yscale("log")
            log_axis(axis.yaxis)
            axis.set_ylabel(label)
        else:
            axis.set_ylabel(number_axis(axis.yaxis, y).label(label))
    add_legend(figure, drawn)
    save_figure(figure, Path(path))
    return True


def _errorbar(
    axis: plt.Axes,
    rows: Sequence[Row],
    i: int,
    comparison: Comparison,
    colour: str,
    marker: str,
    line: Any,
    filled: bool,
) -> Artist:
    """Values and intervals against n, methods shifted a little so that their bars do not overlap."""
    n = np.array([r["n"] for r in rows], dtype=float)
    step = (
        float(np.diff(comparison.first.num_samples).min()) if len(comparison.first.num_samples) > 1 else 1.0
    )
    shift = (i - (len(comparison.methods) - 1) / 2) * 0.05 * step + (0 if filled else 0.02 * step)
    value = np.array([r["value"] for r in rows])
    ends = np.abs(np.array([[r["low"] for r in rows], [r["high"] for r in rows]]) - value)
    return axis.errorbar(
        n + shift, value, ends, color=colour, marker=marker, linestyle=line, capsize=3,
        markerfacecolor=colour if filled else "white", linewidth=1.6 if filled else 1.0,
    )  # fmt: skip


def _finish_n(axis: plt.Axes, comparison: Comparison, rows: Sequence[Row], label: str) -> None:
    """Axes and title of a figure of some rows against n."""
    first = comparison.first
    shown = [r[k] for r in rows for k in ("value", "low", "high")]
    axis.set_ylabel(number_axis(axis.yaxis, shown).label(label))
    axis.set_xticks(first.num_samples)
    if len(first.num_samples) == 1:
        axis.set_xlim(-1, 1)
    axis.set_xlabel("real samples of the test task n")
    axis.grid(axis="y", color="0.92")
    note = f"; {INTERVAL_NOTE}" if min(len(m.tables) for m in comparison.methods) > 1 else ""
    title = f"{first.family}, {first.test_set}, {counted(len(first.psi), 'task')}{note}"
    axis.set_title(fit(title, axis.figure.get_figwidth() - 1, 8), fontsize=8)


def _psi_axes(axis: Any, comparison: Comparison, size: int, longest: int) -> None:
    """Limits and labels of Psi."""
    first = comparison.first
    if size > 3 or size == 1:
        axis.set_xlim(0.5, longest + 0.5)
        axis.set_ylim(0, 1.03)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("task of the training")
        axis.set_ylabel("largest |unit coordinate| (1: boundary)")
        return
    for i, name in enumerate("xyz"[:size]):
        if first.box is not None:
            getattr(axis, f"set_{name}lim")(*first.box[:, i])
        _psi_axis(getattr(axis, f"{name}axis"), comparison, i)
        if size == 3:
            getattr(axis, f"{name}axis").set_major_locator(MaxNLocator(4))
    if size == 3:
        axis.tick_params(labelsize=8)
        axis.set_box_aspect(None, zoom=0.77)  # room for the labels, which the layout does not know of


def _psi_axis(axis: Any, comparison: Comparison, i: int) -> None:
    """Numbers and label of the axis of a task parameter."""
    first = comparison.first
    axis.set_label_text(number_axis(axis, first.psi[:, i]).label(axis_label(first, i)))
