"""InnerMethod: what Alg. 1 asks of whoever solves tasks in a learned model: begin, fit and solve, explore.

    begin      untrained policies of M tasks                                                  Alg. 1, line 3
    solve      n iterations: fit the model on its data, improve the policies in it            Alg. 2
    explore    the policies that draw real samples: stochastic, with or without further noise Alg. 1, line 6

Two methods: `Slbo` here, AdMRL's own, and `admrl.solving.mbpo.Mbpo`. A step of either is one policy update; for both
`VirtualTrainingConfig` says how many updates make an iteration, how many virtual samples an update takes, and how
long the model is fitted before an iteration's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig, VirtualTrainingConfig
from admrl.jobs.reporter import Reporter
from admrl.solving.mbpo import Mbpo
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import Policies, Solution, make_policy, new_solution, refresh_normalizer
from admrl.solving.virtual_training import OnStep, virtual_training
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily

S = TypeVar("S", bound=Policies)


class InnerMethod(Protocol[S]):
    """See the head of this page."""

    adds_noise: ClassVar[bool]
    """Whether exploration noise is added to the actions of its policies."""
    is_tested_by_mean: ClassVar[bool]
    """Whether its policies are tested without noise of their own."""

    def begin(self, model: DynamicsEnsemble, psi: Tensor, generators: Sequence[torch.Generator]) -> S:
        """Untrained policies of tasks psi (M, k), each from its own generator.

        Raises:
            ValueError: psi of another shape, or not one generator per task.
        """

    def solve(
        self,
        learner: ModelLearner,
        solution: S,
        num_iterations: int,
        generators: Sequence[torch.Generator],
        *,
        fits: bool,
        reporter: Reporter | None = None,
        samples: SampleCounts | None = None,
        num_done: int = 0,
        on_step: OnStep | None = None,
    ) -> S:
        """n iterations; a new solution, the old one stays as it was. No task's depends on the others of the batch, up
        to the rounding of products.

        Args:
            learner: one model and data for all tasks, or one for each.
            fits: whether the model is fitted, too; otherwise it stays as it is.
            samples, num_done, on_step: see `admrl.solving.virtual_training.virtual_training`.
        """

    def refreshed(self, solution: S, model: DynamicsEnsemble) -> S:
        """The same policies after new data, which may have moved the model's normalisers."""


@dataclass(frozen=True)
class Slbo:
    """AdMRL's own: TRPO on episodes in the model, Alg. 2 (`admrl.solving.virtual_training`)."""

    adds_noise: ClassVar[bool] = True
    is_tested_by_mean: ClassVar[bool] = False

    family: TaskFamily
    policy: GaussianPolicy
    virtual: VirtualTrainingConfig

    def begin(self, model: DynamicsEnsemble, psi: Tensor, generators: Sequence[torch.Generator]) -> Solution:
        """See `InnerMethod`."""
        return new_solution(model, psi, self.policy, self.virtual, generators)

    def solve(
        self,
        learner: ModelLearner,
        solution: Solution,
        num_iterations: int,
        generators: Sequence[torch.Generator],
        *,
        fits: bool,
        reporter: Reporter | None = None,
        samples: SampleCounts | None = None,
        num_done: int = 0,
        on_step: OnStep | None = None,
    ) -> Solution:
        """See `InnerMethod`."""
        return virtual_training(
            self.family,
            learner.model,
            solution,
            num_iterations,
            self.virtual,
            generators,
            learner=learner if fits else None,
            reporter=reporter,
            samples=samples,
            num_done=num_done,
            on_step=on_step,
        )

    def refreshed(self, solution: Solution, model: DynamicsEnsemble) -> Solution:
        """See `InnerMethod`."""
        return refresh_normalizer(solution, model.obs_normalizer)


def make_method(
    family: TaskFamily,
    config: MetaTrainConfig,
    virtual: VirtualTrainingConfig | None = None,
    name: str = "config.virtual.num_samples",
) -> InnerMethod[Any]:
    """The learner that a configuration names.

    Args:
        virtual: in place of the configuration's; its number of samples has that name.

    Raises:
        ValueError: see `Mbpo.make`.
    """
    virtual = virtual or config.virtual
    if config.learner == "mbpo":
        return Mbpo.make(family, config, virtual, name)
    return Slbo(family, make_policy(family, config), virtual)
