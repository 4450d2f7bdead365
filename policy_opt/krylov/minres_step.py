"""One MINRES-QLP step for the shared loop: symmetric systems, indefinite, singular, inconsistent.

Lanczos vectors v_1, v_2, ... of A and their tridiagonal matrix T (alpha, beta) give the same iterates as MINRES,

  x_k = V_k y,  y the shortest minimiser of | beta_1 e_1 - T_k y |,

by a QLP decomposition: reflections (c, s) from the left make T upper triangular, as in MINRES, and two more a
step from the right make that lower triangular, L. Only the last pivot of L can vanish, where A is singular on the
Krylov space, and its unknown is then 0: x is the least-squares solution of least length, and never large.

  w     = V_k P_k        the basis that belongs to L; its last two columns still change
  mu    the unknowns in it, L mu = t
  x_k   = x_done + mu_{k-1} w_{k-1} + mu_k w_k

Choi, Paige and Saunders, "MINRES-QLP: a Krylov subspace method for indefinite or singular symmetric systems",
SIAM J. Sci. Comput. 33, 2011 (their symbols). Scalars are float64, whatever the vectors are.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from policy_opt.krylov.method import (
    CONVERGED,
    NONFINITE,
    STAGNATED,
    Iterate,
    Method,
    Problem,
    code_of_start,
    is_capturing,
)
from policy_opt.krylov.reflections import Reflection, divided, ratio, reflection
from policy_opt.linear_operator import dot, host_value, norm, wide_norm
from policy_opt.solve_result import RUNNING

SAME_RESIDUAL = 1.005  # of two solutions the shorter one is taken up to this factor of the residual


class _Scalars(NamedTuple):
    """The numbers of the factorisation, each (...) and float64; `_1` is one step old, `_2` two."""

    beta: Tensor
    left: Reflection  # Q_k
    right_1: Reflection  # P_{k-1,k}
    right_2: Reflection  # P_{k-1,k+1}, for the next step
    delta_bar: Tensor
    gamma: Tensor
    gamma_1: Tensor
    tau: Tensor
    tau_1: Tensor
    phi: Tensor  # |r| in the norm of the preconditioner
    theta: Tensor  # vepln of the paper: L_{k,k-1}
    theta_1: Tensor
    eta: Tensor  # L_{k,k-2}
    eta_1: Tensor
    mu_2: Tensor
    mu_3: Tensor
    scale: Tensor  # running estimate of |A|


class _MinresMemory(NamedTuple):
    r: Tensor  # the residual vector, so that its Euclidean norm is tested also with a preconditioner
    old: Tensor  # unnormalised Lanczos vectors before the preconditioner,
    new: Tensor  # old / old_beta and new / beta
    z: Tensor  # the preconditioned `new`
    w: Tensor
    w_1: Tensor
    x_done: Tensor
    x_start: Tensor
    best_x: Tensor  # the iterate with the least |A r| / |r|, where that is small
    best_root: Tensor
    old_beta: Tensor
    scalars: _Scalars


@dataclasses.dataclass(frozen=True)
class Minres(Method):
    """One MINRES-QLP step for the shared loop."""

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        z = problem.precondition(r)
        beta, r_z = _sizes(problem, r, z)
        zeros, none = torch.zeros_like(x), torch.zeros_like(beta)
        nothing = Reflection(none - 1, none, none)
        others = {name: none for name in _Scalars._fields[4:]}
        scalars = _Scalars(beta, nothing, nothing, nothing, **others)._replace(phi=beta)
        return Iterate(
            x=x.clone(),
            residual_norm=norm(r),
            code=code_of_start(beta, r_z),
            min_curvature=torch.full_like(norm(r), torch.inf),
            direction=zeros,
            memory=_MinresMemory(
                r=r.clone(),
                old=zeros,
                new=r,
                z=z,
                w=zeros.clone(),
                w_1=zeros.clone(),
                x_done=x.clone(),
                x_start=x,
                best_x=x.clone(),
                best_root=none + torch.inf,
                old_beta=none + 1,
                scalars=scalars,
            ),
        )

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        m = _MinresMemory(*now.memory)
        before = m.scalars
        v = divided(m.z, before.beta)
        product = problem.product(v)
        is_finite = product.isfinite().all(-1)
        y = problem.zero_rows(~is_finite, product)
        y = y - (before.beta / m.old_beta).to(v.dtype)[..., None] * m.old
        alpha = dot(v, y).double()
        y = problem.add(y, -ratio(alpha, before.beta), m.new)
        z = problem.precondition(y)
        beta, y_z = _sizes(problem, y, z)

        after, root, mu = _factorise(before, alpha, beta)
        eps = torch.finfo(v.dtype).eps
        is_better = active & (root < m.best_root) & (root <= eps**0.25 * after.scale)
        best_x = problem.put_rows(is_better, now.x, m.best_x)
        # The last pivot is 0 but for rounding, or x is the least-squares solution already: mu_k = 0.
        is_too_large = eps * after.scale * mu[2].abs() > 0.1 * before.phi
        is_stuck = is_too_large | (torch.minimum(root, after.gamma.abs()) <= 10 * eps * after.scale)
        mu = mu[0], mu[1], torch.where(is_stuck, 0.0, mu[2])
        moves = active & is_finite
        x, x_done, w, w_1 = _new_iterate(problem, m, v, now.x, after, mu, moves)
        # r = s^2 r - c phi v_next
        c, s, _ = after.left
        r = m.r * torch.where(moves, s * s, 1.0).to(v.dtype)[..., None]
        r = problem.add(r, torch.where(moves, -c * ratio(after.phi, beta), 0.0), y)
        size = norm(r)
        code = torch.where(is_stuck | (y_z < 0), STAGNATED, RUNNING)
        code = torch.where((size <= problem.tolerance) & ~is_stuck, CONVERGED, code)
        code = torch.where(is_finite & alpha.isfinite() & y_z.isfinite(), code, NONFINITE)
        quotient = (alpha / dot(v, v).double()).to(v.dtype)
        least = torch.minimum(now.min_curvature, quotient)
        return Iterate(
            x=x,
            residual_norm=torch.where(active, size, now.residual_norm),
            code=torch.where(active, code, now.code),
            min_curvature=torch.where(active & is_finite, least, now.min_curvature),
            direction=now.direction,
            memory=_MinresMemory(
                r=r,
                old=m.new,
                new=y,
                z=z,
                w=w,
                w_1=w_1,
                x_done=x_done,
                x_start=m.x_start,
                best_x=best_x,
                best_root=torch.where(is_better, root, m.best_root),
                old_beta=before.beta,
                scalars=after,
            ),
        )

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        """The best of the last iterate, that with the least |A r|, and the latter without its part in the null space.

        The null space meets the Krylov space only along r, if r is the least-squares residual: taking r out of x
        gives the shortest solution (Liu, Milzarek, Roosta, "Obtaining pseudo-inverse solutions with MINRES", 2023).
        """
        m = _MinresMemory(*now.memory)
        failed = ((now.code == STAGNATED) | (now.code == RUNNING)) & m.best_root.isfinite()
        if not is_capturing(now.x.device) and not bool(host_value(failed).any()):
            return now
        best = problem.b - problem.product(m.best_x)
        candidates = [(now.x, norm(problem.b - problem.product(now.x))), (m.best_x, norm(best))]
        if problem.preconditioner is None:
            part = ratio(dot(m.best_x - m.x_start, best), dot(best, best))
            shorter = m.best_x - part[..., None] * best
            candidates.append((shorter, norm(problem.b - problem.product(shorter))))
        least = torch.stack([size.nan_to_num(torch.inf) for _, size in candidates]).amin(0)
        x, length = now.x, torch.full_like(least, torch.inf)
        for other, size in candidates:
            is_taken = failed & (size <= SAME_RESIDUAL * least) & (norm(other - m.x_start) < length)
            x = torch.where(is_taken[..., None], other, x)
            length = torch.where(is_taken, norm(other - m.x_start), length)
        return now._replace(x=x)


def _sizes(problem: Problem, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(y'z) and y'z, for z = M y."""
    if problem.preconditioner is None:
        size = wide_norm(y)
        return size, size * size
    y_z = dot(y, z).double()
    return y_z.clamp_min(0).sqrt(), y_z


def _factorise(
    before: _Scalars, alpha: Tensor, beta: Tensor
) -> tuple[_Scalars, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The next column (beta_k, alpha, beta) of T: the new numbers, |A r| / |r| of the iterate before, and
    (mu_{k-2}, mu_{k-1}, mu_k)."""
    c, s, _ = before.left
    delta = c * before.delta_bar + s * alpha
    gamma_bar = s * before.delta_bar - c * alpha
    eps, delta_bar = s * beta, -c * beta
    left = reflection(gamma_bar, beta)
    tau, phi = left.c * before.phi, left.s * before.phi

    c, s, _ = before.right_2  # P_{k-2,k}
    theta_1 = c * before.theta + s * delta
    delta = s * before.theta - c * delta
    eta, gamma = s * left.r, -c * left.r
    right_1 = reflection(before.gamma, delta)  # P_{k-1,k}
    theta, gamma = right_1.s * gamma, -right_1.c * gamma

    # L mu = t, of which the last three rows change
    mu_2 = ratio(before.tau_1 - before.eta_1 * before.mu_3 - before.theta_1 * before.mu_2, before.gamma_1)
    mu_1 = ratio(before.tau - before.eta * before.mu_2 - theta_1 * mu_2, right_1.r)
    right_2 = reflection(right_1.r, eps)  # P_{k-1,k+1}
    scale = torch.maximum(torch.maximum(before.scale, right_2.r), torch.hypot(alpha, beta))
    mu = ratio(tau - eta * mu_2 - theta * mu_1, gamma)
    after = _Scalars(
        beta=beta,
        left=left,
        right_1=right_1,
        right_2=right_2,
        delta_bar=delta_bar,
        gamma=gamma,
        gamma_1=right_2.r,
        tau=tau,
        tau_1=before.tau,
        phi=phi,
        theta=theta,
        theta_1=theta_1,
        eta=eta,
        eta_1=before.eta,
        mu_2=mu_2,
        mu_3=before.mu_2,
        scale=scale,
    )
    return after, torch.hypot(gamma_bar, delta_bar), (mu_2, mu_1, mu)


def _new_iterate(
    problem: Problem,
    m: _MinresMemory,
    v: Tensor,
    x: Tensor,
    after: _Scalars,
    mu: tuple[Tensor, Tensor, Tensor],
    moves: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, x_done, w_k, w_{k-1} after the two reflections from the right."""

    def combine(a: Tensor, left: Tensor, b: Tensor, right: Tensor) -> Tensor:
        return left.to(v.dtype)[..., None] * a + right.to(v.dtype)[..., None] * b

    c, s, _ = m.scalars.right_2
    w_2, w = combine(m.w_1, c, v, s), combine(m.w_1, s, v, -c)
    c, s, _ = after.right_1
    w_1, w = combine(m.w, c, w, s), combine(m.w, s, w, -c)
    x_done = problem.add(m.x_done, mu[0], w_2)
    new = x_done + combine(w_1, mu[1], w, mu[2])
    return torch.where(moves[..., None], new, x), x_done, w, w_1
