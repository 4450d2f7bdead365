"""The test protocol of the inner-loop methods: n / num_adapt_samples plain gradient steps, each on fresh samples.

The samples of a step come from the policies of the step before. The first step has the step sizes of the training,
later ones times `later_step_factor` (MAML's protocol); any number of steps can be asked for, more than were trained
too. Both inner losses have the same gradient here, where the policies have just acted. Scoring is stochastic, as in
training.
"""

from __future__ import annotations

from typing import Any

import torch

from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Tasks
from admrl.inner_loop.adaptation import gradients, policy_loss
from admrl.inner_loop.config import InnerLoopConfig, check_budget
from admrl.inner_loop.meta_policy import AdaptedPolicy, MetaPolicy
from admrl.methods.adapter import MethodAdapter


class InnerLoopAdapter(MethodAdapter):
    """See the head of this page."""

    _agent: MetaPolicy

    def __init__(self, agent: MetaPolicy, *, name: str, provenance: dict[str, Any] | None = None) -> None:
        super().__init__(agent, name=name, provenance=provenance)
        self.sees = frozenset({"rewards", "psi"} if agent.sees_psi else {"rewards"})

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: the meta-learned policy for every task.

        Raises:
            AdapterError: policies would be scored in the middle of a step.
        """
        check_stages(self._agent.config, tasks)
        self._tasks = tasks
        self._num_episodes = self._agent.config.num_adapt_samples // tasks.family.horizon
        known = torch.zeros(len(tasks), 0, dtype=torch.float32)
        self._known = self._agent.known(tasks.psi) if self._agent.sees_psi else known
        self._theta, self._alpha, self._num_steps = self._agent.theta(len(tasks)), self._agent.alpha(), 0

    def explore(self) -> Exploration:
        """See `Adapter`: the samples of one step."""
        return Exploration(self.adapted(), self._num_episodes)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: one gradient step."""
        batch = self._agent.batch(self.adapted(), experience.rollout, self._rewards(experience))
        loss = policy_loss(self._agent.policy.in_units(), batch, "log_likelihood")
        factor = 1.0 if self._num_steps == 0 else self._agent.config.later_step_factor
        self._theta = self._theta - factor * self._alpha * gradients(loss)(self._theta)
        self._num_steps += 1

    def adapted(self) -> AdaptedPolicy:
        """See `Adapter`."""
        self._begun()
        return AdaptedPolicy(self._agent.policy, self._theta, self._known)


def check_stages(config: InnerLoopConfig, tasks: Tasks) -> None:
    """Refuse an evaluation that would score policies in the middle of a step.

    Raises:
        AdapterError: names its setting, what was expected and what came.
    """
    for earlier, n in zip(tasks.sample_counts, tasks.sample_counts[1:], strict=False):
        try:
            check_budget(config, 1, n - earlier)
        except ValueError as error:
            raise AdapterError(str(error)) from None
