"""Scores of policies in the true simulator, and A*, the best known of them.

Start states and action noise of the scoring depend on the evaluation's seed and the task alone: every method is given
the same. What a policy draws beyond that noise depends on its policy seed, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.checks import check_config, check_lanes
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Act, AdapterError, Policy
from admrl.solving.rollouts import episode_returns, gaussian_noise
from admrl.streams import Purpose, task_streams
from task_families.choices import whole_number
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect

NUM_FOLDS = 4  # of the episodes, in `best_known_returns`


def score_policy(
    family: TaskFamily,
    policy: Policy,
    psi: Tensor,
    policy_seeds: Sequence[int],
    num_episodes: int,
    seed: int,
    *,
    num_threads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, Rollout]:
    """Undiscounted returns (R M, N) of policies on tasks psi (R M, k), seed-major, and their rollout.

    A simulation that becomes unstable makes its return nan.

    Args:
        policy: M policies; with R policy seeds it acts for R M rows.
        dtype: of observations and noise; that of the policies.
    """
    unit = family.box.to_unit(psi)
    generators = task_streams(seed, Purpose.SCORING, 1, unit)
    shape = (len(psi), whole_number("num_episodes", num_episodes))
    noise = action_noise(family, shape, generators, dtype)
    latents = task_streams(seed, Purpose.LATENTS, policy_seeds, unit[: len(psi) // len(policy_seeds)])
    rollout = simulate(family, psi, shape, policy.actor(noise, latents), generators, num_threads, dtype)
    return episode_returns(family, psi, rollout).double().numpy(), rollout


def action_noise(
    family: TaskFamily,
    shape: tuple[int, int],
    generators: Sequence[torch.Generator],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What stochastic policies act with for one horizon: standard normal (T, M, N, A)."""
    return gaussian_noise(shape, family.horizon, family.act_size, generators, torch.zeros((), dtype=dtype))


def simulate(
    family: TaskFamily,
    psi: Tensor,
    shape: tuple[int, int],
    act: Act,
    generators: Sequence[torch.Generator],
    num_threads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Rollout:
    """One horizon in every lane; every action is checked before it reaches the simulator.

    Raises:
        AdapterError: actions of another shape, or not finite; names the task and the step.
    """

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

    simulator = family.make_simulator(shape, num_threads=num_threads, dtype=dtype, psi=psi)
    return collect(simulator, family, checked, family.horizon, generators)


@dataclass(frozen=True, eq=False)
class BestKnown:
    """A* of M tasks: the best return that any candidate reached."""

    returns: np.ndarray  # (M,)
    source: tuple[str, ...]  # (M,) which candidate gave each
    origin: dict[str, Any]
    """What the candidates were, for the provenance."""
    real_samples: int | None
    """That they were trained on, beyond the methods' own; None: not known."""


def best_known_returns(candidates: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A* (M,) and where each value comes from.

    Cross-fitted: the episodes are dealt into four folds; the policy that counts in a fold is the best one of the
    other three. So the luck of the choice is not counted, and A* covers the same start states as every A_n. (Two
    halves are not enough to choose by: a policy that rarely falls may not do so in one of them.)

    Args:
        candidates: name -> episodes (R, M, N) with N >= 2. Every policy seed is a candidate of its own.
    """
    names = [name for name, episodes in candidates.items() for _ in episodes]
    pool = np.concatenate(list(candidates.values()))  # (C, M, N)
    num_tasks, num_episodes = pool.shape[1:]
    tasks, broken = np.arange(num_tasks), np.isnan(pool).any(-1)
    folds = np.arange(num_episodes) % min(NUM_FOLDS, num_episodes)
    counted = np.empty((num_tasks, num_episodes))
    chosen = np.empty((num_tasks, num_episodes), dtype=int)
    for fold in np.unique(folds):
        here = folds == fold
        # a policy that broke down in any episode is never best
        best = np.where(broken, -np.inf, pool[:, :, ~here].mean(-1)).argmax(0)  # (M,)
        chosen[:, here] = best[:, None]
        counted[:, here] = pool[best, tasks][:, here]
    source = tuple(" / ".join(dict.fromkeys(names[c] for c in sorted(set(row)))) for row in chosen.tolist())
    return counted.mean(-1), source


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
