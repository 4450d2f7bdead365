"""Evaluating run folders on a common set of tasks with a common A*."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from admrl.config.checks import check_config
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluable_run import EvaluableRun, ModelSource
from admrl.evaluation.evaluator import Adapted, evaluate_adapter
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.reference import Reference
from admrl.evaluation.reference_pooled import NAME, PooledReference, check_pooled, pooled_reference
from admrl.evaluation.scoring import check_counts
from admrl.evaluation.tables import Method, best_of, gap_tables
from admrl.evaluation.task_lists import TaskList, grid_tasks
from admrl.jobs.reporter import Reporter
from admrl.storage.files import digest


def evaluate_gaps(
    runs: Sequence[EvaluableRun],
    tasks: Sequence[int] | TaskList,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    reference: Reference | None = None,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> list[GapTable]:
    """Sub-optimality gaps of runs of one family on a set of its tasks: one table per run, A* common to all.

    Runs of `admrl train` and of `admrl train-baseline` may be mixed.

    Args:
        tasks: grid cells per task parameter, corners included; or any list of tasks.
        seed: of the evaluation; the same for all runs.
        reference: A*; None: the best of what the runs' policies and a common reference run reached.

    Raises:
        ValueError: no run, runs of different families, a grid of the wrong dimension, impossible counts, or tasks
            without a reference.
    """
    tasks = check_runs(runs, tasks, config, reference)
    adapted = [
        evaluate_adapter(
            run.family,
            run.adapter(config, reporter=reporter),
            tasks,
            config,
            seed,
            num_threads=num_threads,
            reporter=reporter,
        )
        for run in runs
    ]
    pooled = None
    if needs_pooled(config, reference):
        sources = model_sources(runs)
        pooled = pooled_reference(sources, tasks, config, seed, num_threads=num_threads, reporter=reporter)
    return run_tables(runs, tasks, adapted, config, seed, pooled=pooled, reference=reference)


def check_runs(
    runs: Sequence[EvaluableRun],
    tasks: Sequence[int] | TaskList,
    config: EvaluationConfig,
    reference: Reference | None = None,
) -> TaskList:
    """The tasks, if everything fits together; see `evaluate_gaps`."""
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
        run.adapter(config)  # refuses what is impossible for its method
    check_counts(config, first.family)
    chosen = tasks if isinstance(tasks, TaskList) else grid_tasks(first.family, tasks)
    first.family.box.check(chosen.psi, allow_outside=chosen.allow_outside)
    if reference is not None:
        reference.optimal_returns(first.family, chosen.psi)
    elif needs_pooled(config, reference):
        sources = model_sources(runs)
        if not sources:
            raise ValueError(
                "no A*: the built-in reference run needs the model of a run of `admrl train`, and none is given. "
                f"Make a reference of {first.info.family} with `admrl reference` and pass it as `reference`, or "
                "evaluate together with such a run, or take the best of these methods: set "
                "`config.num_reference_stages` to 0"
            )
        check_pooled(sources, config)
    return chosen


def needs_pooled(config: EvaluationConfig, reference: Reference | None) -> bool:
    """Whether A* is also sought by the built-in reference run."""
    return reference is None and config.num_reference_stages > 0


def model_sources(runs: Sequence[EvaluableRun]) -> list[ModelSource]:
    """The runs that have a model which a reference run can start from."""
    return [source for run in runs if (source := run.model_source) is not None]


def run_tables(
    runs: Sequence[EvaluableRun],
    tasks: TaskList,
    adapted: Sequence[Adapted],
    config: EvaluationConfig,
    seed: int,
    *,
    pooled: PooledReference | None = None,
    reference: Reference | None = None,
) -> list[GapTable]:
    """One table per run from the episodes of all candidates; see `evaluate_gaps`."""
    family = runs[0].family
    methods = [
        _method(run, a, label, config, seed)
        for run, a, label in zip(runs, adapted, method_labels(runs), strict=True)
    ]
    if reference is not None:
        known = reference.best_known(family, tasks.psi)
    else:
        origin: dict[str, Any] = {
            "kind": "best of the runs evaluated together",
            "runs": sorted(str(run.path) for run in runs),
        }
        further, drawn = ({}, 0) if pooled is None else ({NAME: pooled.episode_return}, pooled.real_samples)
        known = best_of(methods, origin, further=further, real_samples=drawn)
    return gap_tables(family, tasks, methods, known, config, seed)


def _method(run: EvaluableRun, adapted: Adapted, label: str, config: EvaluationConfig, seed: int) -> Method:
    adapter, source = run.adapter(config), run.model_source
    return Method(
        label=label,
        name=str(run.path),
        sees=adapter.sees,
        provenance=adapter.provenance(),
        adapted=adapted,
        visited_psi=run.visited_psi,
        model=None if source is None else source.learner.model,
        evaluation_key=digest(run.fingerprint(config, seed)),
    )


def method_labels(runs: Sequence[EvaluableRun]) -> list[str]:
    """The shortest names that tell the runs apart: selector, selector and seed, or the folder."""
    short = [run.info.selector for run in runs]
    long = [f"{run.info.selector}, seed {run.info.seed}" for run in runs]
    return [
        s if short.count(s) == 1 else l if long.count(l) == 1 else str(run.path)
        for s, l, run in zip(short, long, runs, strict=True)
    ]
