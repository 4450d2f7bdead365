"""Our own method through the adapter protocol: zero-shot in the learned model, then SLBO on the samples of the task.

It does, draw for draw, what `admrl.protocol.adapted_returns` does; a test compares them bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import ornstein_uhlenbeck, zero_shot
from admrl.baselines.adapter import Act, Experience, Exploration, Policy, Tasks
from admrl.config import EvaluationConfig, SlboConfig, evaluation_virtual
from admrl.protocol import num_held_out, stage_virtual
from admrl.reporting import Reporter, Silent
from admrl.run_store import Run
from admrl.virtual_training import Solution, gaussian_noise, refresh_normalizer, virtual_training
from dynamics.learner import ModelLearner

FORK = 3  # purpose of the generators of the tasks' models


@dataclass(frozen=True, eq=False)
class SolutionPolicy:
    """The stochastic policies of a solution, with exploration noise if a configuration is given."""

    solution: Solution
    noise: SlboConfig | None = None

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        disturb = None
        if self.noise is not None and self.noise.noise_scale > 0:
            drive = gaussian_noise(
                (noise.shape[1], noise.shape[2]), len(noise), noise.shape[3], generators, noise
            )
            disturb = ornstein_uhlenbeck(self.noise, drive)

        def act(t: int, obs: Tensor) -> Tensor:
            action, _ = self.solution.policy.sample(self.solution.theta, obs, noise[t])
            return action if disturb is None else action + disturb(t)

        return act


class ModelBasedAdapter:
    """A run of `admrl train` as an adapter. Every task adapts a copy of the run's model and data."""

    def __init__(self, run: Run, config: EvaluationConfig, *, reporter: Reporter | None = None) -> None:
        """
        Args:
            config: updates of the zero-shot training and of every stage; the evaluator is given the same.
        """
        self.name, self.sees = run.info.selector, frozenset({"psi", "reward function"})
        self._run, self._config = run, config
        self._reporter = reporter or Silent()
        self._slbo = SlboConfig(1, config.num_stage_iterations, config.num_stage_samples)

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: zero-shot training in the frozen model."""
        self._tasks, self._num_stages = tasks, 0
        self._learner: ModelLearner | None = None
        self._reporter.phase(f"zero-shot, {len(tasks)} policies", self._config.num_updates)
        self._solution = zero_shot(
            self._run.family,
            self._run.state.learner.model,
            tasks.psi,
            self._run.policy,
            1,
            evaluation_virtual(self._run.info.config.virtual, self._config),
            tasks.generators,
            reporter=self._reporter,
            allow_outside=tasks.allow_outside,
        )
        self._held_out = np.zeros(len(tasks), dtype=int)

    def explore(self) -> Exploration:
        """See `Adapter`: one stage of real samples, with exploration noise."""
        num_episodes = self._config.num_stage_samples // self._run.family.horizon
        return Exploration(SolutionPolicy(self._solution, self._slbo), num_episodes)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: fit the tasks' models and train the policies in them."""
        if self._learner is None:  # a model and data for every task
            self._learner = self._run.state.learner.fork(self._tasks.fresh_generators(FORK))
            self._before = num_held_out(self._learner)
        self._num_stages += 1
        self._learner.add(experience.rollout)
        steps = self._config.num_stage_iterations * self._config.num_stage_updates
        self._reporter.phase(f"adaptation, stage {self._num_stages}, {len(self._tasks)} policies", steps)
        self._solution = virtual_training(
            self._run.family,
            self._learner.model,
            refresh_normalizer(self._solution, self._learner.model),
            self._slbo.num_iterations,
            stage_virtual(self._run.info.config.virtual, self._config),
            self._tasks.generators,
            learner=self._learner,
            reporter=self._reporter,
        )
        self._held_out = num_held_out(self._learner) - self._before

    def adapted(self) -> Policy:
        """See `Adapter`."""
        solution = self._solution
        return SolutionPolicy(replace(solution, theta=solution.theta.clone()))

    def spent(self) -> dict[str, Any]:
        """See `Adapter`."""
        updates = self._config.num_updates
        updates += self._num_stages * self._config.num_stage_iterations * self._config.num_stage_updates
        return {"held_out": self._held_out, "virtual": updates * self._config.num_samples}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        info, state = self._run.info, self._run.state
        return {
            "run": str(self._run.path),
            "selector": info.selector,
            "seed": info.seed,
            "training_real_samples": state.real_samples,
            "training_virtual_samples": state.virtual_samples,
        }
