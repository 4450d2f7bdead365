"""MQL's test protocol.

All samples of a task come from the deterministic meta-trained policy, whose context is all that tells it the task.
Whenever a policy is to be scored, the weights are adapted anew to all samples so far (`admrl.mql.adaptation`). A_0 is
the meta-trained policy. Scoring is deterministic; its context begins anew with every episode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Policy, Tasks
from admrl.mql.adaptation import Adapted, OwnData, adapt
from admrl.mql.config import TITLES, MqlConfig
from admrl.mql.networks import Agent
from admrl.mql.policy import policy_of
from admrl.mql.replay import PooledReplay, rows_of


class MqlAdapter:
    """See the head of this page."""

    sees = frozenset({"rewards"})

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
        self.name, self._agent, self._replay, self._config = name, agent, replay, config
        self._provenance = provenance or {}
        self._tasks: Tasks | None = None

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: the meta-trained policy for every task."""
        self._tasks, self._num_seen = tasks, 0
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []
        self.result: Adapted | None = None

    def explore(self) -> Exploration:
        """See `Adapter`: all samples until the next policies are scored."""
        tasks = self._present()
        wanted = next(n for n in tasks.sample_counts if n > self._num_seen)
        return Exploration(policy_of(self._agent), (wanted - self._num_seen) // tasks.family.horizon)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: the weights are adapted to all samples so far."""
        tasks = self._present()
        if experience.reward is None:
            raise AdapterError(f"{self.name}: needs rewards")
        self._own.append(rows_of(experience.rollout, experience.reward, self._agent.bounds))
        self._num_seen += experience.reward[0].numel()
        rows, position, is_sound = (torch.cat(parts, dim=1) for parts in zip(*self._own, strict=True))
        own = OwnData.make(rows, position, is_sound, self._agent.obs_size)
        self.result = adapt(self._agent, self._replay, own, self._config, tasks.fresh_generators(0))

    def adapted(self) -> Policy:
        """See `Adapter`."""
        self._present()
        return policy_of(self._agent if self.result is None else self.result.agent)

    def _present(self) -> Tasks:
        if self._tasks is None:
            raise AdapterError(f"{self.name}: begin(tasks) comes first")
        return self._tasks

    def spent(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return self._provenance
