"""Scores of policies in the true simulator, and A*, the best known of them.

Start states and action noise of the scoring depend on the evaluation's seed, the policy seed and the task: every
method is given the same, and so is the reference run, which is scored once for every policy seed. So a policy seed is
one independent repetition of everything random in a gap, A*'s episodes included (`BestKnown.by_seed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.checks import check_config, check_lanes
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Act, AdapterError, Listener, Policy
from admrl.solving.hindsight import StoredCandidate
from admrl.solving.rollouts import episode_returns, gaussian_noise
from admrl.streams import Purpose, task_streams
from task_families.choices import whole_number
from task_families.family import TaskFamily
from task_families.rollout import OnStep, Rollout, collect

NUM_FOLDS = 4  # of the episodes, in `best_known`
BETWEEN = " / "  # the names of the candidates that A* of one task comes from
SCORING = 2
"""Version of what is scored: parts of evaluations that were scored otherwise are not mixed with these.
2: start states by policy seed."""


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
    sees: frozenset[str] = frozenset(),
) -> tuple[np.ndarray, Rollout]:
    """Undiscounted returns (R M, N) of policies on tasks psi (R M, k), seed-major, and their rollout.

    A simulation that becomes unstable makes its return nan. Start states and noise depend on a row's policy seed.

    Args:
        policy: M policies; with R policy seeds it acts for R M rows.
        dtype: of observations and noise; that of the policies.
        sees: what the method declares; see `simulate`.
    """
    unit = family.box.to_unit(psi[: len(psi) // len(policy_seeds)])
    generators, latents = (
        task_streams(seed, purpose, policy_seeds, unit) for purpose in (Purpose.SCORING, Purpose.LATENTS)
    )
    shape = (len(psi), whole_number("num_episodes", num_episodes))
    noise = action_noise(family, shape, generators, dtype)
    act = policy.actor(noise, latents)
    rollout = simulate(family, psi, shape, act, generators, num_threads, dtype, sees=sees)
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
    *,
    sees: frozenset[str] = frozenset(),
) -> Rollout:
    """One horizon in every lane; every action is checked before it reaches the simulator.

    Args:
        sees: what the method declares; a `Listener` is told rewards, and has to declare them.

    Raises:
        AdapterError: actions of another shape, or not finite; names the task and the step. A listener that does not
            declare rewards.
    """
    on_step = None
    if isinstance(act, Listener):
        if "rewards" not in sees:
            raise AdapterError(
                "policy: it listens to rewards while it acts (`hear`), but its method does not declare to see them; "
                "declare rewards in `sees`"
            )
        on_step = telling(family, psi, act)

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
    return collect(simulator, family, checked, family.horizon, generators, on_step=on_step)


def telling(family: TaskFamily, psi: Tensor, listener: Listener) -> OnStep:
    """What tells a listener the rewards of tasks psi (M, k), in a rollout of one horizon (`collect`)."""

    def on_step(t: int, obs: Tensor, act: Tensor, next_obs: Tensor, terminated: Tensor) -> None:
        reward = family.reward(psi.to(obs)[:, None], obs, act, next_obs)
        listener.hear(reward, terminated | (t + 1 == family.horizon))

    return on_step


def score_for_every_seed(
    family: TaskFamily,
    policy: Policy,
    psi: Tensor,
    num_policy_seeds: int,
    num_episodes: int,
    seed: int,
    *,
    num_threads: int = 1,
) -> np.ndarray:
    """Returns (R, M, N) of one policy for each task psi (M, k), on the start states and noise of R policy seeds."""
    scores = [
        score_policy(family, policy, psi, [r], num_episodes, seed, num_threads=num_threads)[0]
        for r in range(num_policy_seeds)
    ]
    return np.stack(scores)


@dataclass(frozen=True, eq=False)
class BestKnown:
    """A* of M tasks: the best return that any candidate reached."""

    returns: np.ndarray  # (M,)
    by_seed: np.ndarray
    """(R, M), with the mean `returns`: A* as each policy seed sees it. On the seed's own start states, where the
    candidate was simulated on them; else from a share of the candidate's episodes of its own. Either way the rows are
    independent, so that the spread of A* - A_n over the rows covers A*'s noise."""
    source: tuple[str, ...]  # (M,) which candidate gave each
    origin: dict[str, Any] = field(default_factory=dict)
    """What the candidates were, for the provenance."""
    real_samples: int | None = None
    """That they were trained on, beyond the methods' own; None: not known."""


def best_known_returns(candidates: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A* (M,) of candidates of their own start states, and where each value comes from; see `best_known`."""
    known = best_known(candidates)
    return known.returns, known.source


def best_known(
    own: dict[str, np.ndarray],
    shared: dict[str, np.ndarray] | None = None,
    num_policy_seeds: int = 1,
    *,
    stored: Sequence[StoredCandidate] = (),
) -> BestKnown:
    """A*, cross-fitted: the episodes are dealt into four folds; the policy that counts in a fold is the best one of
    the other three. So the luck of the choice is not counted. (Two halves are not enough to choose by: a policy that
    rarely falls may not do so in one of them.)

    A policy that was scored on the start states of one policy seed alone is compared with the first shared one on
    these, and counts as what it gained there, added to what the shared one reached on those of every seed; where that
    is the less noisy way (a control variate).

    Stored episodes of a training (`admrl.solving.hindsight`) are candidates without a sample: one half of them stands
    against the folds' best, and the other half counts.

    Args:
        own: name -> episodes (R', M, N) with N >= 2: a policy for every row, on start states of its row alone.
        shared: name -> episodes (R, M, N): a policy, or a method with one for every row, on the start states of every
            policy seed.
        num_policy_seeds: R
    """
    shared = shared or {}
    names = [name for name, episodes in own.items() for _ in episodes] + list(shared)
    alone, levels = _gained(own, shared, num_policy_seeds)  # (C', M, N), (C', R, M, N)
    everywhere = np.concatenate([levels, *(episodes[None] for episodes in shared.values())])  # (C, R, M, N)
    alone = np.concatenate([alone, np.zeros((len(shared), *alone.shape[1:]))])
    worth = alone + everywhere.mean(1)  # (C, M, N)
    _, num_tasks, num_episodes = worth.shape
    tasks, broken = np.arange(num_tasks), np.isnan(worth).any(-1)
    folds = np.arange(num_episodes) % min(NUM_FOLDS, num_episodes)
    chosen, rivals = np.empty((num_tasks, num_episodes), dtype=int), np.empty((num_tasks, num_episodes))
    for fold in np.unique(folds):
        here = folds == fold
        # a policy that broke down in any episode is never best
        score = np.where(broken, -np.inf, worth[:, :, ~here].mean(-1))  # (C, M)
        chosen[:, here], rivals[:, here] = score.argmax(0)[:, None], score.max(0)[:, None]
    at = tasks[:, None], np.arange(num_episodes)
    by = _stored_folds(stored, rivals, folds)  # (M, N) number of the stored candidate that counts, -1: none
    columns, sources = [], []
    for m, (reached, gained, is_alone) in enumerate(
        zip(everywhere[chosen, :, *at], alone[chosen, *at], chosen < len(levels), strict=True)
    ):
        usual = by[m] < 0
        column = np.zeros(num_policy_seeds)
        if usual.all():
            column = _by_seed(reached, gained, is_alone)
        elif usual.any():
            column += usual.mean() * _by_seed(reached[usual], gained[usual], is_alone[usual])
        for s, half in {*zip(by[m][~usual].tolist(), (folds % 2)[~usual].tolist(), strict=True)}:
            share = ((by[m] == s) & (folds % 2 == half)).mean()
            column += share * _shares(stored[s].episodes[half][m].numpy(), num_policy_seeds)
        columns.append(column)
        known = [names[c] for c in sorted(set(chosen[m][usual].tolist()))]
        known += [stored[s].name for s in sorted(set(by[m][~usual].tolist()))]
        sources.append(BETWEEN.join(dict.fromkeys(known)))
    by_seed = np.stack(columns, axis=1)
    return BestKnown(by_seed.mean(0), by_seed, tuple(sources))


def tasks_by_source(sources: Sequence[str], called: Callable[[str], str] = str) -> dict[str, float]:
    """How many of some tasks each candidate gave A* of, from `BestKnown.source`, most first; several share a task
    alike.

    Args:
        called: what a candidate is counted as, e.g. its method.
    """
    tasks: dict[str, float] = {}
    for source in sources:
        names = source.split(BETWEEN)
        for name in map(called, names):
            tasks[name] = tasks.get(name, 0.0) + 1 / len(names)
    return dict(sorted(tasks.items(), key=lambda item: -item[1]))


def _stored_folds(stored: Sequence[StoredCandidate], rivals: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Which stored candidate counts in every fold (M, N), as it is worth more than the rivals (M, N); -1: none."""
    by = np.full(rivals.shape, -1)
    if not stored:
        return by
    worth = np.stack([candidate.worth.numpy() for candidate in stored])  # (C, 2, M)
    for fold in np.unique(folds):
        of_half, here = worth[:, fold % 2], folds == fold  # (C, M)
        better = of_half.max(0)[:, None] > rivals[:, here]
        by[:, here] = np.where(better, of_half.argmax(0)[:, None], -1)
    return by


def _gained(
    own: dict[str, np.ndarray], shared: dict[str, np.ndarray], num_policy_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """What policies of their own start states gained (C', M, N) over a level, and the level on the start states of
    every policy seed (C', R, M, N): the first shared policy where it follows the same start states, else 0."""
    shape = next(iter((own | shared).values())).shape[1:]
    base = next(iter(shared.values()), np.zeros((num_policy_seeds, *shape)))
    base = np.where(np.isnan(base).any((0, 2), keepdims=True), 0.0, base)
    gained, levels = [np.zeros((0, *shape))], [np.zeros((0, *base.shape))]
    for episodes in own.values():
        there = base[: len(episodes)]
        follows = (episodes - there).std(-1, keepdims=True) < episodes.std(-1, keepdims=True)  # (R', M, 1)
        gained.append(episodes - follows * there)
        levels.append(follows[:, None] * base)
    return np.concatenate(gained), np.concatenate(levels)


def _by_seed(everywhere: np.ndarray, alone: np.ndarray, is_alone: np.ndarray) -> np.ndarray:
    """A* of a task by policy seed (R,).

    Args:
        everywhere: (N, R) of the episodes that count, on every seed's start states.
        alone: (N,) what those that were simulated for one seed alone gained.
        is_alone: (N,) which these are.
    """
    answer = everywhere.mean(0)
    if not is_alone.any():
        return answer
    return answer + is_alone.mean() * _shares(alone[is_alone], everywhere.shape[1])


def _shares(values: np.ndarray, num: int) -> np.ndarray:
    """num independent estimates (num,) of the mean of episodes (K,), each from a share of them.

    Their mean is the mean of all. Fewer episodes than shares are used several times, and their spread is scaled to
    what as many shares would have.
    """
    parts = [part.mean() for part in np.array_split(values, min(num, len(values)))]
    around = np.resize(parts, num) - np.resize(parts, num).mean()
    if 1 < len(values) < num:
        spread = around.std(ddof=1)
        around *= values.std(ddof=1) * math.sqrt(num / len(values)) / spread if spread > 0 else 1.0
    return values.mean() + around


class _TimedPolicy:
    """A policy that knows the step; see `Policy`."""

    def __init__(self, act: Act) -> None:
        self._act = act

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`; uses no noise."""
        return self._act


def closed_form(
    family: TaskFamily,
    psi: Tensor,
    num_policy_seeds: int,
    num_episodes: int,
    seed: int,
    *,
    num_threads: int = 1,
) -> BestKnown | None:
    """A* of tasks psi (M, k) from the optimal policy (`TaskFamily.optimal_policy`), scored on the start states of
    every policy seed; None where the family does not know it."""
    act = family.optimal_policy(psi)
    if act is None:
        return None
    episodes = score_for_every_seed(
        family, _TimedPolicy(act), psi, num_policy_seeds, num_episodes, seed, num_threads=num_threads
    )
    known = best_known({}, {"optimal policy": episodes}, num_policy_seeds)
    return replace(known, origin={"kind": "closed form"}, real_samples=0)


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
