"""Our own method through the adapter protocol: zero-shot in the learned model, then SLBO on the samples of the task.

AdMRL section 5, A_n(psi): return after n real samples of the test task, for n = 0, 2000, 4000, 6000.

    begin     theta_hat = zero-shot policy in the frozen model                          A_0 is its real return
    explore   2000 real samples of psi with exploration noise
    observe   fit the task's own copy of the model, train theta inside it (SLBO)        A_n is the real return

Tasks are independent: each starts from the trained model, its normalisers and its data, and adapts a copy. All tasks
of a batch run together: one shared model while it is frozen, batched models once they are fine-tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from admrl.config.checks import check_lanes
from admrl.config.evaluation import EvaluationConfig, evaluation_virtual
from admrl.config.training import SlboConfig, VirtualTrainingConfig
from admrl.evaluation.adapter import Experience, Exploration, Policy, Tasks
from admrl.evaluation.evaluable_run import ModelSource
from admrl.jobs.reporter import Reporter, Silent
from admrl.runs.folder import RunInfo
from admrl.solving.inner_method import InnerMethod
from admrl.solving.rollouts import SolutionPolicy
from admrl.solving.samples import SampleCounts
from dynamics.learner import ModelLearner
from task_families.rollout import Rollout

FORKED_MODELS = 0  # names the generators of the tasks' models
NOT_OURS = (  # settings of an evaluation that no number of this method depends on
    "num_policy_seeds",
    "tasks_per_batch",
    "num_reference_stages",
    "num_reference_samples",
    "num_reference_updates",
)
STAGES = ("num_stage_samples", "num_stage_iterations", "num_stage_updates", "num_stage_model_steps")


class TrainedModel(ModelSource, Protocol):
    """What the adapter needs of a run."""

    @property
    def info(self) -> RunInfo:
        """What the run was asked to do."""

    def provenance(self) -> dict[str, Any]:
        """For tables."""

    def method(self, virtual: VirtualTrainingConfig, name: str) -> InnerMethod[Any]:
        """How it solves tasks in its model, by these updates, whose number of samples has that name."""


class ModelBasedAdapter:
    """A run of `admrl train` as an adapter. Every task adapts a copy of the run's model and data."""

    def __init__(
        self, run: TrainedModel, config: EvaluationConfig, *, reporter: Reporter | None = None
    ) -> None:
        """
        Args:
            config: updates of the zero-shot training and of every stage; the evaluator is given the same.

        Raises:
            ValueError: sample counts that fit neither the family's horizon nor the members of the model.
        """
        members, horizon = run.learner.model.num_members, run.family.horizon
        check_lanes("config.num_samples", config.num_samples, horizon, members)
        self._zero_shot = run.method(evaluation_virtual(run.virtual, config), "config.num_samples")
        self._in_stages = run.method(stage_virtual(run.virtual, config), "config.num_samples")
        if config.num_stages:
            check_lanes("config.num_stage_samples", config.num_stage_samples, horizon)
        self.name, self.sees = run.info.selector, frozenset({"psi", "reward function"})
        self._run, self._config = run, config
        self._reporter = reporter or Silent()
        self._slbo = SlboConfig(1, config.num_stage_iterations, config.num_stage_samples)

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: zero-shot training in the frozen model."""
        self._start(tasks)
        self._solution = self._solve(tasks.psi, tasks.generators)

    def _start(self, tasks: Tasks) -> None:
        """Forget the tasks before."""
        self._tasks, self._num_stages, self._samples = tasks, 0, SampleCounts()
        self._learner: ModelLearner | None = None
        self._held_out = np.zeros(len(tasks), dtype=int)

    def _solve(self, psi: Tensor, generators: Sequence[torch.Generator]) -> Any:
        """Policies of tasks psi (M, k) in the frozen model."""
        self._reporter.phase(f"zero-shot, {len(psi)} policies")
        psi = self._run.family.box.check(psi, allow_outside=self._tasks.allow_outside)
        learner, method = self._run.learner, self._zero_shot
        return method.solve(
            learner,
            method.begin(learner.model, psi, generators),
            1,
            generators,
            fits=False,
            reporter=self._reporter,
            samples=self._samples,
        )

    def explore(self) -> Exploration:
        """See `Adapter`: one stage of real samples, with exploration noise."""
        num_episodes = self._config.num_stage_samples // self._run.family.horizon
        return Exploration(self._exploring(), num_episodes)

    def _exploring(self) -> SolutionPolicy:
        """The policies with the exploration noise that the method adds."""
        return SolutionPolicy(self._solution, self._slbo if self._in_stages.adds_noise else None)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: fit the tasks' models and train the policies in them."""
        self._adapt(experience.rollout)

    def _adapt(self, rollout: Rollout) -> None:
        """One stage of SLBO, with the samples of all tasks."""
        if self._learner is None:  # a model and data for every task
            self._learner = self._run.learner.fork(self._tasks.fresh_generators(FORKED_MODELS))
            self._before = num_held_out(self._learner)
        self._num_stages += 1
        self._samples.real += rollout.num_samples
        self._learner.add(rollout)
        self._reporter.phase(f"adaptation, stage {self._num_stages}, {len(self._tasks)} policies")
        self._solution = self._in_stages.solve(
            self._learner,
            self._in_stages.refreshed(self._solution, self._learner.model),
            self._slbo.num_iterations,
            self._tasks.generators,
            fits=True,
            reporter=self._reporter,
            samples=self._samples,
        )
        self._held_out = num_held_out(self._learner) - self._before

    def adapted(self) -> Policy:
        """See `Adapter`."""
        return SolutionPolicy(deepcopy(self._solution), is_mean=self._in_stages.is_tested_by_mean)

    def spent(self) -> dict[str, Any]:
        """See `Adapter`: every task draws as many virtual samples as the others."""
        return {"held_out": self._held_out, "virtual": self._samples.virtual // len(self._tasks)}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return self._run.provenance()


def stage_virtual(virtual: VirtualTrainingConfig, config: EvaluationConfig) -> VirtualTrainingConfig:
    """Virtual training of an adaptation stage."""
    return replace(
        virtual,
        num_model_steps=config.num_stage_model_steps,
        num_policy_updates=config.num_stage_updates,
        num_samples=config.num_samples,
    )


def num_held_out(learner: ModelLearner) -> np.ndarray:
    """Held-out transitions of every model's data (K,)."""
    return torch.stack([d.is_held_out.sum() for d in learner.data]).cpu().numpy()


def num_steps(config: EvaluationConfig) -> int:
    """Calls of `Reporter.advance` in the evaluation of one batch: updates, and the sampling of every stage."""
    per_stage = 1 + config.num_stage_iterations * config.num_stage_updates
    return config.num_updates + config.num_stages * per_stage


def relevant_settings(config: EvaluationConfig) -> dict[str, Any]:
    """The settings of an evaluation that the method's numbers depend on, as plain data."""
    left_out = NOT_OURS if config.num_stages else (*NOT_OURS, *STAGES)
    return {name: value for name, value in asdict(config).items() if name not in left_out}
