"""One step of block conjugate gradients for the shared loop: right-hand sides of one A that share a Krylov space.

  R = Q Phi (QR),  S = Q
  W = A S,  Z = (S'W)^-1,  X += S Z Phi,  Q zeta = QR(Q - W Z),  S = Q + S zeta',  Phi = zeta Phi

Q (p, s) stays orthonormal, so that dependent or converged right-hand sides break nothing, and |r_i| is the norm of a
column of Phi. The step count falls with s, by a half at eight and to a fifth at 64 where conjugate gradients need a
hundred; a step costs some 8 p s^2 more. It pays where a product costs more than that.

O'Leary, "The block conjugate gradient algorithm and related methods", Linear Algebra and its Applications 29, 1980;
the form with QR: Dubrulle, "Retooling the method of block conjugate gradients", ETNA 12, 2001 (BCGrQ).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from policy_opt.krylov.cg_step import NEGATIVE_CURVATURE
from policy_opt.krylov.method import CONVERGED, NONFINITE, Iterate, Method, Problem, code_of_start
from policy_opt.krylov.scaling import ExtremeOperator, power_of_two
from policy_opt.linear_operator import norm
from policy_opt.solve_result import RUNNING


class _BlockMemory(NamedTuple):
    """k = min(p, s); matrices (..., rows, columns), numbers of the block (..., 1), of a system (..., s)."""

    is_first: bool
    q: Tensor  # (p, k)
    s: Tensor  # (p, k)
    phi: Tensor  # (k, s)
    most: Tensor  # largest curvature
    least: Tensor
    best_x: Tensor
    best_size: Tensor


@dataclasses.dataclass(frozen=True)
class BlockConjugateGradient(Method):
    """One step on vectors (..., s, p), of which the axis before the last is the block."""

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        size = norm(r)
        q, phi = torch.linalg.qr(problem.zero_rows(~size.isfinite(), r).mT)
        block = torch.zeros_like(size[..., :1])
        return Iterate(
            x=x,
            residual_norm=size,
            code=code_of_start(size, size),
            min_curvature=torch.full_like(size, torch.inf),
            direction=torch.zeros_like(x),
            memory=_BlockMemory(True, q, q, phi, block, block + torch.inf, x, size),
        )

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        m = _BlockMemory(*now.memory)
        w = _products(problem, m.s)
        if m.is_first:
            _require_moderate(w, active)
        is_finite = w.isfinite().all(-1).all(-1)[..., None]
        w = torch.where(is_finite[..., None], w, 0.0)
        inner = m.s.mT @ w
        curvature, vectors = _curvatures((inner + inner.mT) / 2, m.s)
        least, most = curvature[..., :1], torch.maximum(m.most, curvature[..., -1:].abs())
        is_positive = least > 8 * torch.finfo(w.dtype).eps * most  # below it the sign means nothing
        safe = torch.where((is_positive & is_finite)[..., None], (inner + inner.mT) / 2, _eye_like(inner))
        z = torch.linalg.solve_ex(safe, _eye_like(safe)).result  # definite: no error to wait for
        moves = active & is_positive & is_finite
        x = now.x + torch.where(moves[..., None], (m.s @ (z @ m.phi)).mT, 0.0)
        q, zeta = torch.linalg.qr(m.q - w @ z)
        phi = zeta @ m.phi
        size = torch.linalg.vector_norm(phi, dim=-2)
        code = torch.where(size <= problem.tolerance, CONVERGED, RUNNING)
        code = torch.where(is_positive, code, NEGATIVE_CURVATURE)
        code = torch.where(is_finite & size.isfinite(), code, NONFINITE)
        is_best = (size < m.best_size) & moves
        return Iterate(
            x=x,
            residual_norm=torch.where(moves, size, now.residual_norm),
            code=torch.where(active, code, now.code),
            min_curvature=torch.where(
                active & is_finite, torch.minimum(now.min_curvature, least), now.min_curvature
            ),
            direction=torch.where(
                (active & is_finite & ~is_positive)[..., None],
                (m.s @ vectors[..., :1]).mT,
                now.direction,
            ),
            memory=_BlockMemory(
                False,
                q,
                q + m.s @ zeta.mT,
                phi,
                most,
                torch.minimum(m.least, curvature[..., :1].abs()),
                torch.where(is_best[..., None], x, m.best_x),
                torch.where(is_best, size, m.best_size),
            ),
        )

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        """As conjugate gradients: of an operator singular in this precision, the iterate of least residual."""
        m = _BlockMemory(*now.memory)
        is_singular = m.least <= torch.finfo(now.x.dtype).eps ** 0.5 * m.most
        is_singular = is_singular | (now.residual_norm > 10 * (m.most / m.least).sqrt() * m.best_size)
        failed = (now.code != CONVERGED) & (now.code != NONFINITE)
        return now._replace(x=torch.where((failed & is_singular)[..., None], m.best_x, now.x))


def _products(problem: Problem, s: Tensor) -> Tensor:
    """A S (..., p, k): as many rows as right-hand sides, of which the last are zero where p < s."""
    rows, num_systems = s.mT, problem.b.shape[-2]
    if rows.shape[-2] < num_systems:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, num_systems - rows.shape[-2]))
    return problem.product(rows)[..., : s.shape[-1], :].mT


def _curvatures(inner: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """min and max of v'A v / v'v over the span of S, as eigenvalues of (S'A S, S'S), with coefficients v in S."""
    scale = torch.linalg.qr(s).R
    half = torch.linalg.solve_triangular(scale.mT, inner, upper=False)
    whole = torch.linalg.solve_triangular(scale, half, upper=True, left=False)
    whole = (whole + whole.mT) / 2
    whole = torch.where(whole.isfinite(), whole, 0.0)
    values, vectors = torch.linalg.eigh(whole)
    return values, torch.linalg.solve_triangular(scale, vectors, upper=True)


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)


def _require_moderate(w: Tensor, active: Tensor) -> None:
    """Inner products must stay in range; one unit for the whole block, whose operator is one."""
    if w.dtype == torch.float64:
        return
    unit = power_of_two(w.flatten(-2))
    if unit is not None:
        raise ExtremeOperator(unit[..., None].expand_as(active).contiguous())
