"""One MINRES step for the shared loop: symmetric systems, indefinite or singular.

Lanczos vectors v_1, v_2, ... of A, and a running QR of their tridiagonal matrix (alpha, beta):

  y = A v - alpha v - beta v_before,        one rotation (c, s) a step,        |r| = s |r before|
  w = (v - eps w_2 - delta w_1) / gamma,    x += phi w,                        r = s^2 r - c phi_bar v_next

Paige and Saunders, "Solution of sparse indefinite systems of linear equations", 1975 (their symbols).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from policy_opt.linear_operator import dot, norm
from policy_opt.solve_loop import CONVERGED, NONFINITE, STAGNATED, Iterate, Problem
from policy_opt.solve_result import RUNNING


class _MinresMemory(NamedTuple):
    r: Tensor  # the residual vector, so that its Euclidean norm is tested also with a preconditioner
    old: Tensor  # unnormalised Lanczos vectors before the preconditioner,
    new: Tensor  # old / old_beta and new / beta
    z: Tensor  # the preconditioned `new`
    w_1: Tensor
    w_2: Tensor
    beta: Tensor
    old_beta: Tensor
    c: Tensor
    s: Tensor
    delta_bar: Tensor
    eps: Tensor
    phi_bar: Tensor
    scale: Tensor  # running estimate of |A|


@dataclasses.dataclass(frozen=True)
class Minres:
    """One MINRES step for the shared loop."""

    def scaled(self, scale: Tensor) -> Minres:
        return self

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        z = problem.precondition(r)
        r_z, size, zeros = dot(r, z), norm(r), torch.zeros_like(x)
        beta, none = r_z.clamp_min(0).sqrt(), torch.zeros_like(size)
        return Iterate(
            x=x,
            residual_norm=size,
            code=torch.where(r_z > 0, RUNNING, torch.where(r_z.isfinite(), STAGNATED, NONFINITE)),
            min_curvature=torch.full_like(size, torch.inf),
            direction=zeros,
            memory=_MinresMemory(
                r=r,
                old=zeros,
                new=r,
                z=z,
                w_1=zeros,
                w_2=zeros,
                beta=beta,
                old_beta=torch.ones_like(size),
                c=none - 1,
                s=none,
                delta_bar=none,
                eps=none,
                phi_bar=beta,
                scale=none,
            ),
        )

    def step(self, problem: Problem, now: Iterate) -> Iterate:
        m = _MinresMemory(*now.memory)
        v = m.z / m.beta[..., None]
        y = problem.product(v) - (m.beta / m.old_beta)[..., None] * m.old
        alpha = dot(v, y)
        y = y - (alpha / m.beta)[..., None] * m.new
        z = problem.precondition(y)
        y_z = dot(y, z)
        beta = y_z.clamp_min(0).sqrt()

        delta = m.c * m.delta_bar + m.s * alpha
        gamma_bar = m.s * m.delta_bar - m.c * alpha
        delta_bar = -m.c * beta
        size_of_Ar = m.phi_bar * torch.hypot(gamma_bar, delta_bar)  # |A r| before this step
        scale = torch.maximum(m.scale, torch.hypot(alpha, beta))
        tiny = torch.finfo(v.dtype).eps * scale
        gamma = torch.hypot(gamma_bar, beta)
        c, s = gamma_bar / gamma, beta / gamma
        phi, phi_bar = c * m.phi_bar, s * m.phi_bar

        w = (v - m.eps[..., None] * m.w_2 - delta[..., None] * m.w_1) / gamma[..., None]
        x = now.x + phi[..., None] * w
        v_next = torch.where((beta > 0)[..., None], y / beta[..., None], 0.0)
        r = (s**2)[..., None] * m.r - (phi_bar * c)[..., None] * v_next
        size = norm(r)

        # r is (nearly) in the null space of A, where further steps only blow x up. Both are needed: |r|^2 falls by
        # c^2 |r|^2, which says nothing below rounding, and hides |A r| below sqrt(rounding).
        eps = torch.finfo(v.dtype).eps
        is_least_squares = (size_of_Ar <= eps**0.5 * scale * m.phi_bar) & (c**2 <= eps)
        is_stuck = is_least_squares | (beta <= tiny) | (gamma <= tiny)
        code = torch.where(is_stuck | (y_z < 0), STAGNATED, torch.full_like(now.code, RUNNING))
        code = torch.where((size <= problem.tolerance) & (gamma > tiny), CONVERGED, code)
        code = torch.where(alpha.isfinite() & y_z.isfinite(), code, NONFINITE)
        keep = is_least_squares | (gamma <= tiny)
        x = torch.where(keep[..., None], now.x, x)
        size = torch.where(keep, now.residual_norm, size)
        return Iterate(
            x=x,
            residual_norm=size,
            code=code,
            min_curvature=torch.minimum(now.min_curvature, alpha / dot(v, v)),
            direction=now.direction,
            memory=_MinresMemory(
                r=r,
                old=m.new,
                new=y,
                z=z,
                w_1=w,
                w_2=m.w_1,
                beta=beta,
                old_beta=m.beta,
                c=c,
                s=s,
                delta_bar=delta_bar,
                eps=m.s * beta,
                phi_bar=phi_bar,
                scale=scale,
            ),
        )
