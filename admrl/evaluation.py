"""Sub-optimality gaps over a set of tasks: G_n(psi) = A*(psi) - A_n(psi), AdMRL section 5.

A_n(psi) is the undiscounted real return for psi after n real adaptation samples, averaged over episodes, for R
policy seeds (`admrl.protocol`). A*(psi) is the best return that any candidate reached (`admrl.reference`). The best
candidate is chosen on one half of the episodes and scored on the other (`best_known_returns`), so that choosing the
luckiest does not raise A*. Gaps may be negative: A* was weak.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import Solution, episode_returns, real_rollout
from admrl.config import EvaluationConfig, check_lanes
from admrl.files import DamagedFileError, parse_json, write_text
from admrl.search.objective import Objective, scaled_gap
from admrl.test_sets import unit_keys
from task_families.family import TaskFamily
from task_families.rollout import Rollout

NUM_FOLDS = 4  # of the episodes, in `best_known_returns`
FORMATS = ("admrl gap table 2", "admrl gap table 1")  # the first one is written


@dataclass(frozen=True)
class WorstCase:
    """The task with the largest mean gap."""

    task: int
    gap: float
    standard_error: float
    corrected: float
    """Gap of the task that is worst for one half of the policy seeds, measured on the other half, averaged over
    both ways round; nan with a single seed. `gap` is the maximum of noisy means and too large as an estimate of
    the true worst case; `corrected` is unbiased for the task that was chosen, which may not be the worst one, and
    so too small. The truth lies between, in expectation."""


@dataclass(frozen=True, eq=False)
class GapTable:
    """Returns and gaps of one method on M tasks; saved as one JSON file. Missing values are nan."""

    method: str
    family: str
    variant: str
    task_names: tuple[str, ...]
    task_units: tuple[str, ...]
    psi: np.ndarray  # (M, k)
    num_samples: np.ndarray  # (J,) real adaptation samples n of A_n per task, the held-out ones included
    episode_return: np.ndarray  # (R, M, J, N) undiscounted, R policy seeds, N episodes
    optimal_return: np.ndarray  # (M,) A*
    optimal_source: tuple[str, ...]  # (M,) which candidate gave it
    grid_shape: tuple[int, ...] | None = None
    visited_psi: np.ndarray | None = None  # (n_tasks, k) tasks of the training, in order
    provenance: dict[str, Any] = field(default_factory=dict)  # versions, seeds, sample counts
    test_set: str = ""  # name of the set of tasks
    box: np.ndarray | None = None  # (2, k) low and high ends of the training box
    model_error: np.ndarray | None = None  # (M,) see `admrl.protocol.model_errors`

    @property
    def adapted_return(self) -> np.ndarray:
        """A_n: (R, M, J), mean over episodes."""
        return self.episode_return.mean(-1)

    @property
    def gap(self) -> np.ndarray:
        """G_n = A* - A_n: (R, M, J). Never clamped."""
        return self.optimal_return[None, :, None] - self.adapted_return

    def num_missing(self, j: int = 0) -> int:
        """Tasks without a mean gap: a policy's simulation broke down, or there is no reference."""
        return int(np.isnan(self.mean_gap(j)).sum())

    def mean_gap(self, j: int = 0) -> np.ndarray:
        """(M,) mean over policy seeds."""
        return self.gap[:, :, j].mean(0)

    def standard_error(self, j: int = 0) -> np.ndarray:
        """(M,) standard error of `mean_gap` over policy seeds (A* is common to them); nan with one seed."""
        num_seeds = len(self.gap)
        if num_seeds < 2:
            return np.full(self.gap.shape[1], np.nan)
        return self.gap[:, :, j].std(0, ddof=1) / math.sqrt(num_seeds)

    def worst(self, j: int = 0) -> WorstCase:
        """The worst-case gap G_n^max over the tasks whose gap is known (see `num_missing`).

        Raises:
            ValueError: no gap is known.
        """
        mean, gap = self.mean_gap(j), self.gap[:, :, j]
        if np.isnan(mean).all():
            raise ValueError(f"{self.method}: no task has a gap, all returns are missing")
        task = int(np.nanargmax(mean))
        corrected = math.nan
        if len(gap) >= 2:
            first, second = gap[::2].mean(0), gap[1::2].mean(0)
            first, second = np.where(np.isnan(mean), np.nan, first), np.where(np.isnan(mean), np.nan, second)
            corrected = float((second[np.nanargmax(first)] + first[np.nanargmax(second)]) / 2)
        return WorstCase(task, float(mean[task]), float(self.standard_error(j)[task]), corrected)

    def average(self, j: int = 0) -> tuple[float, float]:
        """Mean gap over the tasks whose gap is known, and its standard error over policy seeds."""
        known = ~np.isnan(self.mean_gap(j))
        per_seed = self.gap[:, known, j].mean(axis=1)  # (R,)
        error = per_seed.std(ddof=1) / math.sqrt(len(per_seed)) if len(per_seed) > 1 else math.nan
        return float(per_seed.mean()), float(error)

    def objective(self, objective: Objective, j: int = 0, *, scale: str = "absolute") -> tuple[float, float]:
        """An objective of the mean gaps over the tasks whose gap is known, and its jackknife standard error over
        policy seeds (nan with one). Like `worst`, it is too large where it picks from noisy gaps.

        Args:
            scale: absolute, or ratio: (A* - A) / |A*|.

        Raises:
            ValueError: no gap is known, or an unknown scale.
        """
        known = ~np.isnan(self.mean_gap(j))
        if not known.any():
            raise ValueError(f"{self.method}: no task has a gap, all returns are missing")
        optimal, adapted = self.optimal_return[known], self.adapted_return[:, known, j]
        gap = scaled_gap(torch.from_numpy(optimal), torch.from_numpy(adapted), scale)  # (R, M)
        num = len(gap)
        left_out = [float(objective.value(gap[np.arange(num) != r].mean(0))) for r in range(num) if num > 1]
        error = math.sqrt((num - 1) * float(np.var(left_out))) if num > 1 else math.nan
        return float(objective.value(gap.mean(0))), error

    def save(self, path: Path | str) -> None:
        """Write the table atomically."""
        data = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
        write_text(Path(path), json.dumps({"format": FORMATS[0], **_nan_to_none(data)}, indent=1))

    @classmethod
    def load(cls, path: Path | str) -> GapTable:
        """Read a table.

        Raises:
            DamagedFileError: the file is not a gap table; names the file.
        """
        try:
            data = parse_json(Path(path).read_bytes())
            found = data.pop("format", None) if isinstance(data, dict) else None
            if found not in FORMATS:
                raise ValueError(f"unknown format {found!r:.40}")
            return cls(**_table_fields(data))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            raise DamagedFileError(
                f"{path}: not a gap table ({error!s:.200}); `admrl evaluate` writes them"
            ) from error


def _table_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a table from plain data, each checked; None is nan."""
    psi, num_samples = _array(data, "psi", 2), _array(data, "num_samples", 1)
    returns, optimal = _array(data, "episode_return", 4), _array(data, "optimal_return", 1)
    num_tasks, size = psi.shape
    if returns.shape[1:3] != (num_tasks, len(num_samples)) or optimal.shape != (num_tasks,):
        raise ValueError(f"returns do not match {num_tasks} tasks and {len(num_samples)} sample counts")
    if 0 in returns.shape or size == 0:
        raise ValueError("expected at least one task, policy seed and episode")
    if not (np.isfinite(psi).all() and np.isfinite(num_samples).all()):
        raise ValueError("psi, num_samples: expected finite numbers")
    checked: dict[str, Any] = {
        "psi": psi,
        "num_samples": num_samples.astype(int),
        "episode_return": returns,
        "optimal_return": optimal,
        "grid_shape": _grid_shape(data["grid_shape"], num_tasks),
    }
    shapes = {"visited_psi": (None, size), "box": (2, size), "model_error": (num_tasks,)}
    for name, shape in shapes.items():
        if data.get(name) is None:
            continue
        checked[name] = array = _array(data, name, len(shape))
        if any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    for name in ("method", "family", "variant", "test_set"):
        if not isinstance(data.get(name, ""), str):
            raise ValueError(f"{name}: expected text")
    for name, count in (("task_names", size), ("task_units", size), ("optimal_source", num_tasks)):
        texts = data[name]
        if not isinstance(texts, list) or len(texts) != count or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{name}: expected {count} texts")
        checked[name] = tuple(texts)
    if not isinstance(data["provenance"], dict):
        raise ValueError("provenance: expected an object")
    return data | checked


def _grid_shape(grid: Any, num_tasks: int) -> tuple[int, ...] | None:
    """Cells per axis; a grid may have holes."""
    if grid is None:
        return None
    counts = isinstance(grid, list) and all(type(n) is int and 0 < n <= num_tasks for n in grid)
    if not counts or math.prod(grid) < num_tasks:
        raise ValueError(f"grid_shape: expected a grid of {num_tasks} tasks, got {grid!r:.60}")
    return tuple(grid)


def _array(data: dict[str, Any], name: str, num_axes: int) -> np.ndarray:
    """Numbers (None is nan) with so many axes, below 1e15 in size."""
    try:
        array = np.array(data[name], dtype=float)
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers, rows of equal length") from error
    if array.ndim != num_axes or bool((np.abs(array) > 1e15).any()):
        raise ValueError(f"{name}: expected {num_axes} axes of numbers of sensible size")
    return array


@dataclass(frozen=True, eq=False)
class Score:
    """What M policies did in the simulator."""

    returns: np.ndarray  # (M, N) undiscounted
    rollout: Rollout


def score(
    family: TaskFamily,
    solution: Solution,
    num_episodes: int,
    seed: int,
    *,
    num_threads: int = 1,
) -> Score:
    """The stochastic policies in the simulator, an episode per lane.

    Start states and noise depend on seed and task alone, the same for every method and policy seed. A simulation
    that becomes unstable makes its return nan.
    """
    generators = task_generators(seed + 2, 1, family.box.to_unit(solution.psi))
    rollout = real_rollout(family, solution, num_episodes, generators, num_threads=num_threads)
    return Score(episode_returns(family, solution.psi, rollout).double().numpy(), rollout)


def best_known_returns(candidates: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A* (M,) and where each value comes from.

    Cross-fitted: the episodes are dealt into four folds; the policy that counts in a fold is the best one of the
    other three. So the luck of the choice is not counted, and A* covers the same start states as every A_n. (Two
    halves are not enough to choose by: a policy that rarely falls may not do so in one of them.)

    Args:
        candidates: name -> episodes (R, M, N) with N >= 2. Every policy seed is a candidate of its own.
    """
    names = [name for name, episodes in candidates.items() for _ in episodes]
    pool = np.concatenate(list(candidates.values()))  # (C, M, N)
    num_tasks, num_episodes = pool.shape[1:]
    tasks, broken = np.arange(num_tasks), np.isnan(pool).any(-1)
    folds = np.arange(num_episodes) % min(NUM_FOLDS, num_episodes)
    counted = np.empty((num_tasks, num_episodes))
    chosen = np.empty((num_tasks, num_episodes), dtype=int)
    for fold in np.unique(folds):
        here = folds == fold
        # a policy that broke down in any episode is never best
        best = np.where(broken, -np.inf, pool[:, :, ~here].mean(-1)).argmax(0)  # (M,)
        chosen[:, here] = best[:, None]
        counted[:, here] = pool[best, tasks][:, here]
    source = tuple(" / ".join(dict.fromkeys(names[c] for c in sorted(set(row)))) for row in chosen.tolist())
    return counted.mean(-1), source


def task_generators(seed: int, policy_seeds: int | Sequence[int], unit: Tensor) -> list[torch.Generator]:
    """One generator per (policy seed, task), seed-major.

    Args:
        policy_seeds: their number, or which ones.
        unit: tasks (M, k) in unit coordinates. A task has the same generators wherever it stands in a grid.
    """
    keys = [[x % 2**32 for x in key] for key in unit_keys(unit)]
    return [
        torch.Generator().manual_seed(
            int(np.random.SeedSequence([seed, r, *key]).generate_state(1, np.uint64)[0] >> 1)
        )
        for r in (range(policy_seeds) if isinstance(policy_seeds, int) else policy_seeds)
        for key in keys
    ]


def check_evaluation(config: EvaluationConfig, family: TaskFamily, num_members: int) -> None:
    """Refuse impossible sample counts before any work; see `check_lanes`."""
    check_lanes("config.num_samples", config.num_samples, family.horizon, num_members)
    check_lanes("config.num_reference_samples", config.num_reference_samples, family.horizon)
    check_lanes("config.num_stage_samples", config.num_stage_samples, family.horizon)
    if config.num_episodes < 2:
        raise ValueError("config.num_episodes: expected at least 2 (A* is chosen on one half), got 1")


def _nan_to_none(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {k: _nan_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
