"""The test protocol of RL2: the memory is all that adapts, over n / horizon episodes in a row, and goes on adapting
within a scored episode.

Exploration is one lane of a task: its episodes follow each other in one trial, in which the memory lasts. Every
scored episode begins with a copy of the memory after n samples; what it hears there is forgotten afterwards. Scoring
is stochastic, as in training.

A training knows trials of `trial_episodes` episodes. n samples and a scored episode are a trial of n / horizon + 1:
from n = trial_episodes x horizon on, longer than any in training. `beyond_trial` says what happens then:

    keep      the memory goes on, as in the papers' runs
    restart   after every trial_episodes - 1 episodes of exploration the memory is kept for scoring and a new trial
              begins, so that a scored episode is always the last of a trained length

With trial_episodes = 1, as for bandits, the second is an empty memory at every n.
"""

from __future__ import annotations

from typing import Any

import torch

from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Policy, Tasks
from admrl.recurrent.agent import Memory, RecurrentAgent
from admrl.recurrent.policy import RecurrentPolicy


class RecurrentAdapter:
    """See the head of this page."""

    def __init__(self, agent: RecurrentAgent, *, name: str, provenance: dict[str, Any] | None = None) -> None:
        self.name, self._agent, self._provenance = name, agent, provenance or {}
        self.sees = frozenset({"rewards"})
        self._memory: Memory | None = None

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: an empty memory for every task."""
        self._memory = self._agent.empty_memory(len(tasks))
        self._kept: Memory | None = None  # for scoring, in place of the present one
        self._num_episodes = 0  # of the present trial

    def explore(self) -> Exploration:
        """See `Adapter`: the next episode of the trial."""
        return Exploration(RecurrentPolicy(self._agent, self._present()), 1)

    @torch.no_grad()
    def observe(self, experience: Experience) -> None:
        """See `Adapter`: the memory after the episode."""
        memory, config = self._present(), self._agent.config
        if experience.reward is None:
            raise AdapterError(f"{self.name}: needs rewards")
        sequence = self._agent.sequence(memory, experience.rollout, experience.reward)
        self._memory = self._agent.after(memory, sequence)
        self._num_episodes += 1
        if config.beyond_trial == "restart" and self._num_episodes >= config.trial_episodes - 1:
            empty = self._agent.empty_memory(len(memory.reward))
            self._kept = self._memory if config.trial_episodes > 1 else empty
            self._memory, self._num_episodes = empty, 0

    def adapted(self) -> Policy:
        """See `Adapter`."""
        present = self._present()
        return RecurrentPolicy(self._agent, present if self._kept is None else self._kept)

    def _present(self) -> Memory:
        if self._memory is None:
            raise AdapterError(f"{self.name}: begin(tasks) comes first")
        return self._memory

    def spent(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return self._provenance
