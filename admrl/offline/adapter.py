"""MACAW's test protocol: one inner step from what was meta-learned, on adaptation samples of the test task.

    offline   the samples are of the learner that recorded the buffers, from the beginning of its lifetime; the
              adapter declares that it has offline data of the test task, and the evaluator counts it
    online    the samples are of the policy itself, stochastic: of the meta-learned one up to the first n that is
              scored, of the adapted one from then on

Either way A_n is one inner step from the meta-learned policy, never a second one, on `inner_batch` of all n samples
(fewer: all of them, about equally often); A_0 is the meta-learned policy. The most likely action is scored, as
released.
"""

from __future__ import annotations

from typing import Any

import torch

from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Policy, Tasks
from admrl.methods.adapter import MethodAdapter
from admrl.offline.agent import MacawAgent
from admrl.offline.behaviour import Learner
from admrl.offline.buffers import Buffers, OfflineData, joined
from admrl.offline.networks import Layers

LEARNER, BATCH = 0, 1  # of `Tasks.fresh_generators`


class MacawAdapter(MethodAdapter):
    """See the head of this page."""

    _agent: MacawAgent

    def __init__(self, agent: MacawAgent, *, name: str, provenance: dict[str, Any] | None = None) -> None:
        super().__init__(agent, name=name, provenance=provenance)
        self._is_offline = agent.config.test_data == "offline"
        self.sees = frozenset({"rewards", "offline data"} if self._is_offline else {"rewards"})

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`."""
        self._tasks, self._parts = tasks, list[OfflineData]()
        self._num_seen, self._layers = 0, self._agent.first_layers(len(tasks))
        self._learner: Learner | None = None
        if self._is_offline and tasks.sample_counts[-1]:
            generators = tasks.fresh_generators(LEARNER)
            self._learner = self._agent.recorder.learner(generators, tasks.sample_counts[-1])

    def explore(self) -> Exploration:
        """See `Adapter`: an episode of the learner, or all of the policy's up to the next n."""
        tasks = self._begun()
        if self._learner is not None:
            return Exploration(self._learner.policy(), 1)
        left = next(n for n in tasks.sample_counts if n > self._num_seen) - self._num_seen
        return Exploration(self._acting(is_stochastic=True), left // tasks.family.horizon)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`."""
        tasks, rollout, reward = self._begun(), experience.rollout, self._rewards(experience)
        number = torch.arange(len(tasks))
        self._parts.append(OfflineData.of_rollout(rollout, reward, self._agent.units, number))
        if self._learner is not None:
            self._learner.learn(rollout, reward)
        self._num_seen += rollout.num_samples // len(tasks)
        if self._num_seen in tasks.sample_counts:
            self._layers = self._inner_step(tasks)

    def _inner_step(self, tasks: Tasks) -> Layers:
        """On what was seen."""
        data = joined(self._parts, len(tasks))
        self._parts = [data]
        if int(data.task_sizes().min()) < 2:
            raise AdapterError(f"{self.name}: no sound sample of some task; an inner step needs two")
        batch = Buffers(data, self._agent.gamma).draw_any(
            self._agent.config.inner_batch, tasks.fresh_generators(BATCH)
        )
        return self._agent.adapted_layers(batch)

    def adapted(self) -> Policy:
        """See `Adapter`."""
        self._begun()
        return self._acting(is_stochastic=False)

    def _acting(self, *, is_stochastic: bool) -> Policy:
        return self._agent.act_as(self._layers, is_stochastic=is_stochastic)
