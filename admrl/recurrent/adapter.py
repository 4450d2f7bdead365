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

import torch

from admrl.evaluation.adapter import Experience, Exploration, Policy, Tasks
from admrl.methods.adapter import MethodAdapter
from admrl.recurrent.agent import Memory, RecurrentAgent
from admrl.recurrent.policy import RecurrentPolicy


class RecurrentAdapter(MethodAdapter):
    """See the head of this page."""

    _agent: RecurrentAgent

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: an empty memory for every task."""
        self._tasks, self._memory = tasks, self._agent.empty_memory(len(tasks))
        self._kept: Memory | None = None  # for scoring, in place of the present one
        self._num_episodes = 0  # of the present trial

    def explore(self) -> Exploration:
        """See `Adapter`: the next episode of the trial."""
        self._begun()
        return Exploration(RecurrentPolicy(self._agent, self._memory), 1)

    @torch.no_grad()
    def observe(self, experience: Experience) -> None:
        """See `Adapter`: the memory after the episode."""
        tasks, config = self._begun(), self._agent.config
        sequence = self._agent.sequence(self._memory, experience.rollout, self._rewards(experience))
        self._memory = self._agent.after(self._memory, sequence)
        self._num_episodes += 1
        if config.beyond_trial == "restart" and self._num_episodes >= config.trial_episodes - 1:
            empty = self._agent.empty_memory(len(tasks))
            self._kept = self._memory if config.trial_episodes > 1 else empty
            self._memory, self._num_episodes = empty, 0

    def adapted(self) -> Policy:
        """See `Adapter`."""
        self._begun()
        return RecurrentPolicy(self._agent, self._memory if self._kept is None else self._kept)
