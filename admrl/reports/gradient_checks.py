"""The picture of a gradient check, from its saved numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from scipy.stats import t as student_t

from admrl.number_text import number
from admrl.reports.style import add_legend, fit, log_axis, partly_linear_axis, save_figure

matplotlib.use("Agg", force=False)


# Okabe and Ito's colours, and a marker each, so that nothing depends on colour alone
STYLES = {
    "reinforce": ("#999999", "x"),
    "per_step": ("#E69F00", "v"),
    "causal": ("#56B4E9", "^"),
    "pathwise": ("#009E73", "s"),
    "mixed": ("#F0E442", "D"),
    "fisher": ("#CC79A7", "P"),
    "resolve": ("#D55E00", "o"),
}


def look(estimator: str) -> tuple[str, str]:
    """Colour and marker; estimators that are not listed share one."""
    return STYLES.get(estimator, ("#000000", "*"))


def plot_gradient_checks(checks: Sequence[dict[str, Any]], path: Path | str) -> None:
    """One row per checked task: the implicit part of every draw beside the truth, the fidelity of the total against
    its cost, and the implicit part against the damping.

    Args:
        checks: `GradientCheck.to_dict()`.
        path: .png, .pdf or .svg.
    """
    figure, axes = plt.subplots(
        len(checks), 3, figsize=(13, 3.6 * len(checks) + 0.6), squeeze=False, layout="constrained"
    )
    for row, check in zip(axes, checks, strict=True):
        _implicit(row[0], check)
        _fidelity(row[1], check)
        _damping(row[2], check)
    drawn = {d["estimator"] for check in checks for d in check["draws"]}
    names = [*(n for n in STYLES if n in drawn), *sorted(drawn - set(STYLES))]
    handles: dict[str, Artist] = {}
    for name in names:
        colour, marker = look(name)
        handles[name] = plt.Line2D([], [], color=colour, marker=marker, linestyle="", markeredgecolor="0.2")
    add_legend(figure, handles, 10)
    save_figure(figure, Path(path))


def _linear_size(check: dict[str, Any]) -> float:
    """Up to where the axes of the implicit part are linear: twice the truth with its error."""
    truth = check["truth"]
    ends = np.abs(truth["implicit"]) + 2 * np.nan_to_num(truth["implicit_error"])
    return 2 * float(ends.max()) or 1.0


def _implicit(axis: Axes, check: dict[str, Any]) -> None:
    truth = check["truth"]
    k = len(truth["implicit"])
    names = [d["estimator"] for d in check["draws"]]
    for i in range(k):
        shift = (i - (k - 1) / 2) * 0.8 / k
        half = quantile(check) * truth["implicit_error"][i]
        low, height = truth["implicit"][i] - half, 2 * half
        axis.bar(
            np.arange(len(names)) + shift,
            height,
            0.8 / k,
            low,
            color="0.85" if i % 2 else "0.7",
        )
        for x, draws in enumerate(check["draws"]):
            colour, marker = look(draws["estimator"])
            values = [v[i] for v in draws["implicit"]]
            axis.scatter(
                x + shift + np.linspace(-0.1, 0.1, len(values)) / k,
                values,
                s=24,
                color=colour,
                marker=marker,
                zorder=3,
            )
    partly_linear_axis(axis, _linear_size(check))
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xticks(range(len(names)), [fit(n, 1.2, 10) for n in names], rotation=30, ha="right")
    axis.set_ylabel("implicit part\n(return per unit-box coordinate)")
    psi = ", ".join(number(x, 3) for x in check["psi"])
    title = f"{check['family']}, psi = ({psi})\nbars: truth, 95 % interval, by coordinate"
    axis.set_title(fit(title, 4, 10), fontsize=10)


def quantile(check: dict[str, Any]) -> float:
    """Standard errors to either end of a 95 % interval of the truth, which is a mean over its replicates."""
    return float(student_t.isf(0.025, check["provenance"]["truth"]["num_replicates"] - 1))


def _fidelity(axis: Axes, check: dict[str, Any]) -> None:
    truth = np.array(check["truth"]["total"])
    for draws in check["draws"]:
        colour, marker = look(draws["estimator"])
        total = np.array(draws["total"])
        cosine = total @ truth / (np.linalg.norm(total, axis=1) * np.linalg.norm(truth) + 1e-30)
        seconds = np.median(draws["seconds"])
        points = axis.scatter(
            np.full(len(cosine), seconds), cosine, s=24, color=colour, marker=marker, alpha=0.8
        )
        if marker != "x":
            points.set_edgecolor("0.2")
            points.set_linewidth(0.5)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    log_axis(axis.xaxis)
    axis.set_ylim(-1.08, 1.08)
    axis.axhline(0.8, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_xlabel("seconds a gradient")
    axis.set_ylabel("cosine of the total with the truth")


def _damping(axis: Axes, check: dict[str, Any]) -> None:
    for draws in check["draws"]:
        colour, marker = look(draws["estimator"])
        path = draws["implicit_at"]
        for i, style in zip(range(len(check["truth"]["implicit"])), ("-", "--", ":"), strict=False):
            if path:
                dampings = [float(d) for d in path]
                values = [v[i] for v in path.values()]
                axis.plot(dampings, values, style, color=colour, marker=marker, markersize=4)
    axis.set_xscale("log")
    log_axis(axis.xaxis)
    partly_linear_axis(axis, _linear_size(check))
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xlabel("relative damping")
    axis.set_ylabel("implicit part (solid, dashed: coordinates)")
