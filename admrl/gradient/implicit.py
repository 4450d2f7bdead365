"""The implicit part of Eq. 2 by one adjoint solve, from scalar return functions.

Only the product with v = d eta*/d theta is needed, so one system is solved instead of k:

    H y = v,   implicit = (d theta_hat/d psi)' v = -B' y

H of a sampled return is indefinite. The system that is solved is (H^2 + lambda) y = H v, the paper's
A'A x = A'b, with lambda = damping * |H|^2: relative to the largest curvature, so independent of the number of
parameters and of the scale of the reward. `for_damping` shows what the choice does.

Differs from the paper:
1. One adjoint solve; the paper solves for each of the k columns of d theta_hat/d psi.
2. The released code's damping is 0.1 x the number of parameters, which in its own runs exceeded every
   eigenvalue of A'A.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from admrl.config.training import TaskGradientConfig
from admrl.gradient.result import TaskGradient
from policy_opt.curvature import hessian_operator
from policy_opt.lanczos import LanczosResult, lanczos_solve
from policy_opt.linear_operator import Matvec

Return = Callable[[Tensor, Tensor], Tensor]
"""eta: theta (M, p), psi (M, k) -> (M,), twice differentiable; row m depends on rows m alone."""


def solve_adjoint(
    hessian: Matvec, v: Tensor, config: TaskGradientConfig, *, damping: float | None = None
) -> LanczosResult:
    """y of H y = v in the least-squares sense; damping in units of H^2 overrides the relative rule."""
    return lanczos_solve(
        hessian,
        hessian(v),
        power=2,
        damping=0.0 if damping is None else damping,
        relative_damping=config.damping if damping is None else 0.0,
        max_steps=config.max_steps,
        rtol=1e3 * torch.finfo(v.dtype).eps,
    )


def hessian_of(eta: Return, theta: Tensor, psi: Tensor) -> Matvec:
    """v (M, p) -> H v; tasks are independent, so the Hessian of the sum is block-diagonal."""
    return hessian_operator(lambda point: eta(point, psi).sum(), theta)


def gradient_of(eta: Return, theta: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """d eta/d theta (M, p) and d eta/d psi (M, k), Eq. 4 and Eq. 3."""
    with torch.enable_grad():
        leaf_theta, leaf_psi = theta.clone().requires_grad_(), psi.clone().requires_grad_()
        by_theta, by_psi = torch.autograd.grad(
            eta(leaf_theta, leaf_psi).sum(), (leaf_theta, leaf_psi), materialize_grads=True
        )
    return by_theta, by_psi


def mixed_product(eta: Return, theta: Tensor, psi: Tensor, y: Tensor) -> Tensor:
    """B' y (M, k) = d/dpsi (y' d eta/d theta), Eq. 6."""
    with torch.enable_grad():
        leaf_theta, leaf_psi = theta.clone().requires_grad_(), psi.clone().requires_grad_()
        (slope,) = torch.autograd.grad(eta(leaf_theta, leaf_psi).sum(), leaf_theta, create_graph=True)
        return torch.autograd.grad((slope * y).sum(), leaf_psi, materialize_grads=True)[0]


def for_damping(eta: Return, theta: Tensor, psi: Tensor, solve: LanczosResult) -> Callable[[float], Tensor]:
    """Relative damping -> the implicit part (M, k), from one Lanczos run."""

    def implicit_at(damping: float) -> Tensor:
        y = solve.for_damping(relative_damping=damping).solution
        return -mixed_product(eta, theta, psi, y)

    return implicit_at


def gap_gradient(
    *,
    eta_model: Return,
    eta_star: Return,
    eta_star_at_optimum: Return,
    theta_hat: Tensor,
    theta_star: Tensor,
    psi: Tensor,
    config: TaskGradientConfig,
) -> TaskGradient:
    """Eq. 2 for M tasks from three return functions: exact when they are.

    Args:
        eta_model: return in the model; differentiated twice at theta_hat.
        eta_star: return in the truth, valid near theta_hat.
        eta_star_at_optimum: return in the truth, valid near theta_star.
        theta_hat, theta_star: (M, p).
        psi: (M, k).
    """
    theta_hat, theta_star, psi = theta_hat.detach(), theta_star.detach(), psi.detach()
    _, optimal = gradient_of(eta_star_at_optimum, theta_star, psi)
    v, adapted = gradient_of(eta_star, theta_hat, psi)
    solve = solve_adjoint(hessian_of(eta_model, theta_hat, psi), v, config)
    implicit = -mixed_product(eta_model, theta_hat, psi, solve.solution)
    return TaskGradient(optimal=optimal, adapted=adapted, implicit=implicit, solve=solve)
