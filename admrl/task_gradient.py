"""The gradient of the sub-optimality gap in the task parameters, AdMRL Eq. 2.

    dL/dpsi = d eta*/d psi |theta*  -  ( (d theta_hat/d psi)' d eta*/d theta |theta_hat  +  d eta*/d psi |theta_hat )
              `optimal`                  `implicit`                                         `adapted`

    d theta_hat/d psi = -H^-1 B,   H = d2 eta^/d theta d theta',   B = d2 eta^/d theta d psi'         (Eq. 5)

Only the product with v = d eta*/d theta is needed, so one system is solved instead of k:

    H y = v,   implicit = -B' y

Everything is a derivative of three scalar functions of (theta, psi): the return in the model at theta_hat, the
return in the truth at theta_hat and at theta*. Given exact returns, the result is exact; given
`importance_weighted_return` of rollouts, it is the score-function estimator of Eq. 3, 4, 6 and 7.

Differs from the paper:
1. One adjoint solve; the paper solves for each of the k columns of d theta_hat/d psi.
2. The Hessian is that of the return, with all cross-time terms; the released code drops them (and is biased).
3. The damping is relative to |A|^2; the released code's is 0.1 x the number of parameters, which in its own
   runs exceeded every eigenvalue of A'A.
4. Returns here are divided by the horizon (unit: reward per step), so that the step size means the same
   for every family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.adaptation import Solution
from admrl.config import TaskGradientConfig
from policy_opt.curvature import hessian_operator
from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.lanczos import lanczos_solve
from policy_opt.linear_solve import LinearSolveResult
from task_families.family import TaskFamily
from task_families.rollout import Rollout

Return = Callable[[Tensor, Tensor], Tensor]
"""eta: theta (M, p), psi (M, k) -> (M,), twice differentiable; row m depends on rows m alone."""


@dataclass(frozen=True, eq=False)
class TaskGradient:
    """The three parts of Eq. 2 (M, k), in units of the returns that were given per unit of psi."""

    optimal: Tensor
    adapted: Tensor
    implicit: Tensor
    solve: LinearSolveResult
    split_half_cosine: Tensor | None = None
    """(M,) cosine of `total` from two disjoint halves of the data: near 1 is reproducible, 0 is noise."""

    @property
    def total(self) -> Tensor:
        """dL/dpsi (M, k), Eq. 2."""
        return self.optimal - (self.implicit + self.adapted)


def task_gradient(
    *,
    eta_model: Return,
    eta_star: Return,
    eta_star_at_optimum: Return,
    theta_hat: Tensor,
    theta_star: Tensor,
    psi: Tensor,
    config: TaskGradientConfig,
) -> TaskGradient:
    """Eq. 2 for M tasks from three return functions.

    Args:
        eta_model: return in the model; differentiated twice at theta_hat.
        eta_star: return in the truth, valid near theta_hat.
        eta_star_at_optimum: return in the truth, valid near theta_star.
        theta_hat, theta_star: (M, p).
        psi: (M, k).
    """
    theta_hat, theta_star, psi = theta_hat.detach(), theta_star.detach(), psi.detach()
    with torch.enable_grad():
        leaf_psi = psi.clone().requires_grad_()
        (optimal,) = torch.autograd.grad(eta_star_at_optimum(theta_star, leaf_psi).sum(), leaf_psi)  # Eq. 3
        leaf_theta = theta_hat.clone().requires_grad_()
        v, adapted = torch.autograd.grad(  # Eq. 4 and Eq. 3
            eta_star(leaf_theta, leaf_psi).sum(), (leaf_theta, leaf_psi)
        )

    # Eq. 7; tasks are independent, so the Hessian of the sum is block-diagonal
    hessian = hessian_operator(lambda theta: eta_model(theta, psi).sum(), theta_hat)
    # H is indefinite for sampled returns: (H^2 + damping |H|^2) y = H v, the paper's A'A x = A'b
    solve = lanczos_solve(
        hessian,
        hessian(v),
        power=2,
        relative_damping=config.damping,
        max_steps=config.max_steps,
        rtol=1e3 * torch.finfo(v.dtype).eps,
    )
    with torch.enable_grad():  # B' y = d/dpsi (y' d eta^/d theta), Eq. 6
        leaf_theta, leaf_psi = theta_hat.clone().requires_grad_(), psi.clone().requires_grad_()
        (slope,) = torch.autograd.grad(eta_model(leaf_theta, leaf_psi).sum(), leaf_theta, create_graph=True)
        (mixed,) = torch.autograd.grad((slope * solve.solution).sum(), leaf_psi)
    return TaskGradient(optimal=optimal, adapted=adapted, implicit=-mixed, solve=solve)


def importance_weighted_return(
    family: TaskFamily,
    policy: GaussianPolicy,
    rollout: Rollout,
    value: Tensor | None = None,
    next_value: Tensor | None = None,
) -> Return:
    """eta(theta, psi) per step, estimated from the first episode of every lane of a rollout.

        J = 1/(N T) sum_n sum_t gamma^t rho_t d_t,     rho_t = prod_{u<=t} pi_theta(a_u|s_u) / pi_old(a_u|s_u)
        d_t = r_psi(s_t, a_t, s_t+1) + gamma V(s_t+1) - V(s_t)

    Its derivatives at theta_old are unbiased for those of the return of T steps: the first is the policy
    gradient (Eq. 4), the second the policy Hessian with all cross-time terms (Eq. 7 after causality), the mixed
    one Eq. 6. V is any fixed function of the state, 0 after the last step: the sum telescopes, so V moves no
    derivative and only removes variance. Without V, d_t = r_t.

    Differs from the paper: the objective that trained theta_hat goes on after the time limit with V; this one
    ends there, because V as a function of psi is not known and a constant V would bias the mixed derivative.

    Args:
        value, next_value: (M, N, T), V at obs and at next_obs.
    """
    mask = rollout.first_episode()
    num_steps = mask.shape[-1]
    discount = family.gamma ** torch.arange(num_steps, dtype=rollout.obs.dtype, device=rollout.obs.device)
    weight = torch.where(mask, discount, 0.0) / (mask.shape[1] * num_steps)
    correction: Tensor | float = 0.0
    if value is not None and next_value is not None:
        ends = rollout.terminated | rollout.truncated
        correction = family.gamma * torch.where(ends, 0.0, next_value) - value

    def eta(theta: Tensor, psi: Tensor) -> Tensor:
        log_ratio = policy.log_prob(theta, rollout.obs, rollout.act) - rollout.log_prob
        rho = torch.exp(torch.where(mask, log_ratio, 0.0).cumsum(-1))
        delta = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs) + correction
        return (weight * rho * torch.where(mask, delta, 0.0)).sum((1, 2))

    return eta


def rollout_task_gradient(
    family: TaskFamily,
    theta_hat: Solution,
    theta_star: Solution,
    *,
    model_rollout: Rollout,
    hat_rollout: Rollout,
    star_rollout: Rollout,
    config: TaskGradientConfig,
) -> TaskGradient:
    """Eq. 2 estimated from rollouts, with the agreement of two halves of the lanes.

    Args:
        theta_hat, theta_star: the zero-shot and the SLBO solution of the same tasks.
        model_rollout: of theta_hat in the model that trained it.
        hat_rollout, star_rollout: of theta_hat and of theta_star in the simulator.
    """

    def estimate(lanes: slice) -> TaskGradient:
        def eta(solution: Solution, rollout: Rollout) -> Return:
            part = rollout.lanes(lanes)
            v = solution.value(solution.weights, part.obs)
            next_v = solution.value(solution.weights, part.next_obs)
            return importance_weighted_return(family, solution.policy, part, v, next_v)

        return task_gradient(
            eta_model=eta(theta_hat, model_rollout),
            eta_star=eta(theta_hat, hat_rollout),
            eta_star_at_optimum=eta(theta_star, star_rollout),
            theta_hat=theta_hat.theta,
            theta_star=theta_star.theta,
            psi=theta_hat.psi,
            config=config,
        )

    # even and odd lanes: every ensemble member and every task is in both halves
    first, second = estimate(slice(0, None, 2)), estimate(slice(1, None, 2))
    cosine = torch.cosine_similarity(first.total, second.total, dim=-1)
    return replace(estimate(slice(None)), split_half_cosine=cosine)
