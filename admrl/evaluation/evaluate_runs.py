"""Evaluating run folders, or any adapters, on a common set of tasks with a common A*, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from admrl.config.checks import check_config
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluator import evaluate_adapter
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.reference import Reference
from admrl.evaluation.reference_pooled import check_pooled, pooled_reference
from admrl.evaluation.scoring import check_counts
from admrl.evaluation.tables import Method, gap_tables, model_sources, run_tables, without_reference
from admrl.evaluation.task_lists import TaskList, grid_tasks
from admrl.jobs.reporter import Reporter
from task_families.family import TaskFamily


def evaluate_gaps(
    runs: Sequence[EvaluableRun],
    tasks: Sequence[int] | TaskList,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    reference: Reference | None = None,
    decompose: bool = False,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> list[GapTable]:
    """Sub-optimality gaps of runs of one family on a set of its tasks: one table per run, A* common to all.

    Runs of `admrl train` and of `admrl train-baseline` may be mixed.

    Args:
        tasks: grid cells per task parameter, corners included; or any list of tasks.
        seed: of the evaluation; the same for all runs.
        reference: A*; None: the best of what the runs' policies and a common reference run reached. Without that
            run (``config.num_reference_stages`` is 0), see `evaluate_adapters`.
        decompose: also train the runs' oracles, for the parts of the gaps (`GapTable.part`).

    Raises:
        ValueError: no run, runs of different families, a grid of the wrong dimension, impossible counts, tasks
            without a reference, or a run without an oracle.
    """
    tasks = check_runs(runs, tasks, config, reference, decompose)
    zero_shot, work = (
        replace(config, num_stages=0),
        dict[str, Any](num_threads=num_threads, reporter=reporter),
    )
    adapted = [
        evaluate_adapter(run.family, run.adapter(config, reporter=reporter), tasks, config, seed, **work)
        for run in runs
    ]
    oracles = [
        evaluate_adapter(run.family, run.oracle(zero_shot, reporter=reporter), tasks, zero_shot, seed, **work)
        for run in (runs if decompose else [])
    ]
    pooled = None
    if needs_pooled(config, reference):
        sources = model_sources(runs)
        pooled = pooled_reference(sources, tasks, config, seed, num_threads=num_threads, reporter=reporter)
    return run_tables(runs, tasks, adapted, config, seed, pooled=pooled, reference=reference, oracles=oracles)


def check_runs(
    runs: Sequence[EvaluableRun],
    tasks: Sequence[int] | TaskList,
    config: EvaluationConfig,
    reference: Reference | None = None,
    decompose: bool = False,
) -> TaskList:
    """The tasks, if everything fits together; see `evaluate_gaps`."""
    if not runs:
        raise ValueError("runs: expected at least one run folder, got none")
    check_config(config)
    if unknown := [run for run in runs if not isinstance(run, EvaluableRun)]:
        raise ValueError(f"runs: expected runs, as load_run returns them, got {unknown[0]!r:.80}")
    first = runs[0]
    for run in runs:
        if (run.info.family, run.info.variant) != (first.info.family, first.info.variant):
            raise ValueError(
                f"runs of different families: {first.path} is {first.info.family} ({first.info.variant}), "
                f"{run.path} is {run.info.family} ({run.info.variant}); evaluate them apart"
            )
        run.adapter(config)  # refuses what is impossible for its method
        if decompose:
            run.oracle(config)
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
                "evaluate together with such a run, or take the gap to the best of these methods: set "
                "`config.num_reference_stages` to 0"
            )
        check_pooled(sources, config)
    return chosen


def needs_pooled(config: EvaluationConfig, reference: Reference | None) -> bool:
    """Whether A* is also sought by the built-in reference run."""
    return reference is None and config.num_reference_stages > 0


def evaluate_adapters(
    family: TaskFamily,
    adapters: Sequence[Adapter],
    tasks: Sequence[int] | TaskList,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    reference: Reference | None = None,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> list[GapTable]:
    """Sub-optimality gaps of any adapters on a set of tasks of one family, A* common to all.

    The tables stand beside those of `evaluate_gaps` if A* is the same, that is with the same reference.

    Args:
        tasks: grid cells per task parameter, corners included; or any list of tasks.
        reference: A*; None: the family's optimal policy, where it is known in closed form. Elsewhere the tables say
            that theirs is the gap to the best of several adapters; that of a single one is unknown (nan).

    Raises:
        ValueError: no adapter, two of one name, impossible counts, or tasks without a reference.
        AdapterError: see `adapt_and_score`.
    """
    if unknown := [a for a in adapters if not hasattr(a, "begin")]:
        raise ValueError(
            f"adapters: expected each to be an Adapter, got {unknown[0]!r:.80}; StaticAdapter.of_function makes one "
            "of a function of observations"
        )
    names = [adapter.name for adapter in adapters]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"adapters: expected at least one, each with a name of its own; got {names}")
    chosen = tasks if isinstance(tasks, TaskList) else grid_tasks(family, tasks)
    num = config.num_policy_seeds
    known = (
        None if reference is None else reference.best_known(family, chosen.psi, num)
    )  # refuses before any work
    methods = [
        Method(
            adapter.name,
            adapter.name,
            adapter.sees,
            adapter.provenance(),
            evaluate_adapter(
                family, adapter, chosen, config, seed, num_threads=num_threads, reporter=reporter
            ),
        )
        for adapter in adapters
    ]
    if known is None:
        known = without_reference(family, chosen, methods, config, seed, num_threads)
    return gap_tables(family, chosen, methods, known, config, seed)
