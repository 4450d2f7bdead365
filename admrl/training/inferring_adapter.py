"""Our method without being told psi: it sees rewards, infers psi from them, and solves that task in its model.

    begin     theta of the middle of the family's space, solved in the frozen model        A_0 is its real return
    explore   an episode at a time, with exploration noise
    observe   psi_hat from all rewards so far (`admrl.solving.infer_psi`), theta_hat(psi_hat) in the frozen model

The first `num_episodes` episodes are for psi alone, and count as samples like all others. What a stage has beyond
them is played with theta_hat(psi_hat), and adapts the model and the policy as `ModelBasedAdapter` does, all episodes
so far among its data, with psi_hat from all their rewards. Random numbers of solving theta_hat are those of the
method that is told psi: if psi_hat is psi, so is the policy.

Like any method that was trained on a family it knows the family, here also its reward as a function of psi; of a test
task it sees the rewards of its own episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Tasks
from admrl.jobs.reporter import Reporter
from admrl.solving.infer_psi import infer_psi
from admrl.solving.psi_estimate import PsiEstimate
from admrl.solving.psi_space import PsiSpace
from admrl.training.adapter import ModelBasedAdapter, TrainedModel
from task_families.rollout import Rollout


class InferringAdapter(ModelBasedAdapter):
    """A run of `admrl train` that infers psi from rewards; see the head of this page."""

    def __init__(
        self,
        run: TrainedModel,
        config: EvaluationConfig,
        num_episodes: int,
        *,
        reporter: Reporter | None = None,
    ) -> None:
        """
        Args:
            num_episodes: of each task, for psi alone.

        Raises:
            ValueError: see `ModelBasedAdapter`; no or too few stages, or a family whose psi cannot be inferred.
        """
        super().__init__(run, config, reporter=reporter)
        self.name, self.sees = f"{self.name}, psi inferred", frozenset({"rewards"})
        self._num_inferring = num_episodes
        if config.num_stages < 1:
            raise ValueError(
                "infer_psi: before the first stage nothing was seen that psi could be inferred from; expected "
                f"`config.num_stages` of 1 or more, got {config.num_stages}"
            )
        most = config.num_stages * config.num_stage_samples // run.family.horizon
        if not 1 <= num_episodes <= most:
            raise ValueError(
                f"infer_psi: expected 1 to {most} episodes, as many as `config.num_stages` {config.num_stages} of "
                f"`config.num_stage_samples` {config.num_stage_samples} have, got {num_episodes}"
            )
        if run.family.psi_changes_dynamics:
            raise ValueError(
                f"infer_psi: the dynamics of {run.family.name} depend on psi, and rewards alone do not say how"
            )
        middle = torch.from_numpy(PsiSpace.of(run.family.box).points(1)[0])
        self._middle = run.family.box.project(middle.to(run.family.box.low))
        self.estimate: PsiEstimate | None = None
        """Of the present tasks, without intervals; None: nothing was seen yet."""

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: the policy of the middle task, from the same random numbers as all further ones."""
        self._start(tasks)
        self._seen: Rollout | None = None
        self._waiting: Rollout | None = None  # what no model was fitted to yet
        self._rewards, self.estimate = torch.zeros(len(tasks), 0, self._run.family.horizon), None
        self._at_first = [g.get_state() for g in tasks.generators]
        self._solution = self._solve(self._middle.repeat(len(tasks), 1), self._same_numbers())

    def _same_numbers(self) -> Sequence[torch.Generator]:
        """Generators at the state in which the method that is told psi solves its tasks."""
        pairs = zip(self._tasks.generators, self._at_first, strict=True)
        return [torch.Generator(g.device).set_state(state) for g, state in pairs]

    def explore(self) -> Exploration:
        """See `Adapter`: single episodes for psi, then the rest of the stage."""
        num_seen = self._rewards.shape[1]
        ahead = [n // self._run.family.horizon - num_seen for n in self._tasks.sample_counts]
        left = min(n for n in ahead if n > 0)
        num_episodes = 1 if num_seen < self._num_inferring else left
        return Exploration(self._exploring(), num_episodes)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: infer psi, then solve it, or go on from the policies with what the stage has brought."""
        rollout, reward = experience.rollout, experience.reward
        if reward is None:
            raise AdapterError(f"{self.name}: needs rewards")
        self._seen = rollout if self._seen is None else self._seen.join(rollout)
        self._waiting = rollout if self._waiting is None else self._waiting.join(rollout)
        self._rewards = torch.cat([self._rewards.to(reward), reward], dim=1)
        seen = self._seen
        self.estimate = infer_psi(
            self._run.family, seen.obs, seen.act, seen.next_obs, self._rewards, confidence=None
        )
        psi: Tensor = self.estimate.psi.to(self._middle)
        if self._rewards.shape[1] <= self._num_inferring:
            self._solution = self._solve(psi, self._same_numbers())
        else:
            self._solution = replace(self._solution, psi=psi.to(self._solution.psi))
            self._adapt(self._waiting)
            self._waiting = None

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {**super().provenance(), "selector": self.name, "psi_inferred_from": self._num_inferring}
