"""A_n of any adapter: the evaluator that owns the simulator and the sample counter.

    begin                                                A_0 = return of adapted()
    for every stage: until n samples are counted
      explore -> real episodes -> observe                A_n = return of adapted()

Every method is judged here, our own included. Exploration and scoring depend on the evaluation's seed, the task and
the policy seed (`admrl.evaluation.scoring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import (
    Adapter,
    AdapterError,
    Experience,
    Tasks,
    check_sees,
    describe_sees,
    tasks_for,
)
from admrl.evaluation.scoring import (
    action_noise,
    check_counts,
    score_policy,
    simulate,
)
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.rollouts import rewards
from task_families.family import TaskFamily
from task_families.rollout import Rollout

COUNTS = ("adaptation", "held_out", "scoring", "virtual")
PROBE_LANES = 2  # scoring episodes per task whose transitions all models are tested on


@dataclass(frozen=True, eq=False)
class Adapted:
    """Returns and costs of R policy seeds on M tasks at J sample counts."""

    episode_return: np.ndarray  # (R, M, J, N) undiscounted, N episodes
    counts: (
        np.ndarray
    )  # (R, M, J, 4) samples of each kind of COUNTS, since the start, per task and policy seed
    probe: np.ndarray  # (M, P, 2 S + A) real (obs, act, next_obs) of the first seed's zero-shot policies


def joined(parts: Sequence[Adapted]) -> Adapted:
    """Batches of tasks put together again."""
    return Adapted(
        np.concatenate([p.episode_return for p in parts], axis=1),
        np.concatenate([p.counts for p in parts], axis=1),
        np.concatenate([p.probe for p in parts]),
    )


def evaluate_adapter(
    family: TaskFamily,
    adapter: Adapter,
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> Adapted:
    """`adapt_and_score` of a list of tasks, config.tasks_per_batch at a time."""
    return joined(
        [
            adapt_and_score(
                family,
                adapter,
                batch,
                config,
                seed,
                allow_outside=tasks.allow_outside,
                num_threads=num_threads,
                reporter=reporter,
            )
            for batch in tasks.psi.split(config.tasks_per_batch)
        ]
    )


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
    dtype: torch.dtype = torch.float32,
    reporter: Reporter | None = None,
) -> Adapted:
    """A_n of M tasks and R policy seeds of any adapter, all in one batch; see the head of this page.

    Args:
        psi: (M, k)
        config: its stages, stage samples, episodes and policy seeds.
        policy_seeds: which ones; all of the configuration by default.
        dtype: of observations and noise.

    Raises:
        AdapterError: the adapter broke the protocol; says how.
        ValueError: psi has the wrong shape or is outside the box, or impossible counts.
    """
    check_sees(adapter)
    check_counts(config, family)
    psi = family.box.check(psi, allow_outside=allow_outside)
    chosen = range(config.num_policy_seeds) if policy_seeds is None else policy_seeds
    rows = psi.repeat(len(chosen), 1)  # (R M, k), seed-major
    counts = tuple(stage * config.num_stage_samples for stage in range(config.num_stages + 1))
    sees = frozenset(adapter.sees)
    tasks = tasks_for(
        family, psi, sees, seed, policy_seeds=chosen, sample_counts=counts, allow_outside=allow_outside
    )
    adapter.begin(tasks)
    returns, costs = [], []
    for before, n in zip((0, *counts), counts, strict=False):
        _adapt(family, adapter, rows, tasks, sees, before, n, num_threads, dtype, reporter or Silent())
        scored, rollout = score_policy(
            family,
            adapter.adapted(),
            rows,
            chosen,
            config.num_episodes,
            seed,
            num_threads=num_threads,
            dtype=dtype,
            sees=sees,
        )
        if n == 0:
            probe = _probe(rollout, len(psi))
        returns.append(scored)
        num_scored = len(returns) * config.num_episodes * family.horizon
        costs.append(_costs(adapter, len(rows), n, num_scored))
    if frozenset(adapter.sees) != sees:
        raise AdapterError(
            f"{adapter.name}: sees: it declared {describe_sees(sees)} when it began and "
            f"{describe_sees(adapter.sees)} afterwards; declare once what it sees"
        )
    shape = (len(chosen), len(psi), len(counts))
    return Adapted(
        episode_return=np.stack(returns, axis=1).reshape(*shape, config.num_episodes),
        counts=np.stack(costs, axis=1).reshape(*shape, len(COUNTS)),
        probe=probe,
    )


def _adapt(
    family: TaskFamily,
    adapter: Adapter,
    psi: Tensor,
    tasks: Tasks,
    sees: frozenset[str],
    num_seen: int,
    n: int,
    num_threads: int,
    dtype: torch.dtype,
    reporter: Reporter,
) -> None:
    """Real episodes until n samples of every task are counted."""
    if num_seen < n:
        reporter.phase(f"{adapter.name}: adaptation to n = {n}, {len(tasks)} policies")
    while num_seen < n:
        exploration = adapter.explore()
        num_samples = exploration.num_episodes * family.horizon
        if exploration.num_episodes < 1 or num_seen + num_samples > n:
            raise AdapterError(
                f"{adapter.name}: explore() asked for {exploration.num_episodes} episodes ({num_samples} samples) of "
                f"each task, but {n - num_seen} samples are left until n = {n}; ask for 1 to "
                f"{(n - num_seen) // family.horizon} (Tasks.sample_counts says when the policies are scored)"
            )
        shape, generators = (len(tasks), exploration.num_episodes), tasks.generators
        act = exploration.policy.actor(action_noise(family, shape, generators, dtype), generators)
        rollout = simulate(family, psi, shape, act, generators, num_threads, dtype, sees=sees)
        reward = rewards(family, psi, rollout) if "rewards" in sees else None
        adapter.observe(Experience(rollout, reward))
        num_seen += num_samples
        reporter.advance(real_samples=num_seen * len(tasks))


def _costs(adapter: Adapter, num_rows: int, n: int, num_scored: int) -> np.ndarray:
    """Samples of every kind of COUNTS (rows, 4), per task and policy seed, since the start."""
    spent = {"adaptation": n, "scoring": num_scored, **adapter.spent()}
    columns = [np.asarray(spent.get(name, 0), dtype=int) for name in COUNTS]
    return np.stack([np.broadcast_to(column, (num_rows,)) for column in columns], axis=-1)


def _probe(rollout: Rollout, num_tasks: int) -> np.ndarray:
    """(M, P, 2 S + A): transitions of the first policy seed, which models are tested on."""
    first = rollout.tasks(slice(0, num_tasks)).lanes(slice(0, PROBE_LANES))
    return torch.cat([first.obs, first.act, first.next_obs], dim=-1).flatten(1, 2).numpy()
