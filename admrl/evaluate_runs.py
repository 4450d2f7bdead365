"""Evaluating run folders on a common set of tasks with a common A*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from admrl.config import EvaluationConfig, check_config
from admrl.evaluation import (
    GapTable,
    best_known_returns,
    check_evaluation,
    reference_returns,
    zero_shot_returns,
)
from admrl.evaluation_store import EvaluationStore
from admrl.reporting import Reporter
from admrl.run_store import Run, load_run, provenance, versions

MAX_TASKS = 10_000


def evaluate_gaps(
    runs: Sequence[Run],
    grid: Sequence[int],
    config: EvaluationConfig,
    *,
    seed: int = 0,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> list[GapTable]:
    """Zero-shot gaps of runs of one family over a grid of its tasks: one table per run, A* common to all.

    Args:
        grid: cells per task parameter, corners included.
        seed: of the evaluation; the same for all runs.

    Raises:
        ValueError: no run, runs of different families, a grid of the wrong dimension, impossible counts.
    """
    psi = check_runs(runs, grid, config)
    zero = [run_zero_shot(run, psi, config, seed, num_threads=num_threads, reporter=reporter) for run in runs]
    reference = run_reference(runs, psi, config, seed, num_threads=num_threads, reporter=reporter)
    return gap_tables(runs, psi, grid, zero, reference, config, seed)


def check_runs(runs: Sequence[Run], grid: Sequence[int], config: EvaluationConfig) -> Tensor:
    """The tasks of the grid (M, k), if everything fits together; see `evaluate_gaps`."""
    if not runs:
        raise ValueError("runs: expected at least one run folder, got none")
    check_config(config)
    first = runs[0]
    for run in runs:
        if (run.info.family, run.info.variant) != (first.info.family, first.info.variant):
            raise ValueError(
                f"runs of different families: {first.path} is {first.info.family} ({first.info.variant}), "
                f"{run.path} is {run.info.family} ({run.info.variant}); evaluate them apart"
            )
        check_evaluation(config, run.family, run.info.config.dynamics.num_members)
    if prod(grid) > MAX_TASKS:
        raise ValueError(
            f"grid: {prod(grid):.3g} tasks are more than {MAX_TASKS}; choose fewer per task parameter"
        )
    return first.family.box.grid(grid)


def run_zero_shot(
    run: Run,
    psi: Tensor,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    store: EvaluationStore | None = None,
) -> np.ndarray:
    """Episodes (R, M, N) of the run's zero-shot policies; see `zero_shot_returns`."""
    return zero_shot_returns(
        run.family,
        run.state.learner,
        run.policy,
        psi,
        run.info.config.virtual,
        config,
        seed,
        num_threads=num_threads,
        reporter=reporter,
        store=store,
    )


def run_reference(
    runs: Sequence[Run],
    psi: Tensor,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    store: EvaluationStore | None = None,
) -> np.ndarray | None:
    """Episodes (1, M, N) of the reference run on the data of all runs, or None if it is switched off."""
    if config.num_reference_stages == 0:
        return None
    return reference_returns(
        runs[0].family,
        [run.state.learner for run in runs],
        runs[0].policy,
        psi,
        runs[0].info.config.virtual,
        config,
        seed,
        num_threads=num_threads,
        reporter=reporter,
        store=store,
    )


def gap_tables(
    runs: Sequence[Run],
    psi: Tensor,
    grid: Sequence[int],
    zero: Sequence[np.ndarray],
    reference: np.ndarray | None,
    config: EvaluationConfig,
    seed: int,
) -> list[GapTable]:
    """One table per run from the episodes of all candidates."""
    candidates = {str(run.path): episodes for run, episodes in zip(runs, zero, strict=True)}
    if reference is not None:
        candidates["reference: SLBO on all tasks"] = reference
    optimal, source = best_known_returns(candidates)
    selectors = [run.info.selector for run in runs]
    num_tasks, horizon = len(psi), runs[0].family.horizon
    reference_samples = (
        num_tasks * config.num_reference_stages * config.num_reference_samples if reference is not None else 0
    )
    return [
        GapTable(
            method=run.info.selector if selectors.count(run.info.selector) == 1 else str(run.path),
            family=run.info.family,
            variant=run.info.variant,
            task_names=run.family.box.names,
            task_units=run.family.box.units,
            psi=psi.double().numpy(),
            num_samples=np.array([0]),
            episode_return=episodes[:, :, None],
            optimal_return=optimal,
            optimal_source=source,
            grid_shape=tuple(grid),
            visited_psi=np.array([record.psi for record in run.state.records]),
            provenance=provenance(
                run,
                evaluation=asdict(config),
                evaluation_seed=seed,
                scoring_real_samples=episodes.size * horizon,
                evaluation_virtual_samples=episodes.shape[0]
                * num_tasks
                * config.num_updates
                * config.num_samples,
                reference_real_samples=reference_samples,
            ),
        )
        for run, episodes in zip(runs, zero, strict=True)
    ]


# -- the same as jobs for other processes ------------------------------------------------------------------


def zero_shot_job(
    path: Path, psi: list[list[float]], config: EvaluationConfig, seed: int, reporter: Reporter
) -> np.ndarray:
    """`run_zero_shot` of a run folder; goes on where it was interrupted."""
    run = load_run(path)
    store = EvaluationStore(path, "zero-shot", _depends_on([run], psi, config, seed), reporter)
    return run_zero_shot(run, torch.tensor(psi), config, seed, reporter=reporter, store=store)


def reference_job(
    paths: list[Path], psi: list[list[float]], config: EvaluationConfig, seed: int, reporter: Reporter
) -> np.ndarray | None:
    """`run_reference` of run folders; goes on where it was interrupted (kept in the first folder)."""
    runs = [load_run(p) for p in paths]
    store = EvaluationStore(paths[0], "reference", _depends_on(runs, psi, config, seed), reporter)
    return run_reference(runs, torch.tensor(psi), config, seed, reporter=reporter, store=store)


def _depends_on(
    runs: Sequence[Run], psi: list[list[float]], config: EvaluationConfig, seed: int
) -> dict[str, object]:
    """All that the result of a job is a function of, as plain data."""
    return {
        "checkpoints": [run.checkpoint.digest if run.checkpoint else None for run in runs],
        "settings": [asdict(run.info) for run in runs],
        "psi": psi,
        "evaluation": asdict(config),
        "seed": seed,
        "versions": versions(),
    }
