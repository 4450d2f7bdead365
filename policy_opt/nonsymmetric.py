"""GMRES for square systems that are not symmetric: the least residual over the Krylov space, restarted.

  A M V_k = V_{k+1} H,   y minimises | |r| e_1 - H y |,   x += M V_k y

V is orthonormal, each new vector orthogonalised twice, H upper Hessenberg; reflections keep H triangular, so the
residual is known after every step. After `restart` steps the basis is dropped and the loop starts again from the
recomputed residual. M is applied from the right: the residual is that of the system itself.

Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems", 1986.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.krylov.basis import as_damping
from policy_opt.krylov.derivative_solves import inverses_by, of_derivatives
from policy_opt.krylov.method import (
    CONVERGED,
    CYCLE_IS_FULL,
    NONFINITE,
    STAGNATED,
    Iterate,
    Method,
    Problem,
    Settings,
    code_of_start,
)
from policy_opt.krylov.reflections import divided, reflection
from policy_opt.krylov.solve_loop import solve
from policy_opt.linear_operator import Matvec, Operator, VectorSpace, norm, whole_number, wide_norm
from policy_opt.operator_solve import takes_square_operators
from policy_opt.solve_result import RUNNING, LinearSolveResult


class _Cycle:
    """The basis of one cycle and the triangular form of H, float64."""

    def __init__(self, r: Tensor, size: int) -> None:
        self.beta = wide_norm(r)
        first = divided(r, self.beta)
        self.basis = torch.zeros_like(r)[..., None, :].repeat_interleave(size + 1, dim=-2)
        self.basis[..., 0, :] = first
        self.columns: list[Tensor] = []  # of R, (..., k + 1) each
        self.left = torch.ones_like(self.beta)[..., None, None]  # Q', (..., k + 1, k + 1)
        self.right = [self.beta]  # Q' |r| e_1; the last entry is the residual
        self.num_own = torch.zeros_like(self.beta, dtype=torch.int64)
        self.scale = torch.zeros_like(self.beta)

    def push(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Take in A M v_k: v_k'A M v_k, and whether the Krylov space ends here."""
        k = len(self.columns)
        if k == 0 and torch._C._functorch.maybe_current_level() is not None:
            self.basis = self.basis + torch.zeros_like(w)[..., None, :]  # the axis of a vmap over A alone
        own = self.basis[..., : k + 1, :]
        h = torch.zeros_like(self.beta)[..., None]
        for _ in range(2):  # "twice is enough" (Parlett)
            overlap = own @ w[..., None]  # (..., k+1, 1)
            w = w - (own.mT @ overlap)[..., 0]
            h = h + overlap[..., 0].double()
        beta = wide_norm(w)
        self.scale = torch.maximum(self.scale, torch.hypot(torch.linalg.vector_norm(h, dim=-1), beta))
        is_end = beta <= torch.finfo(w.dtype).eps * w.shape[-1] ** 0.5 * self.scale
        beta = torch.where(is_end, 0.0, beta)
        self.basis[..., k + 1, :] = divided(w, beta)
        column = (self.left @ h[..., None])[..., 0]
        c, s, last = reflection(column[..., k], beta)
        self._reflect(c[..., None], s[..., None])
        self.columns.append(torch.cat([column[..., :k], last[..., None]], -1))
        self.right[-1:] = [c * self.right[-1], s * self.right[-1]]
        return h[..., -1], is_end

    def _reflect(self, c: Tensor, s: Tensor) -> None:
        """The newest reflection, of the last row and a new one."""
        above = torch.nn.functional.pad(self.left[..., :-1, :], (0, 1))
        row = self.left[..., -1, :]
        own, new = torch.cat([c * row, s], -1), torch.cat([s * row, -c], -1)
        above = above.expand(*own.shape[:-1], *above.shape[-2:])
        self.left = torch.cat([above, own[..., None, :], new[..., None, :]], -2)

    def combine(self) -> Tensor:
        """V_k y (..., p), each system with its own number of columns."""
        k = len(self.columns)
        pad = torch.nn.functional.pad
        triangle = torch.stack([pad(column, (0, k - column.shape[-1])) for column in self.columns], -1)
        own = torch.arange(k, device=triangle.device) < self.num_own[..., None]
        triangle = torch.where(own[..., None, :] & own[..., :, None], triangle, 0.0).nan_to_num()
        u, s, w = torch.linalg.svd(triangle, full_matrices=False)
        cut = torch.finfo(s.dtype).eps * k * s[..., :1]
        right = torch.where(own, torch.stack(torch.broadcast_tensors(*self.right[:k]), -1), 0.0)
        weight = (u.mT @ right[..., None])[..., 0]
        weight = torch.where(s > cut, weight / torch.where(s > cut, s, 1.0), 0.0)
        y = (w.mT @ weight[..., None])[..., 0].to(self.basis.dtype)
        return (y[..., None, :] @ self.basis[..., :k, :])[..., 0, :]


@dataclasses.dataclass(frozen=True)
class Gmres(Method):
    """One GMRES step for the shared loop."""

    restart: int
    max_cycles = 2**31

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        size = norm(r)
        return Iterate(
            x=x,
            residual_norm=size,
            code=code_of_start(size, size),
            min_curvature=torch.full_like(size, torch.inf),
            direction=torch.zeros_like(x),
            memory=_Cycle(r, min(self.restart, r.shape[-1])),
        )

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        cycle: _Cycle = now.memory
        v = cycle.basis[..., len(cycle.columns), :]
        w = problem.product(problem.precondition(v))
        is_finite = w.isfinite().all(-1)
        quotient, is_end = cycle.push(problem.zero_rows(~is_finite, w))
        cycle.num_own = cycle.num_own + (active & is_finite)
        size = cycle.right[-1].abs().to(w.dtype)
        is_full = self.is_full(now)
        code = torch.full_like(now.code, CYCLE_IS_FULL if is_full else RUNNING)
        code = torch.where(is_end, STAGNATED, code)
        code = torch.where(size <= problem.tolerance, CONVERGED, code)
        code = torch.where(is_finite, code, NONFINITE)
        least = torch.minimum(now.min_curvature, quotient.to(w.dtype))
        if problem.preconditioner is not None:
            least = now.min_curvature
        return now._replace(
            residual_norm=torch.where(active, size, now.residual_norm),
            code=torch.where(active, code, now.code),
            min_curvature=torch.where(active & is_finite, least, now.min_curvature),
        )

    def is_full(self, now: Iterate) -> bool:
        return len(now.memory.columns) == now.memory.basis.shape[-2] - 1

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        if not now.memory.columns:
            return now
        return now._replace(x=now.x + problem.precondition(now.memory.combine()))


@outside_of_compiled_programs
@takes_square_operators
def gmres(
    matvec: Matvec,
    b: Any,
    *,
    rmatvec: Matvec | None = None,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
    restart: int = 30,
) -> LinearSolveResult:
    """Solve (A + damping I) x = b for any square A; one product a step, and one for each restart.

    The basis costs (restart + 1) p numbers for each system. A cycle that lowers the residual by less than a
    thousandth repeats itself, and ends as STAGNATED: raise `restart`, or give a preconditioner. `rmatvec` is
    w -> A'w and used in reverse-mode derivatives alone, which raise without it; forward mode needs none, nor does a
    `LinearOperator`, which knows its transpose. The preconditioner may be any invertible map; solves with A' are
    preconditioned only where it is a `LinearOperator`, too. The rest as in `conjugate_gradient`.
    SciPy's equivalent is `scipy.sparse.linalg.gmres`.

    Raises:
        ValueError: as `conjugate_gradient`, and for restart < 1.
    """
    settings = Settings(rtol, atol, max_steps, preconditioner)
    restart = whole_number("restart", restart, 1, "30 is the default")
    vectors = VectorSpace(b)
    flat = vectors.flatten(b, "b")
    start = None if x0 is None else vectors.flatten(x0, "x0")
    is_none = not isinstance(damping, Tensor) and damping == 0
    shift = None if is_none else as_damping(damping, flat).to(flat.dtype)
    method = Gmres(restart)

    def solver(product: Matvec | None, user: Matvec | None) -> Callable[..., LinearSolveResult]:
        def again(c: Tensor, **more: Any) -> LinearSolveResult:
            if product is None:
                raise ValueError(
                    "rmatvec: expected w -> A'w for a reverse-mode derivative of gmres, got None; pass a "
                    "LinearOperator, or linear_map(matvec, b).rmatvec; forward mode (jvp, jacfwd) needs none"
                )
            asked = dataclasses.replace(of_derivatives(settings, c), preconditioner=user, **more)
            operator = Operator(product, vectors, None if shift is None else shift.detach())
            return solve(method, operator, c.detach(), None, asked, differentiable=False)

        return again

    inverses = inverses_by(
        solver(matvec, preconditioner),
        vectors,
        checks=shift is None,
        transposed=solver(rmatvec, None),  # M' is not known
    )
    return solve(method, Operator(matvec, vectors, shift), flat, start, settings, inverses=inverses)
