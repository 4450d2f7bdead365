"""The rows of a comparison as tables: summaries, pairs, cells, provenance, as text and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from admrl.evaluation.gap_table import GapTable, corrected_worst
from admrl.number_text import number, to_error
from admrl.reports.comparison import Comparison, Method
from admrl.reports.statistics import (
    STATISTICS,
    Interval,
    interval,
    jackknife_interval,
    paired_difference,
    probability_of_improvement,
)

Row = dict[str, Any]
PART_STATISTICS = {"optimisation": ("mean",), "model": ("mean", "worst")}
"""What is said of the parts of the gaps."""


def summary_rows(comparison: Comparison) -> list[Row]:
    """Per method, n and statistic of the gap: value and 95 % interval."""
    rows = []
    for method in comparison.methods:
        for j, n in enumerate(comparison.first.num_samples):
            keep = comparison.complete(j)
            if not keep.any():
                continue
            gaps, num = method.gaps_by_seed(j)[..., keep], int(keep.sum())
            for name, statistic in STATISTICS.items():
                rows.append(_summary(method, n, f"{name} gap", interval(gaps, statistic), num))
            corrected = jackknife_interval(gaps, lambda x: corrected_worst(x).mean(-1))
            if math.isfinite(corrected.value):
                rows.append(_summary(method, n, "worst gap, corrected", corrected, num))
            answer = interval(method.returns(j)[..., keep], STATISTICS["mean"])
            rows.append(_summary(method, n, "mean return", answer, num))
    for part, chosen in PART_STATISTICS.items() if comparison.is_decomposed else ():
        of_part = comparison.part(part)
        for method in of_part.methods:
            for j, n in enumerate(comparison.first.num_samples):
                keep = of_part.complete(j)
                if not keep.any():
                    continue
                gaps = method.gaps_by_seed(j)[..., keep]
                for name in chosen:
                    answer = interval(gaps, STATISTICS[name])
                    rows.append(_summary(method, n, f"{name} {part} part", answer, int(keep.sum())))
    return rows


def _summary(method: Method, n: int, statistic: str, answer: Interval, num_tasks: int) -> Row:
    return {
        "method": method.name,
        "n": int(n),
        "statistic": statistic,
        "value": answer.value,
        "low": answer.low,
        "high": answer.high,
        "seeds": len(method.tables),
        "policy seeds": len(method.tables[0].episode_return),
        "tasks": num_tasks,
    }


def paired_rows(comparison: Comparison) -> list[Row]:
    """Every pair of methods, per n and statistic: difference of gaps paired by seed (negative: the first wins).

    None where the methods were trained with different seeds.
    """
    if not comparison.paired_seeds:
        return []
    rows = _paired(comparison, "gap", tuple(STATISTICS))
    if comparison.is_decomposed:  # optimisers differ little: what tasks are good for is the model's part
        rows += _paired(comparison.part("model"), "model part", PART_STATISTICS["model"])
    return rows


def _paired(comparison: Comparison, what: str, statistics: Sequence[str]) -> list[Row]:
    """`paired_rows` of gaps, or of a part of them."""
    rows = []
    for a, b in itertools.combinations(comparison.methods, 2):
        for j, n in enumerate(comparison.first.num_samples):
            keep = comparison.complete(j)
            if not keep.any():
                continue
            x, y = a.gaps_by_seed(j)[..., keep], b.gaps_by_seed(j)[..., keep]
            better = probability_of_improvement(-x.mean(1), -y.mean(1))
            for name in statistics:
                answer = paired_difference(x, y, STATISTICS[name])
                rows.append(
                    {
                        "methods": f"{a.name} - {b.name}",
                        "n": int(n),
                        "statistic": f"{name} {what}",
                        "difference": answer.interval.value,
                        "low": answer.interval.low,
                        "high": answer.interval.high,
                        "p (paired t)": answer.p_value,
                        "P(first has the smaller gap)": better,
                        "seeds": len(x),
                    }
                )
    return rows


def cell_rows(comparison: Comparison) -> list[Row]:
    """Every cell: method, training seed, task and n."""
    rows = []
    for method in comparison.methods:
        for seed, t in zip(method.seeds, method.tables, strict=True):
            for j, n in enumerate(t.num_samples):
                gap, error, mean = t.mean_gap(j), t.standard_error(j), t.adapted_return[:, :, j].mean(0)
                parts = {} if t.oracle_return is None or not comparison.is_decomposed else _parts(t, j)
                for m, psi in enumerate(t.psi):
                    row: Row = {"method": method.name, "seed": seed, "n": int(n), "task": m + 1}
                    row |= {name: float(x) for name, x in zip(t.task_names, psi, strict=True)}
                    row |= {
                        "gap": float(gap[m]),
                        "standard error": float(error[m]),
                        "return": float(mean[m]),
                        "A*": float(t.optimal_return[m]),
                        "A* from": t.optimal_source[m],
                        "model error": math.nan if t.model_error is None else float(t.model_error[m]),
                    }
                    row |= {name: float(values[m]) for name, values in parts.items()}
                    rows.append(row)
    return rows


def _parts(table: GapTable, j: int) -> dict[str, np.ndarray]:
    """Columns (M,): both parts of the gaps of a table, with their standard errors."""
    columns = dict[str, np.ndarray]()
    for name in PART_STATISTICS:
        part = table.part(name)
        columns |= {f"{name} part": part.mean_gap(j), f"{name} part error": part.standard_error(j)}
    return columns


def provenance_rows(comparison: Comparison) -> list[Row]:
    """Per run: seeds, budgets, versions, commits, A*."""
    rows = []
    for method in comparison.methods:
        for t in method.tables:
            p = t.provenance
            versions, trained = p.versions or {}, p.training_versions or {}
            samples, reference = p.samples or {}, p.reference or {}
            scored = samples.get("scoring", [p.scoring_real_samples])[-1]
            rows.append(
                {
                    "method": method.name,
                    "run": _shown(p.run),
                    "preset": _shown(p.preset),
                    "may see of a task": p.sees or "not recorded",
                    "training seed": _shown(p.seed),
                    "evaluation seed": _shown(p.evaluation_seed),
                    "policy seeds": len(t.episode_return),
                    "training real samples": _shown(p.training_real_samples),
                    "training virtual samples": _shown(p.training_virtual_samples),
                    "adaptation samples": _shown(samples.get("adaptation", [None])[-1]),
                    "of these held out": _shown(samples.get("held_out", [None])[-1]),
                    "scoring samples": _shown(scored),
                    "evaluation virtual samples": _shown(p.evaluation_virtual_samples),
                    "oracle training samples": _shown(p.oracle_training_samples),
                    "oracle scoring samples": _shown(p.oracle_scoring_samples),
                    "A*": reference.get("kind", ""),
                    "A* digest": reference.get("digest", ""),
                    "A* real samples": _shown(p.reference_real_samples),
                    "commit, evaluation": versions.get("commit", "unknown"),
                    "commit, training": trained.get("commit", "unknown"),
                    **{k: v for k, v in versions.items() if k != "commit"},
                }
            )
    return rows


def _shown(value: object) -> object:
    """What is not known stays empty."""
    return "" if value is None else value


TOGETHER = (  # columns with the same digits: an estimate, its interval, its error
    ("value", "low", "high", "stratified low", "stratified high"),
    ("difference", "low", "high"),
    ("gap", "standard error"),
    ("optimisation part", "optimisation part error"),
    ("model part", "model part error"),
    ("return",),
    ("A*",),
)
UNKNOWN = "\u2013"


def texts(row: Row) -> dict[str, str]:
    """A row as people read it: numbers have the digits that their standard error leaves them, or four."""
    shown = {name: number(x) if isinstance(x, float) else str(x) for name, x in row.items()}
    error = row.get("standard error", (row.get("high", math.nan) - row.get("low", math.nan)) / 4)
    for names in TOGETHER:
        if isinstance(row.get(names[0]), float):
            present = [name for name in names if name in row]
            shown |= zip(present, to_error([row[name] for name in present], error), strict=True)
    missing = {k: UNKNOWN for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return shown | missing


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV, every number as exactly as it is; missing ones are empty."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        missing = {k: "" for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        writer.writerow({k: repr(float(v)) if isinstance(v, float) else v for k, v in row.items()} | missing)
    return text.getvalue()
