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

from admrl.evaluation.gap_table import GapTable
from admrl.number_text import Scale, counted, distinct, number, to_error, with_error
from admrl.reports.comparison import Comparison, Method
from admrl.reports.heatmap import colour_scale, levels, nearest
from admrl.reports.rows import Row, texts
from admrl.reports.style import COLOURS, axis_label
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
    first = comparison.first
    names = ", ".join(m.name for m in comparison.methods)
    return environment.get_template("report.html.j2").render(
        title=f"{first.family}: {names}",
        family=first.family,
        subtitle=(
            f"{counted(len(first.psi), 'test task')} ({first.test_set or 'unnamed'}), variant {first.variant}; "
            f"{counted(len(first.episode_return), 'policy seed')} a task, "
            f"{counted(first.episode_return.shape[-1], 'episode')} each"
        ),
        methods=[
            {"name": m.name, "seeds": f"training seeds {', '.join(map(str, m.seeds))}"}
            for m in comparison.methods
        ],
        notes=comparison.notes(),
        summary=_rows(summary),
        paired=_rows(paired),
        cells=_rows(cells),
        provenance=_rows(provenance),
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


def _rows(rows: Sequence[Row]) -> list[list[dict[str, str | None]]]:
    """Cells as they are shown, with what they are sorted by: a number, "" if it is missing, None for a text."""
    return [
        [{"name": name, "text": text, "value": _value(row[name])} for name, text in texts(row).items()]
        for row in rows
    ]


def _value(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    return repr(float(value)) if math.isfinite(value) else ""


def _map_group(comparison: Comparison, j: int) -> dict[str, Any]:
    """The maps of one sample count: tasks by their first two coordinates, or one line of tasks."""
    first = comparison.first
    means = [np.where(np.isfinite(m.gaps(j)).all(0), m.gaps(j).mean(0), np.nan) for m in comparison.methods]
    gaps, errors = np.concatenate(means), np.concatenate([m.errors(j) for m in comparison.methods])
    scale, norm = Scale.of(gaps.tolist(), errors.tolist()), colour_scale(gaps)
    plane = first.grid_shape is not None and len(first.grid_shape) in (2, 3)
    maps: list[dict[str, Any]] = []
    for method, mean in zip(comparison.methods, means, strict=True):
        cells = [_map_cell(method, j, float(mean[m]), m, scale, norm) for m in range(len(mean))]
        maps += _plane_maps(first, method.name, cells) if plane else [_list_map(method.name, cells)]
    axes = (
        f"across: {axis_label(first, 0)}; up: {axis_label(first, 1)}"
        if plane
        else "tasks in the order of the list"
    )
    return {"n": int(first.num_samples[j]), "maps": maps, "axes": axes, "unit": scale.label("gap")}


def _list_map(title: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    chunks = [range(i, min(i + 10, len(cells))) for i in range(0, len(cells), 10)]
    lines = [{"label": f"{c[0] + 1} to {c[-1] + 1}", "cells": [cells[m] for m in c]} for c in chunks]
    return {"title": title, "slice": "", "lines": lines, "columns": []}


def _plane_maps(first: GapTable, title: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A map for every value of the third coordinate, or one."""
    xs, ys = levels(first.psi[:, 0]), levels(first.psi[:, 1])
    ix, iy = nearest(first.psi[:, 0], xs), nearest(first.psi[:, 1], ys)
    zs = levels(first.psi[:, 2]) if first.psi.shape[1] == 3 else np.zeros(1)
    iz = nearest(first.psi[:, 2], zs) if len(zs) > 1 else np.zeros(len(cells), int)
    columns, rows, slices = distinct(xs), distinct(ys), distinct(zs)
    maps = []
    for z, level in enumerate(slices):
        places = {(ix[m], iy[m]): cells[m] for m in range(len(cells)) if iz[m] == z}
        lines = [
            {"label": rows[y], "cells": [places.get((x, y)) for x in range(len(xs))]}
            for y in reversed(range(len(ys)))
        ]
        where = f"{first.task_names[2]} {level} {first.task_units[2]}" if first.psi.shape[1] == 3 else ""
        maps.append({"title": title, "slice": where, "lines": lines, "columns": columns})
    return maps


def _map_cell(method: Method, j: int, mean: float, m: int, scale: Scale, norm: Normalize) -> dict[str, Any]:
    first = method.tables[0]
    psi = first.psi[m]
    lines = [f"task {m + 1}"]
    if len(psi) <= 3:
        lines += [
            f"{n} = {number(float(x))} {u}"
            for n, x, u in zip(first.task_names, psi, first.task_units, strict=True)
        ]
    if not math.isfinite(mean):
        return {"missing": True, "tip": "\n".join([*lines, "missing"])}
    error = float(method.errors(j)[m])
    runs = ", ".join(to_error(method.gaps(j)[:, m].tolist(), error))
    best = to_error([float(first.optimal_return[m])], error)[0]
    lines += [f"gap {with_error(mean, error)}", f"runs: {runs}", f"A* {best} ({first.optimal_source[m]})"]
    share = float(norm(mean))
    return {
        "missing": False,
        "colour": to_hex(colormaps[COLOURS](share)),
        "ink": "#fff" if share > 0.55 else "#000",
        "text": scale.pair(mean, error)[0],
        "tip": "\n".join(lines),
    }
