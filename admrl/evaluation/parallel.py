"""An evaluation as jobs for several processes, which leave their results in the run folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluate_runs import needs_pooled
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.gap_files import gaps_file
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.part_store import FOLDER, PartStore
from admrl.evaluation.reference import Reference
from admrl.evaluation.reference_pooled import PooledReference, num_pooled_steps, pooled_reference
from admrl.evaluation.tables import model_sources, run_tables
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.pool import Job, run_jobs
from admrl.jobs.reporter import Reporter
from admrl.runs.lock import RunLock
from admrl.storage.files import DamagedFileError, digest, make_folder
from admrl.storage.sealed_file import check_tensor, read_sealed, write_sealed
from admrl.streams import unit_keys

Load = Callable[[Path], EvaluableRun]
"""Opens a run folder in another process, so it is a function of a module."""


@dataclass(frozen=True)
class Plan:
    """What all jobs of an evaluation know."""

    tasks: TaskList
    config: EvaluationConfig
    seed: int
    load: Load
    decompose: bool = False
    """Also solve the runs' oracles."""

    def part_store(self, run: EvaluableRun, *, of_oracle: bool) -> PartStore:
        """Where cells of a run, or of its oracle, are kept."""
        return PartStore(run, self.config_of(of_oracle), self.seed, of_oracle=of_oracle)

    def part_stores(self, runs: Sequence[EvaluableRun]) -> list[PartStore]:
        """Those of all runs, then those of all oracles, if these are asked for."""
        kinds = (False, True) if self.decompose else (False,)
        return [self.part_store(run, of_oracle=of_oracle) for of_oracle in kinds for run in runs]

    def config_of(self, of_oracle: bool) -> EvaluationConfig:
        """Oracles are scored zero-shot."""
        return replace(self.config, num_stages=0) if of_oracle else self.config


def lock_runs(runs: Sequence[EvaluableRun]) -> None:
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


def release_runs(runs: Sequence[EvaluableRun]) -> None:
    """Let others write into them."""
    for run in runs:
        run.release()


def evaluate_in_parallel(
    runs: Sequence[EvaluableRun],
    plan: Plan,
    num_workers: int,
    console: Console,
    *,
    name: str,
    reference: Reference | None = None,
) -> list[GapTable]:
    """`evaluate_gaps` in jobs of one policy seed and a batch of tasks; finished jobs are not done again.

    The runs are locked by the caller (`lock_runs`); their locks are released here.
    """
    tasks, config, seed = plan.tasks, plan.config, plan.seed
    try:
        jobs, pooled_file = [], None
        if needs_pooled(config, reference):
            pooled_file = _pooled_file(runs, plan)
            jobs += _pooled_jobs(pooled_file, runs, plan, console)
        stores = plan.part_stores(runs)
        jobs += [job for store in stores for job in _adapted_jobs(store, plan, console)]
        if jobs:
            run_jobs(jobs, num_workers, console)
        keys = _keys(runs[0], tasks)
        found = [store.collect(keys, config.num_policy_seeds) for store in stores]
        adapted, oracles = found[: len(runs)], found[len(runs) :]
        pooled = None if pooled_file is None else _read_pooled(pooled_file, len(keys), config)
        tables = run_tables(
            runs, tasks, adapted, config, seed, pooled=pooled, reference=reference, oracles=oracles
        )
        for run, table in zip(runs, tables, strict=True):
            table.save(gaps_file(run.path, name))
        return tables
    finally:
        release_runs(runs)


def solve_cells(runs: Sequence[EvaluableRun], plan: Plan, num_workers: int, console: Console) -> None:
    """The part of `evaluate_in_parallel` that each run has for itself, into its folder; locks as there."""
    try:
        stores = plan.part_stores(runs)
        if jobs := [job for store in stores for job in _adapted_jobs(store, plan, console)]:
            run_jobs(jobs, num_workers, console)
    finally:
        release_runs(runs)


def _keys(run: EvaluableRun, tasks: TaskList) -> list[tuple[int, ...]]:
    return unit_keys(run.family.box.to_unit(tasks.psi))


def _adapted_jobs(store: PartStore, plan: Plan, console: Console) -> list[Job]:
    """What is left to do for a run, or for its oracle."""
    run, of_oracle = store.run, store.of_oracle
    config, keys = plan.config_of(of_oracle), _keys(run, plan.tasks)
    psi_of = dict(zip(keys, plan.tasks.psi.tolist(), strict=True))
    missing = store.missing(keys, config.num_policy_seeds)
    for note in store.notes:
        console.print(note, style="yellow")
    if 0 < len(missing) < len(keys) * config.num_policy_seeds:
        whose = "the oracle of " if of_oracle else ""
        console.print(f"{whose}{run.path}: {len(missing)} cells are left")
    name = f"{'A_oracle' if of_oracle else 'A_n'} of {run.path.name}"
    jobs = []
    for policy_seed in range(config.num_policy_seeds):
        psi = [psi_of[k] for k, r in missing if r == policy_seed]
        for i in range(0, len(psi), config.tasks_per_batch):
            batch = psi[i : i + config.tasks_per_batch]
            arguments = (plan, run.path, batch, policy_seed, of_oracle)
            jobs.append(Job(name, adapted_job, arguments, run.num_steps(config)))
    return jobs


def adapted_job(
    plan: Plan,
    path: Path,
    psi: list[list[float]],
    policy_seed: int,
    of_oracle: bool,
    reporter: Reporter,
) -> None:
    """`adapt_and_score` of a run folder, or of its oracle, for one policy seed, into its `PartStore`."""
    run, config = _opened_again(plan.load, path), plan.config_of(of_oracle)
    batch = torch.tensor(psi, dtype=plan.tasks.psi.dtype)
    adapted = adapt_and_score(
        run.family,
        (run.oracle if of_oracle else run.adapter)(config, reporter=reporter),
        batch,
        config,
        plan.seed,
        policy_seeds=[policy_seed],
        allow_outside=plan.tasks.allow_outside,
        reporter=reporter,
    )
    store = plan.part_store(run, of_oracle=of_oracle)
    store.save(unit_keys(run.family.box.to_unit(batch)), policy_seed, adapted)


def _opened_again(load: Load, path: Path) -> EvaluableRun:
    """A run in a worker; what the user should know about it was said when it was first opened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load(path)


# -- the built-in reference run ---------------------------------------------------------------------------------


def _pooled_file(runs: Sequence[EvaluableRun], plan: Plan) -> Path:
    """Where its episodes are kept: in the first run's folder, named after what they depend on."""
    config = plan.config
    of_model: dict[Path, EvaluableRun] = {}  # the run itself before others that use its model
    for run in sorted(runs, key=lambda run: str(run.path)):
        if (source := run.model_source) is not None:
            of_model.setdefault(Path(source.path).absolute(), run)
    learners = list(of_model.values())
    settings = [run.fingerprint(replace(config, num_stages=0), plan.seed) for run in learners]
    names = ("num_policy_seeds", "num_reference_stages", "num_reference_samples", "num_reference_updates")
    key = digest([settings, {n: getattr(config, n) for n in names}, plan.tasks.psi.tolist()])
    return learners[0].path / FOLDER / f"reference-{key}.part"


def _pooled_jobs(file: Path, runs: Sequence[EvaluableRun], plan: Plan, console: Console) -> list[Job]:
    """The reference run, if it is not there; says so if it was, and is damaged."""
    if file.exists():
        try:
            _read_pooled(file, len(plan.tasks.psi), plan.config)
            return []
        except DamagedFileError as error:
            console.print(f"{error}; the reference run is done again", style="yellow")
    num_steps = num_pooled_steps(model_sources(runs)[0], plan.config)
    return [Job("reference A*", pooled_job, (plan, [run.path for run in runs], file), num_steps)]


def pooled_job(plan: Plan, paths: list[Path], file: Path, reporter: Reporter) -> None:
    """`pooled_reference` of run folders, into a file."""
    sources = model_sources([_opened_again(plan.load, path) for path in paths])
    pooled = pooled_reference(sources, plan.tasks, plan.config, plan.seed, reporter=reporter)
    make_folder(file.parent)
    episodes = torch.from_numpy(np.ascontiguousarray(pooled.episode_return))
    write_sealed(file, {"episode_return": episodes}, {"real_samples": pooled.real_samples})


def _read_pooled(file: Path, num_tasks: int, config: EvaluationConfig) -> PooledReference:
    """What `pooled_job` wrote; files of earlier versions do not say how many samples there were.

    Raises:
        DamagedFileError: says what is wrong.
    """
    tensors, meta, _ = read_sealed(file)
    try:
        shape = (config.num_policy_seeds, num_tasks, config.num_episodes)
        episodes = check_tensor(tensors, "episode_return", shape, torch.float64)
    except ValueError as error:
        raise DamagedFileError(f"{file}: {error}") from error
    drawn = meta.get("real_samples")
    return PooledReference(episodes.numpy(), drawn if type(drawn) is int else None)
