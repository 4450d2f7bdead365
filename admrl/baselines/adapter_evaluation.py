"""A_n and gaps of any adapter: the evaluator that owns the simulator and the sample counter.

    begin                                                A_0 = return of adapted()
    for every stage: until n samples are counted
      explore -> real episodes -> observe                A_n = return of adapted()

Start states and action noise of the scoring depend on the evaluation's seed and the task alone, as in
`admrl.evaluation.score`: every method is given the same. Exploration depends on the policy seed, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import episode_returns
from admrl.baselines.adapter import (
    Act,
    Adapter,
    AdapterError,
    Experience,
    Policy,
    Tasks,
    check_sees,
    describe_sees,
)
from admrl.config import EvaluationConfig, check_config, check_lanes
from admrl.evaluation import GapTable, best_known_returns, task_generators
from admrl.protocol import COUNTS, PROBE_LANES, Adapted, joined
from admrl.reference import Reference
from admrl.reporting import Reporter, Silent
from admrl.run_store import versions
from admrl.test_sets import TaskList, grid_tasks
from admrl.virtual_training import gaussian_noise
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect

SCORING, LATENTS = 2, 4  # purposes of generators, added to the seed


@torch.no_grad()
def adapt_and_score(
    family: TaskFamily,
    adapter: Adapter,
    psi: Tensor,
    config: EvaluationConfig,
    seed: int,
    *,
    policy_seeds: Sequence[int] | None = None,
    allow_outside: bool = False,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> Adapted:
    """A_n of M tasks and R policy seeds of any adapter, all in one batch; see the head of this page.

    Args:
        psi: (M, k)
        config: its stages, stage samples, episodes and policy seeds.
        policy_seeds: which ones; all of the configuration by default.

    Raises:
        AdapterError: the adapter broke the protocol; says how.
        ValueError: psi has the wrong shape or is outside the box, or impossible counts.
    """
    check_sees(adapter)
    check_counts(config, family)
    psi = family.box.check(psi, allow_outside=allow_outside)
    chosen = range(config.num_policy_seeds) if policy_seeds is None else policy_seeds
    rows, unit = psi.repeat(len(chosen), 1), family.box.to_unit(psi)  # (R M, k), seed-major
    counts = tuple(stage * config.num_stage_samples for stage in range(config.num_stages + 1))
    tasks = Tasks(
        family=family,
        sample_counts=counts,
        generators=task_generators(seed, chosen, unit),
        sees=adapter.sees,
        fresh_generators=lambda purpose: task_generators(seed + purpose, chosen, unit),
        all_psi=rows,
        allow_outside=allow_outside,
    )
    adapter.begin(tasks)
    scores, spent = [], []
    for before, n in zip((0, *counts), counts, strict=False):
        _adapt(adapter, tasks, before, n, num_threads, reporter or Silent())
        scores.append(
            score_policy(family, adapter.adapted(), rows, chosen, config.num_episodes, seed, num_threads)
        )
        spent.append(_spent(adapter, len(rows)))
    first = scores[0][1].tasks(slice(0, len(psi))).lanes(slice(0, PROBE_LANES))
    shape = (len(chosen), len(psi), len(counts))
    columns = {
        "adaptation": np.broadcast_to(counts, (len(rows), len(counts))),
        "scoring": np.broadcast_to(
            np.arange(1, len(counts) + 1) * config.num_episodes * family.horizon, (len(rows), len(counts))
        ),
        "held_out": np.stack([s["held_out"] for s in spent], axis=1),
        "virtual": np.stack([s["virtual"] for s in spent], axis=1),
    }
    return Adapted(
        episode_return=np.stack([s[0] for s in scores], axis=1).reshape(*shape, config.num_episodes),
        counts=np.stack([columns[name] for name in COUNTS], axis=-1).reshape(*shape, len(COUNTS)),
        probe=torch.cat([first.obs, first.act, first.next_obs], dim=-1).flatten(1, 2).numpy(),
    )


def _adapt(
    adapter: Adapter, tasks: Tasks, num_seen: int, n: int, num_threads: int, reporter: Reporter
) -> None:
    """Real episodes until n samples of every task are counted."""
    family = tasks.family
    if num_seen < n:
        reporter.phase(
            f"{adapter.name}: adaptation to n = {n}, {len(tasks)} tasks", (n - num_seen) // family.horizon
        )
    while num_seen < n:
        exploration = adapter.explore()
        num_samples = exploration.num_episodes * family.horizon
        if exploration.num_episodes < 1 or num_seen + num_samples > n:
            raise AdapterError(
                f"{adapter.name}: explore() asked for {exploration.num_episodes} episodes ({num_samples} samples) of "
                f"each task, but {n - num_seen} samples are left until n = {n}; ask for 1 to "
                f"{(n - num_seen) // family.horizon} (Tasks.sample_counts says when the policies are scored)"
            )
        shape = (len(tasks), exploration.num_episodes)
        noise = _noise(shape, family, tasks.generators)
        act = exploration.policy.actor(noise, tasks.generators)
        rollout = _rollout(family, tasks.all_psi, shape, act, tasks.generators, num_threads)
        adapter.observe(Experience(rollout, _reward(tasks, rollout)))
        num_seen += num_samples
        reporter.advance(real_samples=num_seen * len(tasks))


def _reward(tasks: Tasks, rollout: Rollout) -> Tensor | None:
    """(M, N, T) for adapters that declare rewards."""
    if "rewards" not in tasks.sees:
        return None
    psi = tasks.all_psi.to(rollout.obs)[:, None, None]
    return tasks.family.reward(psi, rollout.obs, rollout.act, rollout.next_obs)


def score_policy(
    family: TaskFamily,
    policy: Policy,
    psi: Tensor,
    policy_seeds: Sequence[int],
    num_episodes: int,
    seed: int,
    num_threads: int = 1,
) -> tuple[np.ndarray, Rollout]:
    """Undiscounted returns (rows, N) of policies on tasks psi (rows, k), seed-major, and their rollout.

    Start states and noise as in `admrl.evaluation.score`; what a policy draws otherwise depends on its seed, too.
    """
    unit = family.box.to_unit(psi)
    generators = task_generators(seed + SCORING, 1, unit)
    shape = (len(psi), num_episodes)
    noise = _noise(shape, family, generators)
    latents = task_generators(seed + LATENTS, policy_seeds, unit[: len(psi) // len(policy_seeds)])
    rollout = _rollout(family, psi, shape, policy.actor(noise, latents), generators, num_threads)
    return episode_returns(family, psi, rollout).double().numpy(), rollout


def _noise(shape: tuple[int, int], family: TaskFamily, generators: Sequence[torch.Generator]) -> Tensor:
    return gaussian_noise(shape, family.horizon, family.act_size, generators, torch.zeros(()))


def _rollout(
    family: TaskFamily,
    psi: Tensor,
    shape: tuple[int, int],
    act: Act,
    generators: Sequence[torch.Generator],
    num_threads: int,
) -> Rollout:
    """One horizon in every lane; every action is checked before it reaches the simulator."""

    def checked(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        action = act(t, obs)
        expected = (*shape, family.act_size)
        if tuple(action.shape) != expected:
            raise AdapterError(f"policy: expected actions of shape {expected}, got {tuple(action.shape)}")
        if not bool(action.isfinite().all()):
            task = int((~action.isfinite()).flatten(1).any(1).nonzero()[0])
            raise AdapterError(
                f"policy: its actions for task {task} ({psi[task].tolist()}) are not finite at step {t}; "
                "check its weights and the normalisation of its observations"
            )
        return action, action.new_full(shape, torch.nan)

    simulator = family.make_simulator(shape, num_threads=num_threads, psi=psi)
    return collect(simulator, family, checked, family.horizon, generators)


def _spent(adapter: Adapter, num_rows: int) -> dict[str, np.ndarray]:
    spent = adapter.spent()
    return {
        name: np.broadcast_to(np.asarray(spent.get(name, 0), dtype=int), (num_rows,)).copy()
        for name in ("held_out", "virtual")
    }


def check_counts(config: EvaluationConfig, family: TaskFamily) -> None:
    """Refuse impossible counts of an evaluation before any work.

    Raises:
        ValueError: names the setting.
    """
    check_config(config)
    if config.num_stages:
        check_lanes("config.num_stage_samples", config.num_stage_samples, family.horizon)
    if config.num_episodes < 2:
        raise ValueError("config.num_episodes: expected at least 2 (A* is chosen on one half), got 1")


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
        reference: A*; None: the best that any of the adapters reached, which is a bound from below.

    Raises:
        ValueError: no adapter, two of one name, impossible counts, or tasks without a reference.
        AdapterError: see `adapt_and_score`.
    """
    names = [adapter.name for adapter in adapters]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"adapters: expected at least one, each with a name of its own; got {names}")
    chosen = tasks if isinstance(tasks, TaskList) else grid_tasks(family, tasks)
    if reference is not None:
        reference.optimal_returns(family, chosen.psi)  # refuses before any work
    adapted = []
    for adapter in adapters:
        batches = chosen.psi.split(config.tasks_per_batch)
        parts = [
            adapt_and_score(
                family,
                adapter,
                batch,
                config,
                seed,
                allow_outside=chosen.allow_outside,
                num_threads=num_threads,
                reporter=reporter,
            )
            for batch in batches
        ]
        adapted.append(joined(parts))
    if reference is not None:
        optimal, source = reference.optimal_returns(family, chosen.psi)
        origin: dict[str, Any] = {"kind": "file", "digest": reference.digest, "revision": reference.revision}
    else:
        candidates = {
            f"{name}, n = {j * config.num_stage_samples}": a.episode_return[:, :, j]
            for name, a in zip(names, adapted, strict=True)
            for j in range(config.num_stages + 1)
        }
        optimal, source = best_known_returns(candidates)
        origin = {"kind": "best of the methods evaluated together", "methods": sorted(names)}
    return [
        adapter_table(family, adapter, chosen, a, config, seed, optimal, source, {"reference": origin})
        for adapter, a in zip(adapters, adapted, strict=True)
    ]


def adapter_table(
    family: TaskFamily,
    adapter: Adapter,
    tasks: TaskList,
    adapted: Adapted,
    config: EvaluationConfig,
    seed: int,
    optimal: np.ndarray,
    source: tuple[str, ...],
    extra: dict[str, Any],
) -> GapTable:
    """The table of one adapter."""
    box = family.box
    return GapTable(
        method=adapter.name,
        family=family.name,
        variant=family.variant,
        task_names=box.names,
        task_units=box.units,
        psi=tasks.psi.double().numpy(),
        num_samples=np.arange(config.num_stages + 1) * config.num_stage_samples,
        episode_return=adapted.episode_return,
        optimal_return=optimal,
        optimal_source=source,
        grid_shape=tasks.grid_shape,
        test_set=tasks.name,
        provenance={
            "selector": adapter.name,
            "sees": describe_sees(adapter.sees),
            "seed": 0,
            "training_real_samples": 0,
            "training_virtual_samples": 0,
            "evaluation": asdict(config),
            "evaluation_seed": seed,
            "samples": {n: adapted.counts[..., i].sum((0, 1)).tolist() for i, n in enumerate(COUNTS)},
            "scoring_real_samples": adapted.episode_return.size * family.horizon,
            "evaluation_virtual_samples": int(adapted.counts[:, :, -1, COUNTS.index("virtual")].sum()),
            "reference_real_samples": 0,
            "versions": versions(),
            **extra,
            **adapter.provenance(),
        },
        box=np.stack([box.low.double().numpy(), box.high.double().numpy()]),
    )
