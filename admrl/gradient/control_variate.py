"""Real returns with the learned model as control variate: fewer real samples for the same error.

The post-SLBO model has seen the states that theta_hat and theta* visit, and often predicts the return of each real
episode from its start state and its action noise. With X the quantity in a real episode, Y the same in the model from
the same start and the same noise (mean over the members), and Y' in many further model episodes,

    E X  =  mean(X - beta Y) + beta mean(Y'),     beta = cov(X, Y) / var(Y) in [0, 1]

is unbiased whatever the model is worth, because beta comes from the other half of the episodes; a useless model has
beta near 0 and leaves the plain mean. The variance falls by the factor 1 - correlation^2.
Gaussian members take their mean step in both Y and Y', which must have one distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.gradient.score_function import discounts, reward_and_slopes
from admrl.solving.adaptation import Solution
from admrl.solving.rollouts import virtual_rollout
from dynamics.ensemble import DynamicsEnsemble
from dynamics.virtual_env import VirtualEnv
from task_families.family import TaskFamily
from task_families.rollout import Rollout


def lane_statistics(family: TaskFamily, psi: Tensor, rollout: Rollout, *, slopes: bool = True) -> Tensor:
    """Discounted return of every first episode, divided by the horizon, and with `slopes` its k derivatives in psi:
    (M, N, 1 + k), or (M, N, 1)."""

    def reward(point: Tensor) -> Tensor:
        return family.reward(point[:, None, None], rollout.obs, rollout.act, rollout.next_obs)

    mask, psi = rollout.first_episode(), psi.to(rollout.obs)
    weights = discounts(family, mask.shape[-1], rollout.obs)
    channels = reward_and_slopes(family, reward, psi) if slopes else [reward(psi)]
    return torch.stack([(torch.where(mask, c, 0.0) * weights).sum(-1) for c in channels], dim=-1)


@torch.no_grad()
def replay(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    rollout: Rollout,
    psi: Tensor,
    *,
    slopes: bool = True,
) -> Tensor:
    """`lane_statistics` of the rollout's episodes in the model, mean over its members: (M, N, 1 + k). The steps of
    gaussian members are their mean, here and in `virtual_mean`: Y and Y' must have one distribution.

    Args:
        rollout: real, of the solution's policies.
        psi: (M, k) whose reward counts.
    """
    policy, theta, (num_tasks, num_lanes, num_steps) = solution.policy, solution.theta, rollout.log_prob.shape
    members = model.num_members
    noise = policy.noise(theta, rollout.obs, rollout.act).repeat(1, members, 1, 1)
    # member e has the lanes e N ... e N + N - 1
    env = VirtualEnv(model, family, (num_tasks, num_lanes * members), derivatives="none")
    starts = rollout.obs[:, :, 0].repeat(1, members, 1)
    obs = env.reset(torch.ones(env.shape, dtype=torch.bool, device=starts.device), starts)
    steps = []
    for t in range(num_steps):
        act, log_prob = policy.sample(theta, obs, noise[:, :, t])
        next_obs = env.step(act)
        steps.append((obs, act, next_obs, log_prob, family.terminated(next_obs)))
        obs = next_obs
    obs, act, next_obs, log_prob, ends = (torch.stack(column, dim=2) for column in zip(*steps, strict=True))
    episodes = Rollout(obs, act, next_obs, log_prob, ends, torch.zeros_like(ends))
    return lane_statistics(family, psi, episodes, slopes=slopes).unflatten(1, (members, num_lanes)).mean(1)


@torch.no_grad()
def virtual_mean(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    psi: Tensor,
    num_lanes: int,
    generators: Sequence[torch.Generator],
    *,
    slopes: bool = True,
) -> Tensor:
    """Mean of `lane_statistics` over fresh episodes in the model: (M, 1 + k)."""
    rollout = virtual_rollout(family, model, solution, num_lanes, generators, draws_steps=False)
    return lane_statistics(family, psi, rollout, slopes=slopes).mean(1)


@dataclass(frozen=True)
class Controlled:
    """E X (G, q) from even and from odd episodes, and the standard error of their mean."""

    halves: tuple[Tensor, Tensor]
    error: Tensor

    @property
    def mean(self) -> Tensor:
        """(G, q)"""
        return (self.halves[0] + self.halves[1]) / 2


def controlled_means(real: Tensor, replayed: Tensor | None, virtual: Tensor | None) -> Controlled:
    """E X, with the beta of each half of the episodes from the other half; the plain mean without a model.

    Args:
        real, replayed: (G, N, q): X and Y of N episodes.
        virtual: (G, q), mean of Y'; its own error is not counted.
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    if replayed is None or virtual is None:
        rest = real
        halves = real[:, even].mean(1), real[:, odd].mean(1)
    else:
        beta_even = _slope(real[:, odd], replayed[:, odd])
        beta_odd = _slope(real[:, even], replayed[:, even])
        rest = torch.empty_like(real)
        for half, beta in ((even, beta_even), (odd, beta_odd)):
            rest[:, half] = real[:, half] - beta * (replayed[:, half] - virtual[:, None])
        halves = rest[:, even].mean(1), rest[:, odd].mean(1)
    return Controlled(halves, rest.std(1) / rest.shape[1] ** 0.5)


def controlled_replicates(real: Tensor, replayed: Tensor | None, virtual: Tensor | None) -> Tensor:
    """E X of policies that resemble each other, with as little as one episode each: (M, R, P, N) -> (M, R, P).

    The R replicates of one column P are the same policy up to the noise of its training, so all policies share beta,
    the slope of X on Y - E Y within columns. Even replicates take it from odd ones and the other way round, so the
    halves of the replicates are unbiased, too.

    Args:
        real, replayed: X and Y of N episodes of R x P policies.
        virtual: (M, R, P), mean of Y'; its own error is not counted.
    """
    if replayed is None or virtual is None:
        return real.mean(-1)
    y = replayed - virtual[..., None]
    beta = torch.empty_like(real)
    for half in (0, 1):
        x, z = (v[:, 1 - half :: 2] for v in (real, y))
        x, z = (v - v.mean((1, 3), keepdim=True) for v in (x, z))
        slope = _ratio(x * z, z.square(), (1, 2, 3))
        beta[:, half::2] = slope[:, None, None, None]
    return (real - beta * y).mean(-1)


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """cov(X, Y) / var(Y) of each row: (G, N, q) -> (G, 1, q)."""
    x, y = (z - z.mean(1, keepdim=True) for z in (x, y))
    return _ratio(x * y, y.square(), (1,))[:, None]


def _ratio(product: Tensor, square: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Sum over sum, 0 where Y is constant. Clipped to [0, 1], because X and Y are one quantity and few episodes give
    wild slopes."""
    below = square.sum(dim)
    return torch.where(below > 0, product.sum(dim) / below.clamp(min=1e-30), 0.0).clamp(0, 1)
