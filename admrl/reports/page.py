"""One self-contained HTML page of a comparison: sortable tables, heat maps and charts with hover values, all figures.

Needs no network: styles, script and pictures are inside the file. Everything that comes from files is escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from admrl.reports.comparison import Comparison, Row
from admrl.reports.style import COLOURS
from admrl.reports.svg_chart import svg_chart


def render_report(
    comparison: Comparison,
    summary: Sequence[Row],
    paired: Sequence[Row],
    cells: Sequence[Row],
    provenance: Sequence[Row],
    figures: Sequence[tuple[Path, str]],
) -> str:
    """The page.

    Args:
        figures: PNG files with their captions.
    """
    environment = Environment(
        loader=PackageLoader("admrl.reports", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["raw"] = lambda x: "" if isinstance(x, float) and not math.isfinite(x) else repr(x)
    first = comparison.first
    names = ", ".join(m.name for m in comparison.methods)
    return environment.get_template("report.html.j2").render(
        title=f"{first.family}: {names}",
        subtitle=(
            f"{len(first.psi)} test tasks ({first.test_set or 'unnamed'}), variant {first.variant}, "
            + "; ".join(
                f"{m.name}: training seeds {', '.join(map(str, m.seeds))}" for m in comparison.methods
            )
            + f"; {len(first.episode_return)} policy seeds a task, {first.episode_return.shape[-1]} episodes each"
        ),
        notes=comparison.notes(),
        summary=summary,
        paired=paired,
        cells=cells,
        provenance=provenance,
        maps=[_map_group(comparison, j) for j in range(len(first.num_samples))],
        charts=[
            svg_chart(comparison, summary, "worst gap", "worst-case gap, return per episode"),
            svg_chart(comparison, summary, "mean return", "average return per episode"),
        ],
        figures=[
            {"name": file.stem, "caption": caption, "data": base64.b64encode(file.read_bytes()).decode()}
            for file, caption in figures
        ],
        settings=json.dumps(first.provenance.evaluation or {}, indent=1),
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "\u2013"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _map_group(comparison: Comparison, j: int) -> dict[str, Any]:
    """The maps of one sample count: tasks by their first two coordinates, or one line of tasks."""
    first = comparison.first
    means = [np.where(np.isfinite(m.gaps(j)).all(0), m.gaps(j).mean(0), np.nan) for m in comparison.methods]
    known = np.concatenate([x[np.isfinite(x)] for x in means])
    norm = Normalize(min(0.0, known.min(initial=0.0)), max(known.max(initial=0.0), 1e-9))
    plane = first.grid_shape is not None and len(first.grid_shape) in (2, 3)
    maps: list[dict[str, Any]] = []
    lines: list[dict[str, Any]]
    for method, mean in zip(comparison.methods, means, strict=True):
        cells = [
            _map_cell(comparison, method.errors(j), mean, m, norm, method.gaps(j)) for m in range(len(mean))
        ]
        levels = np.unique(first.psi[:, 2]) if plane and first.psi.shape[1] == 3 else [None]
        for z in levels:
            title = method.name + (
                "" if z is None else f", {first.task_names[2]} {z:.3g} {first.task_units[2]}"
            )
            if not plane:
                chunks = [range(i, min(i + 10, len(cells))) for i in range(0, len(cells), 10)]
                lines = [
                    {"label": f"{c[0] + 1} to {c[-1] + 1}", "cells": [cells[m] for m in c]} for c in chunks
                ]
                maps.append({"title": title, "lines": lines, "columns": []})
                continue
            xs, ys = np.unique(first.psi[:, 0].round(6)), np.unique(first.psi[:, 1].round(6))
            places: dict[tuple[float, float], Any] = {}
            for m, psi in enumerate(first.psi):
                if z is None or np.isclose(psi[2], z):
                    places[psi[0].round(6), psi[1].round(6)] = cells[m]
            lines = [{"label": f"{y:.3g}", "cells": [places.get((x, y)) for x in xs]} for y in reversed(ys)]
            maps.append({"title": title, "lines": lines, "columns": [f"{x:.3g}" for x in xs]})
    axes = (
        f"across: {first.task_names[0]} ({first.task_units[0]}); up: {first.task_names[1]} ({first.task_units[1]})"
        if plane
        else "tasks in the order of the list"
    )
    return {"n": int(first.num_samples[j]), "maps": maps, "axes": axes}


def _map_cell(
    comparison: Comparison, error: np.ndarray, mean: np.ndarray, m: int, norm: Normalize, gaps: np.ndarray
) -> dict[str, Any]:
    first = comparison.first
    psi = first.psi[m]
    lines = [f"task {m + 1}"]
    if len(psi) <= 3:
        lines += [
            f"{n} = {x:.4g} {u}" for n, x, u in zip(first.task_names, psi, first.task_units, strict=True)
        ]
    if not math.isfinite(mean[m]):
        return {"missing": True, "tip": "\n".join([*lines, "missing"])}
    value = f"gap {mean[m]:.1f} ± " + (f"{error[m]:.1f}" if math.isfinite(error[m]) else "?")
    runs = "runs: " + ", ".join(f"{g:.1f}" for g in gaps[:, m])
    lines += [value, runs, f"A* {first.optimal_return[m]:.1f} ({first.optimal_source[m]})"]
    share = float(norm(mean[m]))
    colour = to_hex(colormaps[COLOURS](share))
    return {
        "missing": False,
        "colour": colour,
        "ink": "#fff" if share > 0.55 else "#000",
        "text": f"{mean[m]:z.0f}",
        "tip": "\n".join(lines),
    }
