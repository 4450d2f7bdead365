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
from torch.nn.functional import one_hot
from torch.special import log_ndtr

from policy_opt.gaussian_policy import gaussian_log_prob
from task_families.family import TaskFamily


class Head(Protocol):
    """pi(. | output): output (..., A), shapes of one action (..., A)."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """An action in units of the policy for standard normal noise (..., A)."""

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """log pi of an action in units of the policy (...)."""

    def entropy(self, output: Tensor) -> Tensor:
        """Nats (...)."""

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

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """See `Head`; a density of unit actions."""
        return gaussian_log_prob(output, self.log_std, act)

    def entropy(self, output: Tensor) -> Tensor:
        """See `Head`: sum_i log_std_i + A (1 + log 2 pi) / 2."""
        each = 0.5 * (1 + torch.log(self.log_std.new_full((), 2 * torch.pi)))
        return (self.log_std + each).sum().expand(output.shape[:-1])

    def to_unit(self, act: Tensor) -> Tensor:
        """See `Head`."""
        return (act - self.center) / self.scale

    def from_unit(self, unit: Tensor) -> Tensor:
        """See `Head`."""
        return torch.addcmul(self.center, self.scale, unit)


class CategoricalHead(nn.Module):
    """Without parameters of its own."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """See `Head`: argmax_i (output_i + g_i), g_i = -log(-log Phi(noise_i)) standard Gumbel."""
        gumbel = -torch.log(-log_ndtr(noise))
        return one_hot((output + gumbel).argmax(-1), output.shape[-1]).to(output)

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """See `Head`: log softmax(output)_i of the largest number of act."""
        return output.log_softmax(-1).gather(-1, act.argmax(-1, keepdim=True))[..., 0]

    def entropy(self, output: Tensor) -> Tensor:
        """See `Head`: -sum_i p_i log p_i."""
        log_p = output.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def to_unit(self, act: Tensor) -> Tensor:
        """See `Head`: the one-hot vector of the largest number."""
        return one_hot(act.argmax(-1), act.shape[-1]).to(act)

    def from_unit(self, unit: Tensor) -> Tensor:
        """See `Head`."""
        return unit


def head_of(family: TaskFamily, action_scale: float) -> GaussianHead | CategoricalHead:
    """The head that a family's actions need."""
    return CategoricalHead() if family.picks_largest else GaussianHead(family, action_scale)
