"""RecurrentPolicy: how an agent acts, in an evaluation and in its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.recurrent.agent import Memory, RecurrentAgent


class RecurrentActor:
    """Acts in M x N lanes for one rollout, each with a memory of its own (`admrl.evaluation.adapter.Listener`)."""

    def __init__(self, agent: RecurrentAgent, memory: Memory, noise: Tensor) -> None:
        """
        Args:
            memory: of the M N lanes.
            noise: standard normal (T, M, N, A).
        """
        self._agent, self._memory, self._noise = agent, memory, noise

    @torch.no_grad()
    def __call__(self, t: int, obs: Tensor) -> Tensor:
        """See `admrl.evaluation.adapter.Act`; stochastic, as in training."""
        hidden, output = self._agent.step(obs.flatten(0, 1), self._memory)
        unit = self._agent.head.sample(output, self._noise[t].flatten(0, 1))
        self._memory = Memory(hidden, unit, self._memory.reward, self._memory.ended)
        return self._agent.head.from_unit(unit).view(*obs.shape[:2], -1)

    def hear(self, reward: Tensor, ended: Tensor) -> None:
        """See `Listener`. A reward that is not finite, of a simulation that broke down, is heard as 0."""
        reward = torch.where(reward.isfinite(), reward, 0.0).flatten()
        memory = self._memory
        self._memory = Memory(memory.hidden, memory.act, reward, ended.flatten().to(reward))


@dataclass(frozen=True, eq=False)
class RecurrentPolicy:
    """M policies, one for each row of the memory; every lane begins with a copy of it."""

    agent: RecurrentAgent
    memory: Memory  # of M rows

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> RecurrentActor:
        """See `admrl.evaluation.adapter.Policy.actor`."""
        return RecurrentActor(self.agent, self.memory.repeated(noise.shape[2]), noise)
