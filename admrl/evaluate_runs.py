"""Evaluating run folders on a common set of tasks with a common A*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admrl.any_run import AnyRun, load_any_run
from admrl.baselines.adapter import describe_sees
from admrl.baselines.adapter_evaluation import adapt_and_score, check_counts
from admrl.baselines.baseline_run import BaselineRun
from admrl.config import EvaluationConfig, check_config
from admrl.evaluation import GapTable, best_known_returns, check_evaluation
from admrl.evaluation_store import FOLDER, PartStore, part_settings
from admrl.files import DamagedFileError, make_folder
from admrl.protocol import COUNTS, Adapted, adapted_returns, joined, model_errors, probe_scale
from admrl.reference import Reference, reference_returns
from admrl.reporting import Reporter
from admrl.run_store import Run, provenance, versions
from admrl.sealed_file import check_tensor, read_sealed, write_sealed
from admrl.test_sets import TaskList, digest, grid_tasks, unit_keys


def evaluate_gaps(
    runs: Sequence[AnyRun],
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
    adapted = []
    for run in runs:
        batches = tasks.psi.split(config.tasks_per_batch)
        parts = [
            run_adapted(run, batch, tasks, config, seed, num_threads=num_threads, reporter=reporter)
            for batch in batches
        ]
        adapted.append(joined(parts))
    pooled = None
    if reference is None:
        pooled = run_reference(runs, tasks, config, seed, num_threads=num_threads, reporter=reporter)
    return gap_tables(runs, tasks, adapted, pooled, config, seed, reference=reference)


def check_runs(
    runs: Sequence[AnyRun],
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
        if isinstance(run, BaselineRun):
            check_counts(config, run.family)
        else:
            check_evaluation(config, run.family, run.info.config.dynamics.num_members)
    chosen = tasks if isinstance(tasks, TaskList) else grid_tasks(first.family, tasks)
    first.family.box.check(chosen.psi, allow_outside=chosen.allow_outside)
    if reference is not None:
        reference.optimal_returns(first.family, chosen.psi)
    elif config.num_reference_stages:
        learners = model_runs(runs)
        if not learners:
            raise ValueError(
                "no A*: the built-in reference run needs the model of a run of `admrl train`, and none is given. "
                f"Make a reference with `admrl reference --family {first.info.family}` and pass --reference FILE, or "
                "evaluate together with such a run, or take the best of these methods: "
                "--config.num-reference-stages 0"
            )
        for run in learners:
            if _architecture(run) != _architecture(learners[0]):
                raise ValueError(
                    f"{learners[0].path} and {run.path} have different models or policies, so they cannot share the "
                    "built-in reference run; make one with `admrl reference` and pass --reference FILE, or set "
                    "--config.num-reference-stages 0"
                )
    return chosen


def model_runs(runs: Sequence[AnyRun]) -> list[Run]:
    """Those of `admrl train`, which have a model that a reference run can use."""
    return [run for run in runs if not isinstance(run, BaselineRun)]


def run_adapted(
    run: AnyRun,
    psi: torch.Tensor,
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    *,
    policy_seeds: Sequence[int] | None = None,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> Adapted:
    """`adapted_returns` of a run on some of the tasks; a baseline's through its adapter."""
    if isinstance(run, BaselineRun):
        return adapt_and_score(
            run.family,
            run.adapter(),
            psi,
            config,
            seed,
            policy_seeds=policy_seeds,
            allow_outside=tasks.allow_outside,
            num_threads=num_threads,
            reporter=reporter,
        )
    return adapted_returns(
        run.family,
        run.state.learner,
        run.policy,
        psi,
        run.info.config.virtual,
        config,
        seed,
        policy_seeds=policy_seeds,
        allow_outside=tasks.allow_outside,
        num_threads=num_threads,
        reporter=reporter,
    )


def run_reference(
    runs: Sequence[AnyRun],
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> np.ndarray | None:
    """Episodes (1, M, N) of the reference run on the data of all runs, or None if it is switched off.

    It does not depend on the order of the runs.
    """
    if config.num_reference_stages == 0:
        return None
    learners = sorted(model_runs(runs), key=lambda run: str(run.path))
    return reference_returns(
        learners[0].family,
        [run.state.learner for run in learners],
        learners[0].policy,
        tasks.psi,
        learners[0].info.config.virtual,
        config,
        seed,
        allow_outside=tasks.allow_outside,
        num_threads=num_threads,
        reporter=reporter,
    )


def gap_tables(
    runs: Sequence[AnyRun],
    tasks: TaskList,
    adapted: Sequence[Adapted],
    pooled: np.ndarray | None,
    config: EvaluationConfig,
    seed: int,
    *,
    reference: Reference | None = None,
) -> list[GapTable]:
    """One table per run from the episodes of all candidates; see `evaluate_gaps`."""
    family, horizon, num_tasks = runs[0].family, runs[0].family.horizon, len(tasks.psi)
    if reference is not None:
        optimal, source = reference.optimal_returns(family, tasks.psi)
        origin: dict[str, Any] = {
            "kind": "file",
            "digest": reference.digest,
            "revision": reference.revision,
            "methods": sorted({c.method for c in reference.candidates}),
            "num_candidates": len(reference.candidates),
            **reference.notes,
        }
        reference_samples = _file_samples(reference)
    else:
        candidates = {
            _stage_name(run, a, j): a.episode_return[:, :, j]
            for run, a in zip(runs, adapted, strict=True)
            for j in range(a.episode_return.shape[2])
        }
        if pooled is not None:
            candidates["reference: SLBO on all tasks"] = pooled
        optimal, source = best_known_returns(candidates)
        origin = {
            "kind": "best of the runs evaluated together",
            "runs": sorted(str(run.path) for run in runs),
        }
        stages = config.num_reference_stages if pooled is not None else 0
        reference_samples = num_tasks * stages * config.num_reference_samples
    probe = torch.from_numpy(np.concatenate([a.probe for a in adapted], axis=1))  # (M, runs x P, .)
    scale = probe_scale(probe, family.obs_size)
    origin_of_probe = digest([*sorted(str(run.path) for run in runs), seed, tasks.name])
    labels = method_labels(runs)
    box = np.stack([family.box.low.double().numpy(), family.box.high.double().numpy()])
    return [
        GapTable(
            method=label,
            family=run.info.family,
            variant=run.info.variant,
            task_names=family.box.names,
            task_units=family.box.units,
            psi=tasks.psi.double().numpy(),
            num_samples=np.arange(config.num_stages + 1) * config.num_stage_samples,
            episode_return=a.episode_return,
            optimal_return=optimal,
            optimal_source=source,
            grid_shape=tasks.grid_shape,
            visited_psi=_visited(run),
            test_set=tasks.name,
            box=box,
            model_error=None
            if isinstance(run, BaselineRun)
            else model_errors(run.state.learner.model, probe, scale),
            provenance=_provenance(
                run,
                evaluation=asdict(config),
                evaluation_seed=seed,
                evaluation_key=digest(part_settings(run, config, seed)),
                samples={  # of all tasks and policy seeds together, up to each n
                    name: a.counts[..., i].sum((0, 1)).tolist() for i, name in enumerate(COUNTS)
                },
                scoring_real_samples=a.episode_return.size * horizon,
                evaluation_virtual_samples=int(a.counts[:, :, -1, COUNTS.index("virtual")].sum()),
                reference=origin,
                reference_real_samples=reference_samples,
                model_error_sample=origin_of_probe,
            ),
        )
        for run, a, label in zip(runs, adapted, labels, strict=True)
    ]


def _visited(run: AnyRun) -> np.ndarray | None:
    """Tasks of the training, in order; a baseline trains on all of its tasks at once."""
    if isinstance(run, BaselineRun):
        return None
    return np.array([record.psi for record in run.state.records])


def _provenance(run: AnyRun, **extra: Any) -> dict[str, Any]:
    if isinstance(run, BaselineRun):
        sees = describe_sees(run.adapter().sees)
        return {**run.provenance(), "versions": versions(), "sees": sees, **extra}
    return provenance(run, sees=describe_sees(("psi", "reward function")), **extra)


def method_labels(runs: Sequence[AnyRun]) -> list[str]:
    """The shortest names that tell the runs apart: selector, selector and seed, or the folder."""
    short = [run.info.selector for run in runs]
    long = [f"{run.info.selector}, seed {run.info.seed}" for run in runs]
    return [
        s if short.count(s) == 1 else l if long.count(l) == 1 else str(run.path)
        for s, l, run in zip(short, long, runs, strict=True)
    ]


def _stage_name(run: AnyRun, adapted: Adapted, j: int) -> str:
    return str(run.path) if adapted.episode_return.shape[2] == 1 else f"{run.path}, stage {j}"


def _file_samples(reference: Reference) -> int:
    """Real samples behind a reference file: the largest count of every training; slbo trains all tasks together."""
    trainings: dict[tuple[Any, ...], int] = {}
    for c in reference.candidates:
        key = (c.method, c.seed, digest(c.settings), c.psi if c.method == "sac" else None)
        trainings[key] = max(trainings.get(key, 0), c.real_samples)
    return sum(trainings.values())


def _architecture(run: Run) -> tuple[Any, ...]:
    config = run.info.config
    return config.dynamics, config.virtual, config.policy_hidden_sizes, config.fixed_log_std


# -- the same as jobs for other processes, which leave their results in the run folders ---------------------


def adapted_job(
    path: Path,
    psi: list[list[float]],
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    policy_seed: int,
    reporter: Reporter,
) -> None:
    """`run_adapted` of a run folder for one policy seed, into its `PartStore`."""
    run = load_any_run(path)
    batch = torch.tensor(psi, dtype=tasks.psi.dtype)
    adapted = run_adapted(run, batch, tasks, config, seed, policy_seeds=[policy_seed], reporter=reporter)
    PartStore(run, config, seed).save(unit_keys(run.family.box.to_unit(batch)), policy_seed, adapted)


def reference_file(runs: Sequence[AnyRun], tasks: TaskList, config: EvaluationConfig, seed: int) -> Path:
    """Where the episodes of `run_reference` are kept: in the first run's folder, named after what they depend on."""
    learners = sorted(model_runs(runs), key=lambda run: str(run.path))
    settings = [part_settings(run, replace(config, num_stages=0), seed) for run in learners]
    names = ("num_reference_stages", "num_reference_samples", "num_reference_updates")
    key = digest([settings, {n: getattr(config, n) for n in names}, tasks.psi.tolist()])
    return learners[0].path / FOLDER / f"reference-{key}.part"


def reference_job(
    paths: list[Path], tasks: TaskList, config: EvaluationConfig, seed: int, reporter: Reporter
) -> None:
    """`run_reference` of run folders, into `reference_file`."""
    runs = [load_any_run(p) for p in paths]
    episodes = run_reference(runs, tasks, config, seed, reporter=reporter)
    assert episodes is not None
    file = reference_file(runs, tasks, config, seed)
    make_folder(file.parent)
    write_sealed(file, {"episode_return": torch.from_numpy(np.ascontiguousarray(episodes))}, {})


def load_reference_episodes(file: Path, num_tasks: int, num_episodes: int) -> np.ndarray:
    """What `reference_job` wrote: (1, M, N).

    Raises:
        DamagedFileError: says what is wrong.
    """
    tensors, _, _ = read_sealed(file)
    try:
        shape = (1, num_tasks, num_episodes)
        return check_tensor(tensors, "episode_return", shape, torch.float64).numpy()
    except ValueError as error:
        raise DamagedFileError(f"{file}: {error}") from error
