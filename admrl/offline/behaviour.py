"""Who records the data where none is given: learners whose whole lifetime is kept, as in MACAW's data.

    bandits          epsilon-greedy on the posterior means of the arms, epsilon falling from 1 to 0 over the lifetime
    other families   one SAC for each task, from scratch (MACAW's data is of SAC, too)

All tasks are batched, and none depends on another. Both are [ours] in their details.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from admrl.config.sac import SacConfig
from admrl.evaluation.adapter import Act, Policy
from admrl.offline.buffers import ActionUnits
from admrl.solving.sac import Batch, Optimizers, Sac, stacked, tanh_gaussian
from policy_opt.categorical_policy import one_hot
from task_families.bandit import BernoulliBandit5
from task_families.family import TaskFamily
from task_families.rollout import Rollout


class Learner(Protocol):
    """M learners, one for each task, at some point of their lifetime."""

    def policy(self) -> Policy:
        """How they act in their next episode, frozen."""

    def learn(self, rollout: Rollout, reward: Tensor) -> None:
        """From that episode and its rewards (M, N, T)."""


@dataclass(frozen=True)
class Recorder:
    """What a learner of a family is made of; without the family itself, so that an adapter may have it."""

    is_bandit: bool
    obs_size: int
    act_size: int
    gamma: float
    units: ActionUnits
    sac: SacConfig
    updates_per_sample: float

    @classmethod
    def of(cls, family: TaskFamily, sac: SacConfig, updates_per_sample: float) -> Recorder:
        """Of a family."""
        units = ActionUnits(family.action_bounds, family.picks_largest)
        is_bandit = isinstance(family, BernoulliBandit5)
        return cls(is_bandit, family.obs_size, family.act_size, family.gamma, units, sac, updates_per_sample)

    def learner(self, generators: Sequence[torch.Generator], lifetime: int) -> Learner:
        """New learners, one for each generator, which draws what they need; lifetime: samples of each."""
        if self.is_bandit:
            zeros = torch.zeros(len(generators), self.act_size, dtype=torch.float64)
            return EpsilonGreedy(zeros, zeros, lifetime)
        return SacLearner(self, generators)


# -- bandits ------------------------------------------------------------------------------------------------------


class EpsilonGreedy:
    """Of Bernoulli bandits: what was pulled in all episodes so far counts."""

    def __init__(self, successes: Tensor, failures: Tensor, lifetime: int) -> None:
        """successes and failures (M, A), so far."""
        self._successes, self._failures, self._lifetime = successes, failures, lifetime

    def policy(self) -> Policy:
        """See `Learner`; it learns within the episode, too."""
        return _Pulls(self._successes, self._failures, self._lifetime)

    def learn(self, rollout: Rollout, reward: Tensor) -> None:
        """See `Learner`."""
        pulled, won = one_hot(rollout.act.double()), reward[..., None].double()
        self._successes = self._successes + (pulled * won).sum((1, 2))
        self._failures = self._failures + (pulled * (1 - won)).sum((1, 2))


@dataclass(frozen=True, eq=False)
class _Pulls:
    """The pulls of an episode."""

    successes: Tensor  # (M, A) before it
    failures: Tensor
    lifetime: int

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        num_steps, _, num_lanes, num_arms = noise.shape
        draws = [
            torch.rand(num_steps, num_lanes, 1 + num_arms, generator=g, dtype=torch.float64)
            for g in generators
        ]
        u = torch.stack(draws, dim=1)  # (T, M, N, 1 + A)
        won, lost = (x[:, None].repeat(1, num_lanes, 1) for x in (self.successes, self.failures))
        num_before = (won + lost).sum(-1)  # (M, N)
        pulled = torch.zeros_like(won)

        def act(t: int, obs: Tensor) -> Tensor:
            nonlocal pulled
            if t:  # the observation is the outcome of the last pull
                won.add_(pulled * obs.double())
                lost.add_(pulled * (1 - obs.double()))
            epsilon = (1 - (num_before + t) / self.lifetime).clamp(min=0)
            mean = (1 + won) / (2 + won + lost)  # under a uniform prior
            explores = u[t, ..., :1] < epsilon[..., None]
            pulled = one_hot(torch.where(explores, u[t, ..., 1:], mean))
            return pulled.to(obs)

        return act


# -- other families -----------------------------------------------------------------------------------------------


class SacLearner:
    """M soft actor-critics, each with networks and data of its own; the first episode is of uniform actions."""

    def __init__(self, recorder: Recorder, generators: Sequence[torch.Generator]) -> None:
        self._recorder, self._generators = recorder, list(generators)
        size = recorder.obs_size, recorder.act_size, 0
        agents = [Sac(*size, recorder.sac, recorder.gamma, g) for g in generators]
        self._agent = stacked(agents)
        groups = self._agent.parameter_groups()
        self._optimizers = Optimizers(groups, recorder.sac.learning_rate, num_agents=len(agents))
        self._seen: Batch | None = None  # (M, n, .)

    def policy(self) -> Policy:
        """See `Learner`."""
        if self._seen is None:
            return _Uniform(self._recorder.units)
        return _SacPolicy(deepcopy(self._agent).requires_grad_(False), self._recorder.units)

    def learn(self, rollout: Rollout, reward: Tensor) -> None:
        """See `Learner`: as many gradient steps as the recorder says for each new sample of a task."""
        new = _batch(self._recorder.units, rollout, reward)
        seen = new
        if self._seen is not None:
            pairs = zip(self._seen.tensors(), new.tensors(), strict=True)
            seen = Batch(*(torch.cat(pair, dim=1) for pair in pairs))
        self._seen = seen
        with torch.enable_grad():  # an evaluation has none
            for _ in range(round(self._recorder.updates_per_sample * new.obs.shape[1])):
                self._update(seen)

    def _update(self, seen: Batch) -> None:
        """One step of every agent on transitions of its own."""
        config = self._recorder.sac
        num_tasks, size = seen.obs.shape[:2]
        draws = [
            (
                torch.randint(size, (config.batch_size,), generator=g),
                torch.randn(2, config.batch_size, self._recorder.act_size, generator=g, dtype=torch.float32),
            )
            for g in self._generators
        ]
        index, noise = torch.stack([d[0] for d in draws]), torch.stack([d[1] for d in draws], dim=1)
        of_task = torch.arange(num_tasks)[:, None]
        batch = Batch(*(column[of_task, index] for column in seen.tensors()))
        self._agent.step(self._optimizers, batch, batch.obs.new_zeros(num_tasks, 0), noise)


def _batch(units: ActionUnits, rollout: Rollout, reward: Tensor) -> Batch:
    """All steps of every task (M, N T, .); of a simulation that broke down the lane's first step once more."""
    sound = rollout.next_obs.isfinite().all(-1, keepdim=True)
    act = rollout.act if units.picks_largest else units.bounds.to_unit(rollout.act)
    columns = rollout.obs, act, reward[..., None], rollout.next_obs, rollout.terminated[..., None].float()
    return Batch(*(torch.where(sound, x, x[:, :, :1]).flatten(1, 2).float() for x in columns))


@dataclass(frozen=True)
class _Uniform:
    """Uniform within the limits."""

    units: ActionUnits

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        unit = 2 * torch.special.ndtr(noise) - 1
        return lambda t, obs: self.units.back(unit[t])


@dataclass(frozen=True, eq=False)
class _SacPolicy:
    """The stochastic policies of M agents."""

    agent: Sac
    units: ActionUnits

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""

        @torch.no_grad()
        def act(t: int, obs: Tensor) -> Tensor:
            mean, log_std = self.agent.actor(obs, obs.new_zeros(len(obs), 0))
            unit = tanh_gaussian(mean, log_std, noise[t])[0]
            return self.units.back(unit)

        return act
