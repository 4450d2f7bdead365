"""The picture of a gradient check, from its saved numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from scipy.stats import t as student_t

from admrl.reports.style import save_figure

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
    handles = [
        plt.Line2D([], [], color=c, marker=m, linestyle="", markeredgecolor="0.2", label=n)
        for n, (c, m) in ((n, look(n)) for n in names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save_figure(figure, Path(path))


def _implicit(axis: Axes, check: dict[str, Any]) -> None:
    truth = check["truth"]
    k = len(truth["implicit"])
    names = [d["estimator"] for d in check["draws"]]
    limit = 1.0
    for i in range(k):
        shift = (i - (k - 1) / 2) * 0.8 / k
        half = _quantile(check) * truth["implicit_error"][i]
        low, height = truth["implicit"][i] - half, 2 * half
        axis.bar(
            np.arange(len(names)) + shift,
            height,
            0.8 / k,
            low,
            color="0.85" if i % 2 else "0.7",
            label=f"truth, 95 % interval, coordinate {i + 1}",
        )
        limit = max(limit, abs(low), abs(low + height))
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
    axis.set_yscale("symlog", linthresh=2 * limit)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel("implicit part\n(return per unit-box coordinate)")
    psi = ", ".join(f"{x:.2f}" for x in check["psi"])
    axis.set_title(f"{check['family']}, psi = ({psi})", fontsize=10)
    axis.legend(fontsize=7, frameon=False, loc="lower left")


def _quantile(check: dict[str, Any]) -> float:
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
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
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
    axis.set_yscale("symlog", linthresh=10)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xlabel("relative damping")
    axis.set_ylabel("implicit part (solid, dashed: coordinates)")
