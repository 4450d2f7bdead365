"""`admrl evaluate`"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from admrl.config import EvaluationConfig
from admrl.display import short
from admrl.evaluate_runs import check_runs, gap_tables, reference_job, zero_shot_job
from admrl.evaluation import GapTable
from admrl.evaluation_store import forget
from admrl.interruption import Interrupted
from admrl.parallel import Job, run_jobs
from admrl.run_lock import RunLock
from admrl.run_store import GAPS, Run, check_seed, load_run

if TYPE_CHECKING:
    from admrl.cli import Evaluate


def prepare(command: Evaluate) -> tuple[list[Run], Tensor]:
    """The runs and the tasks of the grid, checked.

    Raises:
        ValueError: see `load_run` and `check_runs`.
    """
    if command.num_workers < 1:
        raise ValueError(f"--num-workers: expected 1 or more, got {command.num_workers}")
    check_seed(command.seed)
    for path in command.runs:
        if list(command.runs).count(path) > 1:
            raise ValueError(f"RUNS: {path} is named twice")
    runs = [load_run(path) for path in command.runs]
    for run in runs:
        if not run.finished:
            raise ValueError(
                f"{run.path}: {len(run.state.records)} of {run.info.config.num_tasks} tasks are done; "
                f"finish it with: admrl train --resume {run.path}"
            )
    psi = check_runs(runs, command.grid, command.config)
    for run in runs:
        run.lock = RunLock(run.path)
    return runs, psi


def execute(command: Evaluate, runs: list[Run], psi: Tensor) -> None:
    """Evaluate, print a table, write gaps.json into every run folder."""
    console = Console(markup=False)
    try:
        tables = evaluate_in_parallel(
            runs, psi, command.grid, command.config, command.seed, command.num_workers, console
        )
    except Interrupted as interrupt:
        raise Interrupted(
            "what is done is saved; repeat the command to go on from there", interrupt.signum
        ) from None
    print_tables(tables, console)
    where = " ".join(str(run.path) for run in runs)
    console.print(f"next: admrl heatmap {where} --out gap.png", highlight=False)


def evaluate_in_parallel(
    runs: Sequence[Run],
    psi: Tensor,
    grid: Sequence[int],
    config: EvaluationConfig,
    seed: int,
    num_workers: int,
    console: Console,
) -> list[GapTable]:
    """`evaluate_gaps` with every run's zero-shot policies, and the reference run, as jobs of their own.

    The runs are locked by the caller; their locks are released here. Jobs that were interrupted go on.
    """
    tasks = psi.tolist()
    jobs, updates = [], runs[0].info.config.virtual.num_policy_updates
    if config.num_reference_stages:
        stage = 1 + math.ceil(config.num_reference_updates / updates) * updates
        steps = config.num_updates + config.num_reference_stages * stage
        paths = [run.path for run in runs]
        jobs.append(Job("reference A*", reference_job, (paths, tasks, config, seed), steps))
    jobs += [
        Job(
            f"A_0 of {run.path.name}",
            zero_shot_job,
            (run.path, tasks, config, seed),
            config.num_updates,
        )
        for run in runs
    ]
    try:
        results = run_jobs(jobs, num_workers, console)
        reference = results.pop(0) if config.num_reference_stages else None
        tables = gap_tables(runs, psi, grid, results, reference, config, seed)
        for run, table in zip(runs, tables, strict=True):
            table.save(run.path / GAPS)
        for run in runs:
            forget(run.path)
    finally:
        for run in runs:
            if run.lock is not None:
                run.lock.release()
    return tables


def print_tables(tables: Sequence[GapTable], console: Console) -> None:
    """Worst-case and mean gaps of the methods, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    shown = Table(
        title=f"zero-shot sub-optimality gap, {first.family}, {num_tasks} tasks, {num_seeds} policy seeds a task",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("method", "worst gap", "at", "corrected", "mean gap", "A_0", "real", "virtual"):
        shown.add_column(column, justify="left" if column in ("method", "at") else "right", no_wrap=True)
    for table in tables:
        if table.num_missing():
            console.print(
                f"{table.method}: {table.num_missing()} tasks have no gap (a simulation broke down)"
            )
        worst, (mean, error) = table.worst(), table.average()
        shown.add_row(
            table.method,
            f"{worst.gap:.0f} ± {worst.standard_error:.0f}",
            ", ".join(f"{x:.2f}" for x in table.psi[worst.task]),
            f"{worst.corrected:.0f}",
            f"{mean:.0f} ± {error:.0f}",
            f"{table.adapted_return.mean():.0f}",
            short(table.provenance["training_real_samples"]),
            short(table.provenance["training_virtual_samples"]),
        )
    console.print(shown)
    # a task's A* may come from two policies, half from each
    halves = Counter(part for source in first.optimal_source for part in (source.split(" / ") * 2)[:2])
    console.print(
        "± is the standard error over policy seeds; corrected: the worst task is chosen on one half of the seeds "
        "and its gap measured on the other (worst gap is too large, corrected too small); at: "
        + ", ".join(first.task_names)
        + "; A_0: mean return; real, virtual: training samples. "
        f"A* averages {first.optimal_return.mean():.0f}, best from: "
        + ", ".join(f"{name} ({count / 2:g} tasks)" for name, count in halves.most_common())
        + f"; reference: {first.provenance['reference_real_samples']:,} real samples.",
        highlight=False,
    )
