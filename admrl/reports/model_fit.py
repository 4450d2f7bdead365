"""The picture of a fitted model's report, and its tables as CSV, from its saved numbers alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from admrl.reports.style import STYLES, log_axis, save_figure

matplotlib.use("Agg", force=False)

MAX_BARS = 40  # coordinates of a readable picture: those with the largest share of the change unexplained


def rows_as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each row, lists left out."""
    names = [name for name, value in rows[0].items() if not isinstance(value, list)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot_fit_report(report: dict[str, Any], path: Path | str) -> None:
    """Errors by coordinate, by horizon beside the spread of the members, and the coverage of their intervals.

    Args:
        report: see `admrl.datasets.fit_report.fit_report`.
        path: .png, .pdf or .svg.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _coordinates(axes[0], report["coordinates"])
    _horizons(axes[1], report["horizons"])
    _coverage(axes[2], report["horizons"])
    save_figure(figure, Path(path))


def _coordinates(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Share of the change that the model does not predict."""
    known = [row for row in rows if row["ratio"] == row["ratio"]]  # nan: it never changes
    worst = sorted(sorted(known, key=lambda row: -row["ratio"])[:MAX_BARS], key=lambda row: row["coordinate"])
    place = range(len(worst))
    axes.barh(place, [row["ratio"] for row in worst], color=STYLES[1][0])
    axes.set_yticks(place, [str(row["coordinate"]) for row in worst], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="0.4", linestyle=":")
    which = "" if len(worst) == len(known) else f" (worst {MAX_BARS} of {len(known)})"
    axes.set_ylabel(f"coordinate{which}")
    axes.set_xlabel("one-step error / error of no change")
    axes.set_xlim(left=0)


def _horizons(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    steps = [row["steps"] for row in rows]
    lines = (("model", "error"), ("no change", "no_change"), ("spread of members", "spread"))
    for (label, name), (colour, marker, line) in zip(lines, STYLES, strict=False):
        shown = [
            (s, row[name]) for s, row in zip(steps, rows, strict=True) if row[name] > 0
        ]  # neither 0 nor nan
        if shown:
            axes.plot(*zip(*shown, strict=True), color=colour, marker=marker, linestyle=line, label=label)
    if axes.lines:
        axes.set_yscale("log")
        log_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=8)
    _steps_axis(axes, steps)
    axes.set_ylabel("error (standard deviations of the states)")


def _coverage(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    steps = [row["steps"] for row in rows]
    for level, (colour, marker, line) in zip((90, 50), STYLES, strict=False):
        axes.axhline(level, color=colour, linestyle=":")
        values = [100 * row[f"coverage_{level}"] for row in rows]
        axes.plot(steps, values, color=colour, marker=marker, linestyle=line, label=f"{level} % interval")
    _steps_axis(axes, steps)
    axes.set_ylim(0, 103)
    axes.set_ylabel("truth within the interval (%)")
    axes.legend(frameon=False, fontsize=8)


def _steps_axis(axes: Any, steps: Sequence[int]) -> None:
    """Logarithmic, also where nothing is drawn."""
    axes.set_xlim(0.8 * steps[0], 1.25 * steps[-1])
    axes.set_xscale("log")
    log_axis(axes.xaxis)
    axes.set_xlabel("steps, open loop")
