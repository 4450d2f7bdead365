"""M policies: what every inner method makes of them, and those of SLBO with their value functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig, VirtualTrainingConfig
from admrl.solving.lanes import Lanes
from dynamics.ensemble import DynamicsEnsemble
from dynamics.normalizer import Normalizer
from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.value import ValueFunction
from task_families.family import TaskFamily
from task_families.simulator import ActionBounds


class Policies(Protocol):
    """Policies of M tasks as rollouts see them."""

    @property
    def psi(self) -> Tensor:
        """(M, k), of the dtype and on the device of rollouts."""

    @property
    def act_size(self) -> int:
        """A"""

    def actor(self, noise: Tensor) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """(t, obs (M, N, S)) -> act (M, N, A), log pi (M, N), with standard normal noise (T, M, N, A)."""

    def scaled(self, unit: Tensor) -> Tensor:
        """Differences of unit actions (..., A) in the units of actions."""


@dataclass(frozen=True, eq=False)
class Solution:
    """M policies, one per task, with the value functions that trained them."""

    psi: Tensor  # (M, k)
    policy: GaussianPolicy
    theta: Tensor  # (M, p)
    value: ValueFunction
    weights: Tensor  # (M, F)
    patience: Tensor | None = None
    """(M, 2) float64, during a virtual training with `config.virtual.patience`: the best return in the model so far
    (-inf: none), and the updates in a row since it was reached. Always on the CPU."""
    lanes: Lanes | None = None
    """During a virtual training with `config.virtual.steps_per_lane`: where its episodes stand."""

    def to(self, device: torch.device | str) -> Solution:
        """The solution on a device; what `patience` counts stays on the CPU."""
        return replace(
            self,
            psi=self.psi.to(device),
            policy=self.policy.to(device),
            theta=self.theta.to(device),
            value=self.value.to(device),
            weights=self.weights.to(device),
            lanes=None if self.lanes is None else self.lanes.to(device),
        )

    @property
    def act_size(self) -> int:
        """See `Policies`."""
        return self.policy.act_size

    def actor(self, noise: Tensor) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """See `Policies`."""
        policy, theta = self.policy, self.theta
        deviation, log_prob = (x.unbind() for x in policy.deviations(theta, noise))  # T of (M, N, A), (M, N)
        mean = policy.mean_function(theta)

        def act(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
            return mean(obs) + deviation[t], log_prob[t]

        return act

    def scaled(self, unit: Tensor) -> Tensor:
        """See `Policies`."""
        return self.policy.scaled(unit)

    def tasks(self, index: slice | Tensor) -> Solution:
        """The solution of some tasks; their numbers are a tensor of the CPU."""
        patience = None if self.patience is None else self.patience[index]
        if isinstance(index, Tensor):
            index = index.to(self.theta.device)
        policy, value = self.policy, self.value
        if value.obs_mean.dim() == 2:
            mean, std = value.obs_mean[index], value.obs_std[index]
            policy, value = policy.with_normalizer(mean, std), replace(value, obs_mean=mean, obs_std=std)
        lanes = None if self.lanes is None else self.lanes.tasks(index)
        return Solution(
            self.psi[index], policy, self.theta[index], value, self.weights[index], patience, lanes
        )


def new_solution(
    model: DynamicsEnsemble,
    psi: Tensor,
    policy: GaussianPolicy,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> Solution:
    """`untrained` with the model's present normaliser and its action bounds (Alg. 1, line 3)."""
    return untrained(model.obs_normalizer, model.action_bounds, psi, policy, config, generators)


def untrained(
    normalizer: Normalizer,
    bounds: ActionBounds,
    psi: Tensor,
    policy: GaussianPolicy,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> Solution:
    """Random policies and zero value functions for tasks psi (M, k).

    Args:
        normalizer: of observations, for all tasks or for each of the M its own.
        bounds: the policies act in their units.

    Raises:
        ValueError: see `check_tasks`.
    """
    check_tasks(psi, generators)
    mean, std = _moments(normalizer)
    policy = with_actions(policy.with_normalizer(mean, std), bounds, mean)
    value = ValueFunction.make(mean, std, config.value)
    theta = policy.init(generators, dtype=mean.dtype).to(mean.device)
    return Solution(psi.to(mean), policy, theta, value, value.init(len(psi)))


def check_tasks(psi: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Tasks (M, k), a generator each: with further axes rewards would be broadcast, not refused.

    Raises:
        ValueError: another shape, or not one generator per task.
    """
    if psi.dim() != 2 or len(psi) != len(generators):
        raise ValueError(
            f"psi: expected shape (M, k) with a generator for each of the M tasks, got {tuple(psi.shape)} and "
            f"{len(generators)}"
        )


def with_actions(policy: GaussianPolicy, bounds: ActionBounds, like: Tensor) -> GaussianPolicy:
    """The policy shape with actions in units of the bounds, of like's dtype and device."""
    if bounds.are_unit:
        return policy
    return policy.with_action_units(bounds.center.to(like), bounds.scale.to(like))


def refresh_normalizer(solution: Solution, normalizer: Normalizer) -> Solution:
    """The same parameters with the present normaliser, after new data has moved it."""
    mean, std = _moments(normalizer)
    value = replace(solution.value, obs_mean=mean, obs_std=std)
    return replace(solution, policy=solution.policy.with_normalizer(mean, std), value=value)


def _moments(normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observations: (S,) for all tasks, or (M, S) for one each."""
    mean, std = normalizer.mean, normalizer.std
    return (mean[0].clone(), std[0].clone()) if len(mean) == 1 else (mean.clone(), std.clone())


def make_policy(family: TaskFamily, config: MetaTrainConfig) -> GaussianPolicy:
    """The policy shape of a configuration."""
    return GaussianPolicy(
        family.obs_size,
        family.act_size,
        hidden_sizes=config.policy_hidden_sizes,
        fixed_log_std=config.fixed_log_std,
    )
