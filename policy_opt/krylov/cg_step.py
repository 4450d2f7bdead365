"""One step of conjugate gradients for the shared loop: positive definite systems.

  q = A p,  alpha = r'z / p'q,  x += alpha p,  r -= alpha q,  z = M r,  beta = r'z / (r'z before),
  p = z + beta p

Hestenes and Stiefel 1952; the trust radius: Steihaug, "The conjugate gradient method and trust regions in
large scale optimization", 1983.

Of several iterates the last one is returned, which has the least energy x'Ax/2 - b'x. Where the curvatures met
spread over more than 1/sqrt(rounding), or the residual has grown as it cannot for a definite A, the energy may have
no minimum (A is singular in this precision and the system inconsistent), and a solve that fails returns the iterate
with the least residual instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from policy_opt.krylov.method import CONVERGED, NONFINITE, STAGNATED, Iterate, Method, Problem, code_of_start
from policy_opt.krylov.scaling import ExtremeOperator, power_of_two
from policy_opt.linear_operator import dot, norm
from policy_opt.solve_result import CODE, RUNNING, SolveStatus

NEGATIVE_CURVATURE, TRUST_RADIUS = CODE[SolveStatus.NEGATIVE_CURVATURE], CODE[SolveStatus.TRUST_RADIUS]


_Pick = Callable[[Tensor, Tensor], Tensor]


class _CGMemory(NamedTuple):
    num_steps: int
    r: Tensor
    p: Tensor
    p_p: Tensor  # p'p
    rho: Tensor  # r'z
    most: Tensor  # largest lower bound of |A| that was seen
    least: Tensor  # smallest one
    best_x: Tensor
    best_size: Tensor  # |r| of best_x, or of x where that is not worse
    is_best: Tensor  # best_x is out of date: x is the best


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(Method):
    """One conjugate-gradient step for the shared loop."""

    trust_radius: float | Tensor | None = None
    is_consistent: bool = False
    """b is known to be in the range of A, as in normal equations: no residual leaves it, and no p is mapped to 0."""

    def scaled(self, of_x: Tensor, of_b: Tensor) -> ConjugateGradient:
        if self.trust_radius is None:
            return self
        return dataclasses.replace(self, trust_radius=self.trust_radius * of_x)

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        z = problem.precondition(r)
        size, rho = norm(r), dot(r, z)
        infinite = torch.full_like(size, torch.inf)
        return Iterate(
            x=x.clone(),
            residual_norm=size,
            code=code_of_start(rho, rho),
            min_curvature=infinite,
            direction=torch.zeros_like(x),
            memory=_CGMemory(
                num_steps=0,
                r=r.clone(),
                p=z.clone(),
                p_p=rho if problem.preconditioner is None else dot(z, z),
                rho=rho,
                most=torch.zeros_like(size),
                least=infinite,
                best_x=x.clone(),
                best_size=size,
                is_best=torch.ones_like(size, dtype=torch.bool),
            ),
        )

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        m = _CGMemory(*now.memory)
        q = problem.product(m.p)
        p_q = problem.dot(m.p, q)
        curvature = p_q / m.p_p
        _require_moderate(m, q)
        # Below the rounding of A p, eps |A|, the sign of p'Ap means nothing; with a preconditioner p has no scale.
        is_bare = problem.preconditioner is None
        floor = (1 if self.is_consistent else 3) * torch.finfo(q.dtype).eps if is_bare else 0.0
        most = torch.maximum(m.most, curvature)
        is_positive = curvature > floor * most  # and a number
        everybody = self.trust_radius is None and problem.all_of(is_positive & active)
        if everybody:  # the masks, a third of the time of a step on a cheap operator, would change nothing
            alpha, leaves, stops_on_p = m.rho / p_q, None, None
        else:
            most = torch.maximum(m.most, curvature.abs())
            is_positive = curvature > floor * most
            q = problem.zero_rows(~p_q.isfinite(), q)
            alpha, leaves = self._length(now.x, m, m.rho / p_q, ~is_positive)
            alpha = torch.where(active & p_q.isfinite(), alpha, 0.0)
            stops_on_p = active & p_q.isfinite() & (~is_positive if leaves is None else ~is_positive | leaves)
        of_active: _Pick = _newer if everybody else _where(active)
        r = problem.add(m.r, -alpha, q)
        z = problem.precondition(r)
        rho = problem.dot(r, z)
        size = rho.sqrt() if is_bare else norm(r)
        gets_worse, best_x, best_size = size > m.best_size, m.best_x, size
        if not (everybody and problem.none_of(gets_worse)):
            best_x = problem.put_rows(active & gets_worse & m.is_best, now.x, best_x)
            best_size = torch.where(active, torch.minimum(size, m.best_size), m.best_size)
            most = most if self.is_consistent else _raised(problem, most, gets_worse, alpha, rho / m.rho)
        x = problem.add(now.x, alpha, m.p)
        code = now.code
        if not (everybody and is_bare and problem.all_of(size > problem.tolerance)):
            code = of_active(_claim(problem, rho, size, p_q, is_positive, leaves), now.code)
        direction = now.direction if stops_on_p is None else problem.put_rows(stops_on_p, m.p, now.direction)
        beta = of_active(rho / m.rho, torch.zeros_like(rho))
        p = problem.add(z, beta, m.p, into=m.p)
        # r'p = 0, so |z + beta p|^2 needs no pass over p
        p_p = torch.addcmul(rho, beta * beta, m.p_p) if is_bare else problem.dot(p, p)
        smallest = of_active(torch.minimum(now.min_curvature, curvature), now.min_curvature)
        return Iterate(
            x=x,
            residual_norm=of_active(size, now.residual_norm),
            code=code,
            min_curvature=smallest,
            direction=direction,
            memory=_CGMemory(
                num_steps=m.num_steps + 1,
                r=r,
                p=p,
                p_p=p_p,
                rho=rho,
                most=of_active(most, m.most),
                least=smallest if everybody else of_active(torch.minimum(m.least, curvature.abs()), m.least),
                best_x=best_x,
                best_size=best_size,
                is_best=of_active(~gets_worse, m.is_best),
            ),
        )

    def _length(
        self, x: Tensor, m: _CGMemory, alpha: Tensor, is_negative: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The step along p, and which systems step onto the trust radius with it (None without one)."""
        if self.trust_radius is None:
            return torch.where(is_negative, 0.0, alpha), None
        to_border = _step_to_border(x, m.p, m.p_p, self.trust_radius)
        leaves = ~is_negative & (alpha >= to_border)
        return torch.where(leaves | is_negative, to_border, alpha), leaves

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        m = _CGMemory(*now.memory)
        is_singular = m.least <= torch.finfo(now.x.dtype).eps ** 0.5 * m.most
        # of a definite A no residual is above sqrt(condition) times one before
        is_singular = is_singular | (now.residual_norm > 10 * (m.most / m.least).sqrt() * m.best_size)
        failed = (now.code != CONVERGED) & (now.code != TRUST_RADIUS) & (now.code != NONFINITE)
        if self.trust_radius is not None:
            failed = failed & (now.code != NEGATIVE_CURVATURE)
        x = torch.where((failed & is_singular & ~m.is_best)[..., None], m.best_x, now.x)
        return now._replace(x=x)


def _raised(problem: Problem, most: Tensor, gets_worse: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """A lower bound of |A|: a residual has r'Ar / r'r >= beta/alpha. Where it grew, p'Ap may be far below that."""
    if problem.preconditioner is not None:
        return most
    return torch.maximum(most, torch.where(gets_worse & (alpha > 0), beta / alpha, 0.0))


def _newer(new: Tensor, old: Tensor) -> Tensor:
    return new


def _where(mask: Tensor) -> _Pick:
    return lambda new, old: torch.where(mask, new, old)


def _claim(
    problem: Problem, rho: Tensor, size: Tensor, p_q: Tensor, is_positive: Tensor, leaves: Tensor | None
) -> Tensor:
    """The code of every system after a step, the last reason first."""
    code = torch.where(rho > 0, RUNNING, STAGNATED)
    code = torch.where(size <= problem.tolerance, CONVERGED, code)
    code = torch.where(is_positive, code, NEGATIVE_CURVATURE)
    code = code if leaves is None else torch.where(leaves, TRUST_RADIUS, code)
    return torch.where(p_q.isfinite() & size.isfinite(), code, NONFINITE)


def _require_moderate(m: _CGMemory, q: Tensor) -> None:
    """p'q and r'z must stay in range until r is small. In float64 they do for |A| from 1e-60 to 1e60."""
    if m.num_steps > 0 or q.dtype == torch.float64:
        return
    size = m.p_p.sqrt()
    unit = power_of_two(q / torch.where(size > 0, size, 1.0)[..., None])
    if unit is not None:
        raise ExtremeOperator(unit)


def _step_to_border(x: Tensor, p: Tensor, p_p: Tensor, radius: float | Tensor) -> Tensor:
    """The tau >= 0 with |x + tau p| = radius, for |x| <= radius."""
    x_p = dot(x, p)
    room = (radius**2 - dot(x, x)).clamp_min(0)
    # the form without cancellation for x'p >= 0, which CG has
    return room / (x_p + (x_p**2 + p_p * room).sqrt())
