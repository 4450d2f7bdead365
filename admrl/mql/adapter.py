"""MQL's test protocol.

All samples of a task come from the deterministic meta-trained policy, whose context is all that tells it the task.
Whenever a policy is to be scored, the weights are adapted anew to all samples so far (`admrl.mql.adaptation`). A_0 is
the meta-trained policy. Scoring is deterministic; its context begins anew with every episode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from admrl.evaluation.adapter import Experience, Exploration, Policy, Tasks
from admrl.methods.adapter import MethodAdapter
from admrl.mql.adaptation import Adapted, OwnData, adapt
from admrl.mql.config import TITLES, MqlConfig
from admrl.mql.networks import Agent
from admrl.mql.policy import policy_of
from admrl.mql.replay import PooledReplay, rows_of


class MqlAdapter(MethodAdapter):
    """See the head of this page."""

    _agent: Agent

    def __init__(
        self,
        agent: Agent,
        replay: PooledReplay,
        config: MqlConfig,
        *,
        name: str = TITLES["mql"],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """replay: of the meta-training."""
        super().__init__(agent, name=name, provenance=provenance)
        self._replay, self._config = replay, config

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: the meta-trained policy for every task."""
        self._tasks, self._num_seen = tasks, 0
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []
        self.result: Adapted | None = None

    def explore(self) -> Exploration:
        """See `Adapter`: all samples until the next policies are scored."""
        tasks = self._begun()
        wanted = next(n for n in tasks.sample_counts if n > self._num_seen)
        return Exploration(policy_of(self._agent), (wanted - self._num_seen) // tasks.family.horizon)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: the weights are adapted to all samples so far."""
        tasks, reward = self._begun(), self._rewards(experience)
        self._own.append(rows_of(experience.rollout, reward, self._agent.bounds))
        self._num_seen += reward[0].numel()
        rows, position, is_sound = (torch.cat(parts, dim=1) for parts in zip(*self._own, strict=True))
        own = OwnData.make(rows, position, is_sound, self._agent.obs_size)
        self.result = adapt(self._agent, self._replay, own, self._config, tasks.fresh_generators(0))

    def adapted(self) -> Policy:
        """See `Adapter`."""
        self._begun()
        return policy_of(self._agent if self.result is None else self.result.agent)
