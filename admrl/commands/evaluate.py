"""`admrl evaluate`"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from admrl.any_run import AnyRun, load_any_run, progress, resume_command
from admrl.baselines.baseline_run import BaselineRun
from admrl.config import EvaluationConfig
from admrl.display import short
from admrl.evaluate_runs import (
    adapted_job,
    check_runs,
    gap_tables,
    load_reference_episodes,
    model_runs,
    reference_file,
    reference_job,
)
from admrl.evaluation import GapTable
from admrl.evaluation_store import PartStore
from admrl.files import DamagedFileError, make_folder
from admrl.gap_files import gaps_file
from admrl.interruption import Interrupted
from admrl.parallel import Job, run_jobs
from admrl.protocol import num_steps
from admrl.reference import Reference
from admrl.run_lock import RunLock
from admrl.run_store import check_seed
from admrl.search.objective import Objective
from admrl.test_sets import TaskList, choose_tasks, unit_keys

if TYPE_CHECKING:
    from admrl.commands.options import Evaluate


def prepare(command: Evaluate) -> tuple[list[AnyRun], TaskList, Reference | None]:
    """The runs, the tasks and the reference, checked.

    Raises:
        ValueError: see `load_run`, `choose_tasks` and `check_runs`.
    """
    if command.num_workers < 1:
        raise ValueError(f"--num-workers: expected 1 or more, got {command.num_workers}")
    check_seed(command.seed)
    Objective(command.objective, command.alpha, command.temperature)
    if not command.runs:
        raise ValueError("RUNS: expected at least one run folder, got none")
    if repeated := [str(path) for path, n in Counter(command.runs).items() if n > 1]:
        raise ValueError(f"RUNS: {repeated[0]} is given twice; a run counts once")
    runs = [load_any_run(path) for path in command.runs]
    for run in runs:
        if not run.finished:
            raise ValueError(f"{run.path}: {progress(run)}; finish it with: {resume_command(run)}")
    family = runs[0].family
    chosen = choose_tasks(family, command.grid, command.tasks, allow_outside=command.allow_outside)
    reference = None if command.reference is None else Reference.load(command.reference)
    tasks = check_runs(runs, chosen, command.config, reference)
    for run in runs:
        _check_table(gaps_file(run.path, command.name or tasks.name), command.config, command.seed)
    lock_runs(runs)
    return runs, tasks, reference


def lock_runs(runs: Sequence[AnyRun]) -> None:
    """Lock all of them or none.

    Raises:
        ValueError: see `RunLock`.
    """
    try:
        for run in runs:
            run.lock = RunLock(run.path)
    except BaseException:
        release_runs(runs)
        raise


def release_runs(runs: Sequence[AnyRun]) -> None:
    """Let others write into them."""
    for run in runs:
        if run.lock is not None:
            run.lock.release()
            run.lock = None


def execute(command: Evaluate, runs: list[AnyRun], tasks: TaskList, reference: Reference | None) -> None:
    """Evaluate, print a table, write one gap table into every run folder."""
    console = Console(markup=False)
    name = command.name or tasks.name
    try:
        tables = evaluate_in_parallel(
            runs,
            tasks,
            command.config,
            command.seed,
            command.num_workers,
            console,
            name=name,
            reference=reference,
        )
    except Interrupted as interrupt:
        raise Interrupted(
            "every finished batch of tasks is saved; the same command goes on from there", interrupt.signum
        ) from None
    objective = Objective(command.objective, command.alpha, command.temperature)
    for j in range(len(tables[0].num_samples)):
        print_tables(tables, console, j)
        print_objective(tables, objective, command.scale, console, j)
    print_notes(tables, console)
    where = " ".join(str(run.path) for run in runs)
    console.print(
        f"wrote {name} into each run; next: admrl compare {where} --tasks {name} --out report",
        highlight=False,
    )


def evaluate_in_parallel(
    runs: Sequence[AnyRun],
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    num_workers: int,
    console: Console,
    *,
    name: str,
    reference: Reference | None = None,
) -> list[GapTable]:
    """`evaluate_gaps` in jobs of one policy seed and a batch of tasks; finished jobs are not done again.

    The runs are locked by the caller (`lock_runs`); their locks are released here.
    """
    try:
        return _evaluate(runs, tasks, config, seed, num_workers, console, name, reference)
    finally:
        release_runs(runs)


def _evaluate(
    runs: Sequence[AnyRun],
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    num_workers: int,
    console: Console,
    name: str,
    reference: Reference | None,
) -> list[GapTable]:
    jobs = []
    pooled_file = None
    if reference is None and config.num_reference_stages:
        pooled_file = reference_file(runs, tasks, config, seed)
    if pooled_file is not None and not _is_sound(pooled_file, tasks, config, console):
        updates = model_runs(runs)[0].info.config.virtual.num_policy_updates
        stage = 1 + math.ceil(config.num_reference_updates / updates) * updates
        steps = config.num_updates + config.num_reference_stages * stage
        paths = [run.path for run in runs]
        jobs.append(Job("reference A*", reference_job, (paths, tasks, config, seed), steps))
    keys = unit_keys(runs[0].family.box.to_unit(tasks.psi))
    psi_of = dict(zip(keys, tasks.psi.tolist(), strict=True))
    for run in runs:
        store = PartStore(run, config, seed)
        missing = store.missing(keys, config.num_policy_seeds)
        for note in store.notes:
            console.print(note, style="yellow", highlight=False)
        if 0 < len(missing) < len(keys) * config.num_policy_seeds:
            console.print(f"{run.path}: {len(missing)} cells are left", highlight=False)
        for policy_seed in range(config.num_policy_seeds):
            psi = [psi_of[k] for k, r in missing if r == policy_seed]
            for i in range(0, len(psi), config.tasks_per_batch):
                batch = psi[i : i + config.tasks_per_batch]
                arguments = (run.path, batch, tasks, config, seed, policy_seed)
                steps = num_steps(config)
                if isinstance(run, BaselineRun):  # its steps are episodes
                    steps = config.num_stages * config.num_stage_samples // run.family.horizon
                jobs.append(Job(f"A_n of {run.path.name}", adapted_job, arguments, steps))
    if jobs:
        run_jobs(jobs, num_workers, console)
    adapted = [PartStore(run, config, seed).collect(keys, config.num_policy_seeds) for run in runs]
    pooled = None
    if pooled_file is not None:
        pooled = load_reference_episodes(pooled_file, len(tasks.psi), config.num_episodes)
    tables = gap_tables(runs, tasks, adapted, pooled, config, seed, reference=reference)
    for run, table in zip(runs, tables, strict=True):
        file = gaps_file(run.path, name)
        make_folder(file.parent)
        table.save(file)
    return tables


def _is_sound(file: Path, tasks: TaskList, config: EvaluationConfig, console: Console) -> bool:
    """Whether the reference run is there; says so if it was, and is damaged."""
    if not file.exists():
        return False
    try:
        load_reference_episodes(file, len(tasks.psi), config.num_episodes)
    except DamagedFileError as error:
        console.print(f"{error}; the reference run is done again", style="yellow", highlight=False)
        return False
    return True


def print_objective(
    tables: Sequence[GapTable], objective: Objective, scale: str, console: Console, j: int = 0
) -> None:
    """One number for each method's gaps over the tasks, where it is not the worst gap of the table anyway."""
    if (objective.name, scale) == ("worst", "absolute"):
        return
    name = objective.name + (f" {objective.alpha:g}" if objective.name == "cvar" else "")
    for table in tables:
        value, error = table.objective(objective, j, scale=scale)
        console.print(f"{table.method}: {name} of the {scale} gap {value:.4g} ± {error:.2g}", highlight=False)


def print_tables(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """Worst-case and mean gaps of the methods after n samples, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    n = first.num_samples[j]
    after = "zero-shot" if n == 0 else f"after {n} real samples a task:"
    shown = Table(
        title=f"{after} sub-optimality gap, {first.family}, {num_tasks} tasks, {num_seeds} policy seeds a task",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("method", "worst gap", "at", "corrected", "mean gap", f"A_{n}", "real", "virtual"):
        shown.add_column(
            column,
            justify="left" if column in ("method", "at") else "right",
            no_wrap=column != "method",
            overflow="fold",
        )
    for table in tables:
        if table.num_missing(j):
            console.print(
                f"{table.method}: {table.num_missing(j)} tasks have no gap (a simulation broke down)"
            )
        worst, (mean, error) = table.worst(j), table.average(j)
        psi = table.psi[worst.task]
        shown.add_row(
            table.method,
            f"{worst.gap:.0f} ± {worst.standard_error:.0f}",
            ", ".join(f"{x:.2f}" for x in psi) if len(psi) <= 3 else f"task {worst.task + 1}",
            f"{worst.corrected:.0f}",
            f"{mean:.0f} ± {error:.0f}",
            f"{table.adapted_return[:, :, j].mean():.0f}",
            short(table.provenance["training_real_samples"]),
            short(table.provenance["training_virtual_samples"]),
        )
    console.print(shown)


def print_notes(tables: Sequence[GapTable], console: Console) -> None:
    """What the columns of `print_tables` mean, and where A* comes from."""
    first = tables[0]
    names = first.task_names if len(first.task_names) <= 3 else ("the task's number on the list",)
    # a task's A* may come from two policies, half from each
    halves = Counter(part for source in first.optimal_source for part in (source.split(" / ") * 2)[:2])
    console.print(
        "± is the standard error over policy seeds; corrected: the worst task is chosen on one half of the seeds "
        "and its gap measured on the other (worst gap is too large, corrected too small); at: "
        + ", ".join(names)
        + "; A_n: mean return; real, virtual: training samples. "
        f"A* averages {first.optimal_return.mean():.0f}, best from: "
        + ", ".join(f"{name} ({count / 2:g} tasks)" for name, count in halves.most_common(6))
        + ("" if len(halves) <= 6 else f" and {len(halves) - 6} more")
        + "; the methods may see of a task: "
        + "; ".join(f"{t.method}: {t.provenance.get('sees', 'not recorded')}" for t in tables)
        + f"; reference: {first.provenance['reference_real_samples']:,} real samples.",
        highlight=False,
    )


def _check_table(file: Path, config: EvaluationConfig, seed: int) -> None:
    """A finished table is only replaced by one that was made with the same settings.

    Raises:
        ValueError: another evaluation of that name is there.
    """
    if not file.exists():
        return
    there = GapTable.load(file).provenance
    settings = there.get("evaluation")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} does not say how it was made; give this one another name: --name NAME")
    same = json.loads(json.dumps({f: getattr(config, f) for f in settings if hasattr(config, f)}))
    changed = {k: v for k, v in settings.items() if k != "tasks_per_batch" and same.get(k) != v}
    if there.get("evaluation_seed") != seed:
        changed["seed"] = there.get("evaluation_seed")
    if changed:
        field, value = next(iter(changed.items()))
        raise ValueError(
            f"{file} holds an evaluation with other settings ({field} {value}); nothing was changed. "
            "Give this one another name: --name NAME"
        )
