"""What the network's output says about the action: a Gaussian, or a choice of one number among A.

    Gaussian     u ~ N(output, diag exp(2 log_std)),   action = center + scale u / action_scale
    Categorical  P(i) = softmax(output)_i,             action = one-hot of i, for families that pick the largest

Both turn the standard normal noise of a rollout into their draw, so that an evaluation's common noise drives them.
u and the one-hot vector are the action in units of the policy: what log-probabilities and the network's input speak.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from policy_opt.categorical_policy import Categoricals, gumbel, one_hot
from policy_opt.gaussian_policy import Gaussians
from policy_opt.policy import ActionDistribution
from task_families.family import TaskFamily


class Head(Protocol):
    """pi(. | output): output (..., A), shapes of one action (..., A)."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """An action in units of the policy for standard normal noise (..., A)."""

    def distribution(self, output: Tensor) -> ActionDistribution:
        """Of actions in units of the policy; any number of sample axes."""

    def to_unit(self, act: Tensor) -> Tensor:
        """An action of the family in units of the policy."""

    def from_unit(self, unit: Tensor) -> Tensor:
        """The inverse of `to_unit`."""


class GaussianHead(nn.Module):
    """log_std is a parameter, the same in every state, 0 at first."""

    center: Tensor
    scale: Tensor

    def __init__(self, family: TaskFamily, action_scale: float) -> None:
        super().__init__()
        bounds = family.action_bounds
        self.log_std = nn.Parameter(torch.zeros(family.act_size, dtype=torch.float32))
        self.register_buffer("center", bounds.center.float(), persistent=False)
        self.register_buffer("scale", (bounds.scale / action_scale).float(), persistent=False)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """See `Head`."""
        return output + self.log_std.exp() * noise

    def distribution(self, output: Tensor) -> Gaussians:
        """See `Head`; densities are of unit actions."""
        return Gaussians(output, self.log_std.expand_as(output))

    def to_unit(self, act: Tensor) -> Tensor:
        """See `Head`."""
        return (act - self.center) / self.scale

    def from_unit(self, unit: Tensor) -> Tensor:
        """See `Head`."""
        return torch.addcmul(self.center, self.scale, unit)


class CategoricalHead(nn.Module):
    """Without parameters of its own."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """See `Head`."""
        return one_hot(output + gumbel(noise))

    def distribution(self, output: Tensor) -> Categoricals:
        """See `Head`."""
        return Categoricals(output.log_softmax(-1))

    def to_unit(self, act: Tensor) -> Tensor:
        """See `Head`: the one-hot vector of the largest number."""
        return one_hot(act)

    def from_unit(self, unit: Tensor) -> Tensor:
        """See `Head`."""
        return unit


def head_of(family: TaskFamily, action_scale: float) -> GaussianHead | CategoricalHead:
    """The head that a family's actions need."""
    return CategoricalHead() if family.picks_largest else GaussianHead(family, action_scale)
