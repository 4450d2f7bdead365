"""What a finished or interrupted training left in its folder, for figures: metrics and one record per task."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from admrl.runs.config_file import GAP_MAP, TASKS, read_config
from admrl.storage.files import parse_json, plain_number

METRICS_FILE = "metrics.csv"


@dataclass(frozen=True, eq=False)
class RunRecords:
    """One training run."""

    selector: str
    seed: int
    tasks: list[dict[str, Any]]  # see `admrl.training.state.TaskRecord`
    metrics: dict[str, np.ndarray]  # (rows,) each; nan where a row does not have it
    gap_map: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(Z, k + 7) rows of gap_map.csv (`admrl.training.gap_map`), nan where one is not known; none in older runs."""

    @property
    def psi(self) -> np.ndarray:
        """(n, k) tasks in order."""
        return np.array([t["psi"] for t in self.tasks], dtype=float)

    @property
    def gradients(self) -> np.ndarray:
        """(n, k) total task gradients per task parameter; nan where there was none."""
        missing = [math.nan] * self.psi.shape[1]
        found = [(t.get("gradient") or {}).get("total") or missing for t in self.tasks]
        return np.array(found, dtype=float)

    @property
    def split_half(self) -> np.ndarray:
        """(n,) cosine of the gradients of two halves of the data; nan where there was none."""
        values = [t.get("split_half_cosine") for t in self.tasks]
        return np.array([math.nan if v is None else v for v in values], dtype=float)


def read_records(path: Path) -> RunRecords:
    """The records of a run folder.

    Raises:
        ValueError: not a run folder, no finished task, or a damaged file; names it.
    """
    config = read_config(path)
    file = path / TASKS
    if not file.is_file():
        raise ValueError(f"{path}: the run has not finished its first task; there is nothing to compare yet")
    try:
        tasks = [dict(t) for t in parse_json(file.read_bytes())]
        for i, task in enumerate(tasks, start=1):
            for x in task["psi"]:
                plain_number(x, f"psi of task {i}")
        metrics = _columns(path / METRICS_FILE)
        gap_map = _rows(path / GAP_MAP)
        records = RunRecords(str(config["selector"]), int(config["seed"]), tasks, metrics, gap_map)
        for numbers in ("psi", "gradients", "split_half"):
            getattr(records, numbers)  # a damaged one says so here, not in the middle of a report
        return records
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: damaged records ({error})") from error


def _rows(file: Path) -> np.ndarray:
    """The numbers of a csv file below its header (Z, columns); none if there is no file."""
    if not file.is_file():
        return np.zeros((0, 0))
    with open(file, newline="", encoding="utf-8-sig") as opened:
        header, *rows = csv.reader(opened)
    numbers = [[float(cell) if cell else math.nan for cell in row] for row in rows]
    return np.array(numbers).reshape(len(rows), len(header))


def _columns(file: Path) -> dict[str, np.ndarray]:
    """The numeric columns of a metrics file; none if there is no file."""
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.DictReader(opened))
    names = [name for name in (rows[0] if rows else {}) if name != "phase"]
    return {n: np.array([float(row[n]) if row.get(n) else math.nan for row in rows]) for n in names}
