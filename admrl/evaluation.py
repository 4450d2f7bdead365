"""Sub-optimality gaps over a set of tasks: G_0(psi) = A*(psi) - A_0(psi), AdMRL section 5.

A_0(psi) is the undiscounted real return of the zero-shot policy for psi, averaged over episodes, for R policy seeds.
A*(psi) is the best return that any candidate reached: every method's zero-shot policies and a reference run
(SLBO on all tasks of the set, together, with all data). The best candidate is chosen on one half of the episodes
and scored on the other (`best_known_returns`), so that choosing the luckiest does not raise A*. Gaps may be
negative: A* was weak.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import episode_returns, real_rollout, slbo_adapt
from admrl.config import EvaluationConfig, SlboConfig, VirtualTrainingConfig, check_lanes, evaluation_virtual
from admrl.evaluation_store import EvaluationStore, NoStore, Place
from admrl.files import DamagedFileError, parse_json, write_text
from admrl.health import fit_or_restore
from admrl.reporting import Reporter, Silent
from admrl.virtual_training import Solution, new_solution, virtual_training
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily


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
    num_samples: np.ndarray  # (J,) real adaptation samples n of A_n; only n = 0 so far
    episode_return: np.ndarray  # (R, M, J, N) undiscounted, R policy seeds, N episodes
    optimal_return: np.ndarray  # (M,) A*
    optimal_source: tuple[str, ...]  # (M,) which candidate gave it
    grid_shape: tuple[int, ...] | None = None
    visited_psi: np.ndarray | None = None  # (n_tasks, k) tasks of the training, in order
    provenance: dict[str, Any] = field(default_factory=dict)  # versions, seeds, sample counts

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

    def save(self, path: Path | str) -> None:
        """Write the table atomically."""
        data = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
        write_text(Path(path), json.dumps({"format": "admrl gap table 1", **_nan_to_none(data)}, indent=1))

    @classmethod
    def load(cls, path: Path | str) -> GapTable:
        """Read a table.

        Raises:
            ValueError: the file is not a gap table; names the file.
        """
        try:
            data = parse_json(Path(path).read_bytes())
            if not isinstance(data, dict) or data.pop("format", None) != "admrl gap table 1":
                raise ValueError("unknown format")
            table = cls(**_table_fields(data))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            raise DamagedFileError(
                f"{path}: not a gap table ({error!s:.200}); `admrl evaluate` writes them"
            ) from error
        return table


def _table_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a table from plain data, each checked; None is nan."""
    psi = _array(data, "psi", 2)
    num_tasks, size = psi.shape
    num_samples = _array(data, "num_samples", 1)
    returns, optimal = _array(data, "episode_return", 4), _array(data, "optimal_return", 1)
    if returns.shape[1:3] != (num_tasks, len(num_samples)) or optimal.shape != (num_tasks,):
        raise ValueError(f"returns do not match {num_tasks} tasks and {len(num_samples)} sample counts")
    if 0 in returns.shape or size == 0:
        raise ValueError("expected at least one task, policy seed and episode")
    if not (np.isfinite(psi).all() and np.isfinite(num_samples).all()):
        raise ValueError("psi, num_samples: expected finite numbers")
    grid = data["grid_shape"]
    if grid is not None:
        grid = tuple(grid)
        if not all(type(n) is int and n > 0 for n in grid) or math.prod(grid) != num_tasks:
            raise ValueError(f"grid_shape: expected a grid of {num_tasks} tasks, got {grid}")
    visited = None if data["visited_psi"] is None else _array(data, "visited_psi", 2)
    if visited is not None and visited.shape[1] != size:
        raise ValueError(f"visited_psi: expected {size} task parameters")
    if not isinstance(data["provenance"], dict):
        raise ValueError("provenance: expected an object")
    checked = {
        "psi": psi,
        "num_samples": num_samples.astype(int),
        "episode_return": returns,
        "optimal_return": optimal,
        "grid_shape": grid,
        "visited_psi": visited,
    }
    for name in ("method", "family", "variant"):
        if not isinstance(data[name], str):
            raise ValueError(f"{name}: expected text")
    for name, count in (("task_names", size), ("task_units", size), ("optimal_source", num_tasks)):
        texts = data[name]
        if not isinstance(texts, list) or len(texts) != count or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{name}: expected {count} texts")
        checked[name] = tuple(texts)
    return data | checked


def _array(data: dict[str, Any], name: str, num_axes: int) -> np.ndarray:
    """Numbers (None is nan) with so many axes, below 1e15 in size."""
    try:
        array = np.array(data[name], dtype=float)
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers, rows of equal length") from error
    if array.ndim != num_axes or bool((np.abs(array) > 1e15).any()):
        raise ValueError(f"{name}: expected {num_axes} axes of numbers of sensible size")
    return array


def zero_shot_returns(
    family: TaskFamily,
    learner: ModelLearner,
    policy: GaussianPolicy,
    psi: Tensor,
    virtual: VirtualTrainingConfig,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    store: EvaluationStore | None = None,
) -> np.ndarray:
    """A_0 on M tasks, all tasks and policy seeds in one batched virtual training: episodes (R, M, N).

    The model is frozen. Initial policies, initial states and noise depend on seed, task and policy seed alone,
    so every method is given the same.

    Args:
        store: keeps what is done, so that an interrupted evaluation goes on from there.
    """
    reporter, store = reporter or Silent(), store or NoStore()
    if (done := store.finished()) is not None:
        return done
    rows = family.box.check(psi).repeat(config.num_policy_seeds, 1)  # (R M, k), seed-major
    reporter.phase(f"zero-shot, {len(rows)} policies", config.num_updates)
    generators = task_generators(seed, config.num_policy_seeds, family.box.to_unit(psi))
    dtype = learner.model.weights[0].dtype
    place = store.restore(family, policy, virtual.value, len(rows), generators, dtype)
    solution = virtual_training(
        family,
        learner.model,
        place.solution if place else new_solution(learner.model, rows, policy, virtual, generators),
        1,
        evaluation_virtual(virtual, config),
        generators,
        reporter=reporter,
        num_done=place.num_done if place else 0,
        on_step=store.keep("zero-shot", generators),
    )
    returns = score(family, solution, config.num_episodes, seed, num_threads=num_threads)
    episodes = returns.reshape(config.num_policy_seeds, len(psi), config.num_episodes)
    store.finish(episodes)
    return episodes


def reference_returns(
    family: TaskFamily,
    learners: Sequence[ModelLearner],
    policy: GaussianPolicy,
    psi: Tensor,
    virtual: VirtualTrainingConfig,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    store: EvaluationStore | None = None,
) -> np.ndarray:
    """Returns of a reference run on M tasks: episodes (1, M, N).

    One model is fine-tuned on the data of all learners; then SLBO runs on all tasks together, pooling their
    real samples. It sees far more real data of the tasks than any method that is evaluated.

    Args:
        store: see `zero_shot_returns`.
    """
    reporter, store = reporter or Silent(), store or NoStore()
    if (done := store.finished()) is not None:
        return done
    generators = task_generators(seed + 1, 1, family.box.to_unit(psi))
    learner = learners[0].fork([torch.Generator().manual_seed(seed + 1)])
    for other in learners[1:]:
        learner.data[0].extend(other.data[0])
        fit = ~other.data[0].is_held_out
        learner.model.update_normalizers(other.data[0].obs[fit], other.data[0].next_obs[fit])
    num_rows, dtype = len(learner.data[0]), learner.model.weights[0].dtype
    place = store.restore(family, policy, virtual.value, len(psi), generators, dtype, learner)
    if place is None:
        fit_or_restore(learner, 10 * virtual.num_model_steps, reporter)
        solution = new_solution(learner.model, family.box.check(psi), policy, virtual, generators)
        place = Place("zero-shot", 0, solution)
    if place.phase == "zero-shot":
        reporter.phase(f"reference, zero-shot, {len(psi)} tasks", config.num_updates)
        solution = virtual_training(
            family,
            learner.model,
            place.solution,
            1,
            evaluation_virtual(virtual, config),
            generators,
            reporter=reporter,
            num_done=place.num_done,
            on_step=store.keep("zero-shot", generators, learner, num_rows),
        )
        place = Place("SLBO", 0, solution)
    slbo = SlboConfig(
        num_stages=config.num_reference_stages,
        num_iterations=math.ceil(config.num_reference_updates / virtual.num_policy_updates),
        num_samples=config.num_reference_samples,
    )
    reporter.phase(f"reference, SLBO, {len(psi)} tasks together", slbo.num_stages)
    solution = slbo_adapt(
        family,
        learner,
        place.solution,
        slbo,
        replace(virtual, num_samples=config.num_samples),
        generators,
        num_threads=num_threads,
        reporter=reporter,
        num_done=place.num_done,
        on_step=store.keep("SLBO", generators, learner, num_rows),
    )
    returns = score(family, solution, config.num_episodes, seed, num_threads=num_threads)
    episodes = returns.reshape(1, len(psi), config.num_episodes)
    store.finish(episodes)
    return episodes


def score(
    family: TaskFamily,
    solution: Solution,
    num_episodes: int,
    seed: int,
    *,
    num_threads: int = 1,
) -> np.ndarray:
    """Undiscounted returns (rows, N) of the stochastic policies in the simulator.

    Start states and noise depend on seed and task alone, the same for every method and policy seed. A simulation
    that becomes unstable makes its return nan.
    """
    generators = task_generators(seed + 2, 1, family.box.to_unit(solution.psi))
    rollout = real_rollout(family, solution, num_episodes, generators, num_threads=num_threads)
    return episode_returns(family, solution.psi, rollout).double().numpy()


def best_known_returns(candidates: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A* (M,) and where each value comes from.

    The best policy is chosen on the even episodes and reported on the odd, and the other way round, and the two
    are averaged: the luck of the choice is not counted, and A* covers the same start states as every A_n.

    Args:
        candidates: name -> episodes (R, M, N) with N >= 2. Every policy seed is a candidate of its own.
    """
    names = [name for name, episodes in candidates.items() for _ in episodes]
    pool = np.concatenate(list(candidates.values()))  # (C, M, N)
    tasks, broken = np.arange(pool.shape[1]), np.isnan(pool).any(-1)
    halves = []
    for choose, report in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        # a policy that broke down in any episode is never best
        best = np.where(broken, -np.inf, pool[:, :, choose].mean(-1)).argmax(0)  # (M,)
        halves.append((best, pool[best, tasks, report].mean(-1)))
    (first, reported_first), (second, reported_second) = halves
    source = tuple(
        names[a] if names[a] == names[b] else f"{names[a]} / {names[b]}"
        for a, b in zip(first, second, strict=True)
    )
    return (reported_first + reported_second) / 2, source


def task_generators(seed: int, num_seeds: int, unit: Tensor) -> list[torch.Generator]:
    """One generator per (policy seed, task), seed-major.

    Args:
        unit: tasks (M, k) in unit coordinates. A task has the same generators wherever it stands in a grid.
    """
    keys = [[round(1e6 * x) % 2**32 for x in row] for row in unit.double().tolist()]
    return [
        torch.Generator().manual_seed(
            int(np.random.SeedSequence([seed, r, *key]).generate_state(1, np.uint64)[0] >> 1)
        )
        for r in range(num_seeds)
        for key in keys
    ]


def check_evaluation(config: EvaluationConfig, family: TaskFamily, num_members: int) -> None:
    """Refuse impossible sample counts before any work; see `check_lanes`."""
    check_lanes("config.num_samples", config.num_samples, family.horizon, num_members)
    check_lanes("config.num_reference_samples", config.num_reference_samples, family.horizon)
    if config.num_episodes < 2:
        raise ValueError("config.num_episodes: expected at least 2 (A* is chosen on one half), got 1")


def _nan_to_none(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {k: _nan_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
