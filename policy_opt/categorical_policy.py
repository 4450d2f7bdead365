"""CategoricalPolicy: one of A actions, by the softmax of a tanh network's outputs.

    pi_theta(i | s) = p_i,  p = softmax(z),  z = network(s)
    a = one-hot of argmax_i (z_i + g_i),  g_i = -log(-log u_i),  u_i uniform                (Gumbel 1954)
    F = mean_s J(s)' (diag p - p p') J(s),  J the Jacobian of z: the Hessian of the KL divergence, and Gauss-Newton

An action is a one-hot vector (..., A), as families take it of which only the largest number counts. The uniform
numbers are u = Phi(noise) of standard normal noise, so that every policy acts by the same kind of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from policy_opt.policy import ActionDistribution, Policy


@dataclass(frozen=True, eq=False)
class CategoricalPolicy(Policy):
    """See the head of this page; theta is the network's flat parameters.

    Observations are normalised as (s - obs_mean) / obs_std; without a normaliser they are used as they are. In the
    shapes below ... stands for one or more sample axes.
    """

    obs_size: int
    act_size: int  # A, the number of actions
    hidden_sizes: tuple[int, ...] = (32, 32)
    obs_mean: Tensor | None = None  # (S,) or (M, S)
    obs_std: Tensor | None = None

    @property
    def num_params(self) -> int:
        """p"""
        return self.mlp.num_params

    @property
    def shape_key(self) -> Hashable:
        """See `Policy`."""
        return self.mlp.sizes

    def init(self, generators: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """theta (M, p), one generator per task: all actions are nearly as probable."""
        return self.mlp.init(generators, output_scale=0.01, dtype=dtype)

    def logits(self, theta: Tensor, obs: Tensor) -> Tensor:
        """z, up to a constant: theta (M, p), obs (M, ..., S) -> (M, ..., A)."""
        x = self.normalize(obs).flatten(1, -2)
        return self.mlp(theta, x).view(*obs.shape[:-1], self.act_size)

    def distribution(self, theta: Tensor, x: Tensor) -> Categoricals:
        """See `Policy`."""
        return Categoricals(self.mlp(theta, x).log_softmax(-1))

    def sample(self, theta: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (M, ..., A) for standard normal noise (M, ..., A), and their log probabilities (M, ...)."""
        logits = self.logits(theta, obs)
        act = one_hot(logits + gumbel(noise))
        return act, Categoricals(logits.log_softmax(-1)).log_prob(act)

    def actor(self, theta: Tensor, noise: Tensor) -> Callable[[int, Tensor], Tensor]:
        """See `Policy`."""
        luck = gumbel(noise)
        return lambda t, obs: one_hot(self.logits(theta, obs) + luck[t])

    def log_prob(self, theta: Tensor, obs: Tensor, act: Tensor) -> Tensor:
        """log pi_theta(act | obs): (M, ..., S), one-hot (M, ..., A) -> (M, ...)."""
        return self._at(theta, obs).log_prob(act)

    def kl(self, theta_old: Tensor, theta_new: Tensor, obs: Tensor) -> Tensor:
        """KL(pi_old || pi_new) in each state, nats: obs (M, ..., S) -> (M, ...)."""
        return self._at(theta_old, obs).kl(self._at(theta_new, obs))

    def entropy(self, theta: Tensor, obs: Tensor) -> Tensor:
        """Entropy in each state, nats: obs (M, ..., S) -> (M, ...)."""
        return self._at(theta, obs).entropy()

    def _at(self, theta: Tensor, obs: Tensor) -> Categoricals:
        return Categoricals(self.logits(theta, obs).log_softmax(-1))

    def fisher_product(self, theta: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Policy`; F of the head of this page, at cached activations."""
        jvp, vjp = self.mlp.linearize(theta, x)
        p = self.mlp(theta, x).softmax(-1)  # (M, R, A)

        def product(v: Tensor) -> Tensor:
            dp = p * jvp(v)
            return vjp((dp - p * dp.sum(-1, keepdim=True)) / x.shape[1])  # (diag p - p p') J v

        return product


@dataclass(frozen=True, eq=False)
class Categoricals(ActionDistribution):
    """See `ActionDistribution`; any number of sample axes."""

    log_p: Tensor  # (M, R, A), normalised

    def log_prob(self, act: Tensor) -> Tensor:
        """See `ActionDistribution`; act is one-hot."""
        return (self.log_p * act).sum(-1)

    def kl(self, new: Self) -> Tensor:
        """See `ActionDistribution`.

            sum_i p_i d_i = sum_i p_i d_i + p'_i - p_i = sum_i p_i (d_i + exp(-d_i) - 1),  d = log p - log p'

        because both sum to 1: no term is negative, where those of the first sum nearly cancel for policies that are
        close. The last form is that of small d, where it is exact; beyond, exp(-d) may be infinite.
        """
        d, p = self.log_p - new.log_p, self.log_p.exp()
        small = d.clamp(-1, 1)
        return torch.where(d.abs() < 1, p * (small + torch.expm1(-small)), p * d + new.log_p.exp() - p).sum(
            -1
        )

    def entropy(self) -> Tensor:
        """See `ActionDistribution`."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


def gumbel(noise: Tensor) -> Tensor:
    """g = -log(-log Phi(noise)) of standard normal noise, any shape; finite up to 12 in single precision."""
    tail = 0.5 * torch.erfc(noise.abs() / math.sqrt(2))  # Phi(-|noise|)
    return -torch.log(torch.where(noise > 0, -torch.log1p(-tail), -torch.log(tail)))


def one_hot(score: Tensor) -> Tensor:
    """Of the largest number in the last axis: (..., A) -> (..., A) in the same dtype."""
    index = torch.arange(score.shape[-1], device=score.device)
    return (index == score.argmax(-1, keepdim=True)).to(score)
