"""Score-function estimates of the return: scalar functions whose derivatives at theta_old are the estimators.

With l_t = log pi_theta(a_t | s_t), D_t = l_t(theta) - l_t(theta_old), weights w_n that sum to 1 (1 / N for samples,
probabilities for an enumeration):

    whole trajectory  J = sum_n w_n R_n exp(sum_t D_nt)              R_n = sum_t gamma^t r_nt     Eq. 4, 6, 7 literal
    per step          J = sum_n w_n sum_t A_nt exp(D_nt)             drops the terms t != t' of the Hessian: biased
    causal            J = sum_n w_n sum_t gamma^t d_nt exp(sum_{u<=t} D_nu)
                      d_t = r_t + gamma V(s_t+1) - V(s_t)            all cross-time terms

The first derivative in theta is the policy gradient (Eq. 4), the second the policy Hessian (Eq. 7), the mixed one
Eq. 6; all are unbiased for `whole_trajectory` and `causal`. There, V is any function of the state, 0 after the last
step: the sum telescopes, so V moves no derivative and only removes variance. `fit_baseline` makes it depend on psi,

    V_psi(s) = V(s) + (psi - psi_0)' U(s),    U the value function of d r/d psi,

so that the mixed derivative has a baseline, too; each half of the lanes uses the V of the other half, without which
the estimates would be biased.

Differs from the paper:
1. The objective that trained theta_hat goes on after the time limit with V; this one ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.gradient.implicit import Return
from admrl.solving.adaptation import Solution
from policy_opt.advantage import gae
from task_families.family import TaskFamily
from task_families.rollout import Rollout
from task_families.task_space import TaskSpace, unwrapped

HALF_STEP = 0.1  # of the half-range of a task parameter, where a reward is differed instead of differentiated
Values = Callable[[Tensor], tuple[Tensor, Tensor]]
"""psi (M, k) -> V_psi of every state and of its successor, each (M, N, T); the latter 0 after the last step."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The first episodes of N lanes for M tasks, as functions of the parameters."""

    log_prob: Callable[[Tensor], Tensor]  # theta (M, p) -> (M, N, T)
    reward: Callable[[Tensor], Tensor]  # psi (M, k) -> (M, N, T)
    mask: Tensor  # (M, N, T) bool, the steps that count
    weight: Tensor  # (M, N), sums to 1 over the lanes
    discount: Tensor  # (T,) gamma^t / T: returns are per step
    values: Values | None = None

    def masked(self, x: Tensor) -> Tensor:
        """x (M, N, T) with 0 at the steps that do not count."""
        return torch.where(self.mask, x, 0.0)

    def log_ratio(self, theta: Tensor, reference: Tensor) -> Tensor:
        """D (M, N, T)."""
        return self.masked(self.log_prob(theta) - reference)


def trajectories(family: TaskFamily, solution: Solution, rollout: Rollout) -> Trajectories:
    """Sampled trajectories of a policy; no baseline yet."""
    mask = rollout.first_episode()
    num_lanes, num_steps = mask.shape[1:]
    like = rollout.obs

    def reward(psi: Tensor) -> Tensor:
        return family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)

    return Trajectories(
        log_prob=lambda theta: solution.policy.log_prob(theta, rollout.obs, rollout.act),
        reward=reward,
        mask=mask,
        weight=like.new_full(mask.shape[:2], 1 / num_lanes),
        discount=discounts(family, num_steps, like),
    )


def discounts(family: TaskFamily, num_steps: int, like: Tensor) -> Tensor:
    """gamma^t / T (T,)."""
    steps = torch.arange(num_steps, dtype=like.dtype, device=like.device)
    return family.gamma**steps / num_steps


def whole_trajectory_return(data: Trajectories, theta_old: Tensor) -> Return:
    """See the head of this page."""
    reference = data.log_prob(theta_old).detach()

    def eta(theta: Tensor, psi: Tensor) -> Tensor:
        ratio = data.log_ratio(theta, reference).sum(-1).exp()
        returns = (data.discount * data.masked(data.reward(psi))).sum(-1)
        return (data.weight * returns * ratio).sum(-1)

    return eta


def per_step_return(data: Trajectories, theta_old: Tensor, advantage: Callable[[Tensor], Tensor]) -> Return:
    """See the head of this page; advantage: psi -> (M, N, T), without the discount, as in the released code."""
    reference = data.log_prob(theta_old).detach()

    def eta(theta: Tensor, psi: Tensor) -> Tensor:
        ratio = data.log_ratio(theta, reference).exp()
        per_lane = data.masked(advantage(psi) * ratio).sum(-1) / data.mask.shape[-1]
        return (data.weight * per_lane).sum(-1)

    return eta


def causal_return(data: Trajectories, theta_old: Tensor) -> Return:
    """See the head of this page."""
    reference = data.log_prob(theta_old).detach()

    def eta(theta: Tensor, psi: Tensor) -> Tensor:
        ratio = data.log_ratio(theta, reference).cumsum(-1).exp()
        delta = data.reward(psi)
        if data.values is not None:
            value, next_value = data.values(psi)
            delta = delta + next_value - value
        return (data.weight * (data.discount * ratio * data.masked(delta)).sum(-1)).sum(-1)

    return eta


def released_advantage(
    family: TaskFamily, solution: Solution, rollout: Rollout, gae_lambda: float
) -> Callable[[Tensor], Tensor]:
    """psi -> GAE advantage (M, N, T), V constant in psi: the psi-dependence that the released code sees."""
    value = solution.value(solution.weights, rollout.obs)
    next_value = solution.value(solution.weights, rollout.next_obs)

    def advantage(psi: Tensor) -> Tensor:
        reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
        return gae(
            reward,
            value,
            next_value,
            rollout.terminated,
            rollout.truncated,
            gamma=family.gamma,
            gae_lambda=gae_lambda,
        )

    return advantage


def with_baseline(
    family: TaskFamily, solution: Solution, rollout: Rollout, data: Trajectories
) -> Trajectories:
    """The same trajectories with V_psi, fitted to the discounted sums that follow each state.

    The features are those of the solution's value function and the time left.
    """
    psi_0 = solution.psi
    channels = reward_and_slopes(family, data.reward, psi_0)  # (1 + k) of (M, N, T)
    targets = torch.stack([_to_go(data.masked(c), family.gamma) for c in channels], dim=-1)
    features = _features(solution, rollout.obs, 0)
    next_features = _features(solution, rollout.next_obs, 1)
    values, next_values = torch.empty_like(targets), torch.empty_like(targets)
    for fitted, used in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        rows = data.masked(torch.ones_like(targets[..., 0]))[:, fitted]
        x = (features[:, fitted] * rows[..., None]).flatten(1, 2).double()
        y = (targets[:, fitted] * rows[..., None]).flatten(1, 2).double()
        gram = x.transpose(1, 2) @ x
        size = gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        solved, info = torch.linalg.solve_ex(gram + solution.value.ridge * size * eye, x.transpose(1, 2) @ y)
        weights = torch.where(info[:, None, None] == 0, solved, torch.nan).to(targets)
        values[:, used] = features[:, used] @ weights[:, None]
        next_values[:, used] = next_features[:, used] @ weights[:, None]
    last = rollout.terminated | rollout.truncated
    last = torch.cat([last[..., :-1], torch.ones_like(last[..., :1])], dim=-1)
    next_values = family.gamma * torch.where(last[..., None], 0.0, next_values)

    def at(psi: Tensor) -> tuple[Tensor, Tensor]:
        shift = torch.cat([torch.ones_like(psi[:, :1]), psi - psi_0.to(psi)], dim=-1)[:, None, None]
        return (values * shift).sum(-1), (next_values * shift).sum(-1)

    return replace(data, values=at)


def reward_and_slopes(family: TaskFamily, reward: Callable[[Tensor], Tensor], psi: Tensor) -> list[Tensor]:
    """r and its k derivatives d r/d psi_i at every step, each (M, N, T); differences where r has no gradient."""
    slopes = []
    for i in range(psi.shape[-1]):
        direction = torch.zeros_like(psi)
        direction[:, i] = 1
        if family.reward_has_gradient:
            slopes.append(torch.func.jvp(reward, (psi,), (direction,))[1].detach())
        else:
            slopes.append(_difference(family.box, reward, psi, direction))
    return [reward(psi).detach(), *slopes]


def _difference(
    space: TaskSpace, reward: Callable[[Tensor], Tensor], psi: Tensor, direction: Tensor
) -> Tensor:
    """(r(up) - r(down)) / |up - down| along an axis, with tasks of the space at up to HALF_STEP of its half-range to
    both sides of psi; 0 where the space has no two such tasks."""
    step = HALF_STEP * (space.high - space.low).to(psi) / 2 * direction
    (up, ahead), (down, behind) = (unwrapped(space, psi + sign * step) for sign in (1, -1))
    width = ((ahead - behind) * direction).sum(-1)
    change = reward(up) - reward(down)
    return torch.where(width[:, None, None] > 0, change / width[:, None, None], 0.0)


def _to_go(x: Tensor, gamma: float) -> Tensor:
    """sum_{u>=t} gamma^(u-t) x_u along the last axis."""
    out = x.clone()
    for t in range(x.shape[-1] - 2, -1, -1):
        out[..., t] += gamma * out[..., t + 1]
    return out


def _features(solution: Solution, obs: Tensor, shift: int) -> Tensor:
    """Features of the value function, and of the time that has passed: (M, N, T, F + 2)."""
    phi = solution.value.features(obs)
    steps = obs.shape[-2]
    time = (torch.arange(steps, dtype=obs.dtype, device=obs.device) + shift) / steps
    time = time[:, None].expand(*obs.shape[:-1], 1)
    return torch.cat([phi, time, time.square()], dim=-1)
