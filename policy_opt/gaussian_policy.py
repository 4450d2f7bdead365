"""GaussianPolicy: a = mean(s) + sigma eps with a tanh network for the mean and a state-independent sigma.

Holds shapes and the observation normaliser; the parameters theta (M, p) of M policies travel as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from policy_opt.policy import ActionDistribution, Policy


@dataclass(frozen=True, eq=False)
class GaussianPolicy(Policy):
    """pi_theta(a | s) = N(mean_theta(s), diag(exp(2 log_std))).

    theta is the network's flat parameters, then log_std (A) unless it is fixed. Observations are normalised
    as (s - obs_mean) / obs_std before the network; without a normaliser they are used as they are. The network's mean
    and log_std are in units of act_scale from act_center, so that theta does not depend on the unit of actions; all
    actions and densities below are in the actions' own units. In the shapes below ... stands for one or more sample
    axes.
    """

    obs_size: int
    act_size: int
    hidden_sizes: tuple[int, ...] = (32, 32)
    fixed_log_std: float | None = None
    obs_mean: Tensor | None = None  # (S,) or (M, S)
    obs_std: Tensor | None = None
    act_center: Tensor | None = None  # (A,); None: 0
    act_scale: Tensor | None = None  # (A,) above 0; None: 1

    @property
    def num_params(self) -> int:
        """p"""
        return self.mlp.num_params + (self.act_size if self.fixed_log_std is None else 0)

    @property
    def shape_key(self) -> Hashable:
        """See `Policy`."""
        return self.mlp.sizes, self.fixed_log_std

    def with_action_units(self, center: Tensor, scale: Tensor) -> GaussianPolicy:
        """The same policy shape with actions in units of scale (A,) from center (A,)."""
        return replace(self, act_center=center, act_scale=scale)

    def in_units(self) -> GaussianPolicy:
        """The policy of the actions that `to_unit` gives."""
        return self if self.act_scale is None else replace(self, act_center=None, act_scale=None)

    def to_unit(self, act: Tensor) -> Tensor:
        """act (..., A) -> (act - act_center) / act_scale."""
        if self.act_center is None or self.act_scale is None:
            return act
        return (act - self.act_center.to(act)) / self.act_scale.to(act)

    def scaled(self, x: Tensor) -> Tensor:
        """Differences of actions (..., A) from units of act_scale to the actions' own."""
        return x if self.act_scale is None else x * self.act_scale.to(x)

    def init(self, generators: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """theta (M, p), one generator per task: mean near act_center, sigma act_scale (released AdMRL code: 0, 1)."""
        theta = self.mlp.init(generators, output_scale=0.01, dtype=dtype)
        if self.fixed_log_std is None:
            theta = torch.cat([theta, theta.new_zeros(len(theta), self.act_size)], dim=-1)
        return theta

    def mean(self, theta: Tensor, obs: Tensor) -> Tensor:
        """theta (M, p), obs (M, ..., S) -> (M, ..., A)."""
        return self.mean_function(theta)(obs.flatten(1, -2)).view(*obs.shape[:-1], self.act_size)

    def mean_function(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """`mean` with the parameters looked up once, for many calls: obs (M, N, S) -> (M, N, A)."""
        unit = self._unit_mean(theta)
        if self.act_center is None or self.act_scale is None:
            return unit
        center, scale = self.act_center.to(theta), self.act_scale.to(theta)
        return lambda obs: torch.addcmul(center, scale, unit(obs))

    def _unit_mean(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        network = self.mlp.function(theta[..., : self.mlp.num_params])
        if self.obs_mean is None or self.obs_std is None:
            return network
        mean, std = (x.to(theta).view(-1, 1, self.obs_size) for x in (self.obs_mean, self.obs_std))
        return lambda obs: network((obs - mean) / std)

    def log_std(self, theta: Tensor) -> Tensor:
        """Logarithm of the standard deviation in units of act_scale: theta (M, p) -> (M, A)."""
        if self.fixed_log_std is None:
            return theta[..., -self.act_size :]
        return theta.new_full((*theta.shape[:-1], self.act_size), self.fixed_log_std)

    def sample(self, theta: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (M, ..., A) for standard normal noise (M, ..., A), and their log probabilities (M, ...)."""
        deviation, log_prob = self.deviations(theta, noise[None])
        return self.mean(theta, obs) + deviation[0], log_prob[0]

    def deviations(self, theta: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions minus their means, and log probabilities: noise (T, M, ..., A) -> the same shape, (T, M, ...)."""
        log_std = _align(self.log_std(theta), noise[0])
        log_prob = (
            -0.5 * noise.square().sum(-1) - log_std.sum(-1) - 0.5 * math.log(2 * math.pi) * self.act_size
        )
        return self.scaled(log_std.exp() * noise), self._in_own_units(log_prob)

    def noise(self, theta: Tensor, obs: Tensor, act: Tensor) -> Tensor:
        """The standard normal noise with which `sample` chose act: (M, ..., S), (M, ..., A) -> (M, ..., A)."""
        unit = self.in_units()
        return (self.to_unit(act) - unit.mean(theta, obs)) / _align(unit.log_std(theta).exp(), obs)

    def actor(self, theta: Tensor, noise: Tensor) -> Callable[[int, Tensor], Tensor]:
        """See `Policy`."""
        deviation = self.deviations(theta, noise)[0]  # (T, M, ..., A)
        mean = self.mean_function(theta)
        return lambda t, obs: mean(obs) + deviation[t]

    def distribution(self, theta: Tensor, x: Tensor) -> Gaussians:
        """See `Policy`."""
        return Gaussians(self.mlp(theta[:, : self.mlp.num_params], x), self.log_std(theta)[:, None])

    def log_prob(self, theta: Tensor, obs: Tensor, act: Tensor) -> Tensor:
        """log pi_theta(act | obs): (M, ..., S), (M, ..., A) -> (M, ...)."""
        mean, log_std = self.in_units().mean(theta, obs), _align(self.log_std(theta), obs)
        return self._in_own_units(gaussian_log_prob(mean, log_std, self.to_unit(act)))

    def _in_own_units(self, log_density: Tensor) -> Tensor:
        """A log density per unit action as one per action."""
        return log_density if self.act_scale is None else log_density - self.act_scale.log().sum()

    def kl(self, theta_old: Tensor, theta_new: Tensor, obs: Tensor) -> Tensor:
        """KL(pi_old || pi_new) in each state, nats: obs (M, ..., S) -> (M, ...)."""
        unit = self.in_units()
        return gaussian_kl(
            unit.mean(theta_old, obs),
            _align(self.log_std(theta_old), obs),
            unit.mean(theta_new, obs),
            _align(self.log_std(theta_new), obs),
        )

    def entropy(self, theta: Tensor) -> Tensor:
        """Differential entropy, nats, the same in every state: (M, p) -> (M,)."""
        entropy = self.log_std(theta).sum(-1) + 0.5 * self.act_size * (1 + math.log(2 * math.pi))
        return -self._in_own_units(-entropy)

    def fisher_product(self, theta: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Policy`.

            F = mean_s J(s)' diag(1 / sigma^2) J(s)  for the network,   2 I  for log_std

        with J the Jacobian of the mean at cached activations.
        """
        num_net = self.mlp.num_params
        jvp, vjp = self.mlp.linearize(theta[:, :num_net], x)
        precision = torch.exp(-2 * self.log_std(theta))[:, None] / x.shape[1]

        def product(v: Tensor) -> Tensor:
            net = vjp(jvp(v[:, :num_net]) * precision)
            return torch.cat([net, 2 * v[:, num_net:]], dim=-1)

        return product


@dataclass(frozen=True, eq=False)
class Gaussians(ActionDistribution):
    """See `ActionDistribution`; in units of the policy."""

    mean: Tensor  # (M, R, A)
    log_std: Tensor  # (M, 1, A)

    def log_prob(self, act: Tensor) -> Tensor:
        """See `ActionDistribution`."""
        return gaussian_log_prob(self.mean, self.log_std, act)

    def kl(self, new: Self) -> Tensor:
        """See `ActionDistribution`."""
        return gaussian_kl(self.mean, self.log_std, new.mean, new.log_std)

    def entropy(self) -> Tensor:
        """See `ActionDistribution`."""
        return self.log_std.sum(-1) + 0.5 * self.log_std.shape[-1] * (1 + math.log(2 * math.pi))


def gaussian_log_prob(mean: Tensor, log_std: Tensor, act: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over the last axis."""
    z = (act - mean) * torch.exp(-log_std)
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_kl(mean_old: Tensor, log_std_old: Tensor, mean_new: Tensor, log_std_new: Tensor) -> Tensor:
    """KL(old || new) of diagonal Gaussians, summed over the last axis.

        KL = (exp(2 d) - 1) / 2 - d + distance / 2,  d = log_std_old - log_std_new

    with exp(2 d) - 1 by expm1: near 0, where trust regions are, the difference is of the order d^2.
    """
    d = log_std_old - log_std_new
    distance = ((mean_old - mean_new) * torch.exp(-log_std_new)).square()
    return (0.5 * torch.expm1(2 * d) - d + 0.5 * distance).sum(-1)


def _align(per_task: Tensor, obs: Tensor) -> Tensor:
    """(M, A) -> (M, 1, ..., A) with as many axes as obs."""
    return per_task.view(per_task.shape[0], *([1] * (obs.dim() - 2)), per_task.shape[-1])
