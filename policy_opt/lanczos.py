"""Lanczos with a stored, re-orthogonalised basis: every damping from one run, Ritz values, and |A|.

After k products,  A V_k = V_{k+1} T  with V orthonormal (..., k+1, p) and T (..., k+1, k) tridiagonal. From
it, for any damping without further products,

    power 1:  x = V_k y,  y minimises | |b| e_1 - (T + damping) y |     (MINRES that stays orthogonal)
    power 2:  x = V_k y,  (T'T + damping) y = |b| e_1                   (half the products of normal_cg)

The basis costs k p numbers: 2 MB for 200 steps at p = 2384 in float32. Small matrices are float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.implicit_zero import implicit_zero, undifferentiable
from policy_opt.krylov.basis import (
    NUM_RITZ_STEPS,
    LanczosProcess,
    as_damping,
    current_largest,
    largest_magnitude,
    residual_recurrence,
    ritz_values_of,
    tridiagonal,
)
from policy_opt.krylov.derivative_solves import inverses_by, of_derivatives
from policy_opt.krylov.method import (
    CONVERGED,
    MAX_STEPS,
    NONFINITE,
    STAGNATED,
    AnyRunning,
    Settings,
    is_capturing,
)
from policy_opt.linear_operator import (
    Matvec,
    Operator,
    VectorSpace,
    check_symmetric,
    host_value,
    wide_norm,
)
from policy_opt.operator_solve import takes_operators
from policy_opt.solve_result import RUNNING, LinearSolveResult

MAX_STORED_STEPS = 200  # default limit, because the basis is stored


@dataclass(frozen=True)
class LanczosResult(LinearSolveResult):
    """A `LinearSolveResult` that can answer for other dampings, and knows the spectrum it has seen."""

    ritz_values: Tensor
    """(..., k) eigenvalues of A on the Krylov space, ascending; NaN beyond a system's own steps."""
    basis: Tensor
    """(..., k + 1, p) orthonormal Krylov vectors."""
    alphas: Tensor
    """(..., k) diagonal of T, float64."""
    betas: Tensor
    """(..., k) off-diagonal of T, float64; the last one couples to the vector k + 1."""
    context: _Context
    """The operator and the settings, for `for_damping`."""

    def for_damping(
        self, damping: float | Tensor = 0.0, *, relative_damping: float = 0.0, rtol: float = 1e-6
    ) -> LinearSolveResult:
        """The solution for another damping from the stored basis, with its residual recomputed (`power`
        products).

        Same steps as this run, so a smaller damping may end as MAX_STEPS; run with rtol=0 to use every step
        of max_steps. Differentiating it raises: solve again with that damping instead.
        """
        context = self.context
        vectors = context.vectors
        b = vectors.flatten(context.b, "b").detach()
        operator = Operator(context.matvec, vectors)
        shift = (
            as_damping(damping, b) + relative_damping * largest_magnitude(self.ritz_values) ** context.power
        )
        x = _combine(self, wide_norm(b), shift, context.power, self.num_steps)
        residual = _residual(operator, b, x, shift.to(b.dtype), context.power)
        size, scale = wide_norm(residual), wide_norm(b)
        tolerance = (rtol * scale).clamp_min(context.settings.atol)
        code = torch.where(size <= tolerance, CONVERGED, MAX_STEPS)
        code = torch.where(size.isfinite(), code, NONFINITE)
        relative = (size / torch.where(scale > 0, scale, 1.0)).to(b.dtype)
        values = {f.name: getattr(self, f.name) for f in fields(LinearSolveResult)}
        values |= dict(
            solution=undifferentiable(
                vectors.unflatten(torch.where((code == NONFINITE)[..., None], torch.nan, x)),
                self.solution,
                "the solution of for_damping(d) is no function that can be differentiated: call lanczos_solve with "
                "damping=d, or take .detach() of it",
            ),
            status_code=code,
            relative_residual=relative,
            num_products=operator.num_products,
            residual_history=relative[..., None],
            damping=shift.to(b.dtype).expand(scale.shape),
        )
        return LinearSolveResult(**values)


@dataclass(frozen=True)
class _Context:
    matvec: Matvec
    vectors: VectorSpace
    b: Any
    power: int
    settings: Settings


_TENSORS = [f.name for f in fields(LanczosResult) if f.name not in ("num_products", "context")]
pytree.register_pytree_node(
    LanczosResult,
    lambda r: ([getattr(r, name) for name in _TENSORS], (r.num_products, r.context)),
    lambda values, rest: LanczosResult(
        **dict(zip(_TENSORS, values, strict=True)), num_products=rest[0], context=rest[1]
    ),
    serialized_type_name="policy_opt.LanczosResult",
)


def _combine(run: Any, start_norm: Tensor, damping: Tensor, power: int, num_steps: Tensor) -> Tensor:
    """x (..., p) = V_k y for this damping, from the first num_steps columns of T. All small algebra in
    float64."""
    if run.alphas.shape[-1] == 0:
        return torch.zeros_like(run.basis[..., 0, :])
    small = tridiagonal(run.alphas, run.betas, num_steps)  # (..., k+1, k)
    if power == 1:
        k = small.shape[-1]
        own = torch.arange(k, device=small.device) < num_steps[..., None]
        shift = torch.diag_embed(torch.where(own, damping[..., None], 0.0))
        small = small + torch.cat([shift, torch.zeros_like(small[..., -1:, :])], dim=-2)
    u, s, w = torch.linalg.svd(small.nan_to_num(), full_matrices=False)
    # T is as exact as the products are, whatever its own precision
    rounding = torch.finfo(run.basis.dtype if power == 1 else s.dtype).eps
    cut = rounding * s.shape[-1] * s[..., :1]
    if power == 1:
        weight = torch.where(s > cut, 1 / torch.where(s > cut, s, 1.0), 0.0) * u[..., 0, :]
    else:
        divisor = s**2 + damping[..., None]
        is_safe = divisor.abs() > cut**2
        weight = torch.where(is_safe & (s > 0), 1 / torch.where(is_safe, divisor, 1.0), 0.0) * w[..., :, 0]
    y = start_norm[..., None] * (w.mT @ weight[..., None])[..., 0]  # (..., k)
    basis = run.basis[..., : y.shape[-1], :]
    return (y[..., None, :].to(basis.dtype) @ basis)[..., 0, :]


def _residual(operator: Operator, b: Tensor, x: Tensor, damping: Tensor, power: int) -> Tensor:
    """b - (A^power + damping) x."""
    product = x
    for _ in range(power):
        product = operator(product)
    return b - product - damping[..., None] * x


@outside_of_compiled_programs
@takes_operators
def lanczos_solve(
    matvec: Matvec,
    b: Any,
    *,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    relative_damping: float = 0.0,
    power: int = 1,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
    check_symmetry: bool = False,
) -> LanczosResult:
    """Solve (A^power + damping I) x = b for symmetric A, definite or not; one product a step for either
    power.

    The basis is stored and re-orthogonalised, so at equal products it is the most accurate solver here, and
    `result.for_damping(d)` gives the solution for any other damping without running again. The arguments are
    those of `conjugate_gradient`, except:

        power: 1, or 2 for the damped normal equations of a symmetric A (what `normal_cg` solves has A'b on
            the right).
        relative_damping: in units of |A|^power, from the Ritz values of the first 12 steps (no extra
            products).
        max_steps: None is min(p, 200), because k steps store k p numbers.
        x0, preconditioner: must be None. Solve for the correction A dx = b - A x0, or use minres.

    Raises:
        ValueError: as `conjugate_gradient`, and for another power, an x0, or a preconditioner.
    """
    if power not in (1, 2):
        raise ValueError(f"power: expected 1 or 2, got {power}; compose matvec with itself for higher powers")
    for name, value in (("x0", x0), ("preconditioner", preconditioner)):
        if value is not None:
            raise ValueError(
                f"{name}: expected None, got {type(value).__name__}; one basis serves all dampings only "
                "from zero "
                "and unpreconditioned: solve for the correction, or use minres"
            )
    if relative_damping < 0:
        raise ValueError(f"relative_damping: expected a number >= 0, got {relative_damping}")
    vectors = VectorSpace(b)
    if check_symmetry:
        check_symmetric(matvec, b)
    flat = vectors.flatten(b, "b")
    settings = Settings(rtol, atol, max_steps, None)
    limit = min(vectors.size, MAX_STORED_STEPS) if max_steps is None else min(max_steps, vectors.size)
    context = _Context(matvec, vectors, vectors.unflatten(flat.detach()), power, settings)
    return _solve(context, flat, as_damping(damping, flat), relative_damping, limit)


class _Run:
    """One Lanczos run over a batch: steps until every system claims its tolerance, verifies, and goes on if
    wrong."""

    def __init__(
        self, context: _Context, b: Tensor, damping: Tensor, relative_damping: float, limit: int
    ) -> None:
        self.context, self.b, self.limit = context, b, limit
        self.operator = Operator(context.matvec, context.vectors)
        self.process = LanczosProcess(self.operator, b, limit)
        start = self.process.start_norm
        self.tolerance = (context.settings.rtol * start).clamp_min(context.settings.atol)
        self.aim = self.tolerance
        running = torch.full_like(start, RUNNING, dtype=torch.int64)
        self.code = torch.where(start <= self.tolerance, CONVERGED, running)
        self.code = torch.where(start.isfinite(), self.code, NONFINITE)
        self.num_steps = torch.zeros_like(self.code)
        self.history = [start] if context.power == 1 else []
        self.min_curvature = torch.full_like(start, torch.inf)
        self.damping, self.relative_damping = damping, relative_damping
        self.recurrence = None if relative_damping else residual_recurrence(context.power, start, damping)
        self.x, self.residual, self.residual_norm = torch.zeros_like(b).detach(), b, start
        self._iterate()
        self.code = torch.where(self.code == RUNNING, MAX_STEPS, self.code)

    def _iterate(self) -> None:
        num_pushed = 0
        while True:
            any_running = AnyRunning()
            while len(self.process.alphas) < self.limit and any_running(self.code == RUNNING):
                self.process.extend()
                self._fix_damping()
                while self.recurrence is not None and num_pushed < len(self.process.alphas):
                    self._push(self.process.alphas[num_pushed], self.process.betas[num_pushed])
                    num_pushed += 1
            if not self.process.alphas or not self._verify():
                return

    def _fix_damping(self) -> None:
        """After NUM_RITZ_STEPS products |A| is known well enough to turn a relative damping into a number."""
        if self.recurrence is None and len(self.process.alphas) == min(NUM_RITZ_STEPS, self.limit):
            power = self.context.power
            self.damping = self.damping + self.relative_damping * current_largest(self.process) ** power
            self.recurrence = residual_recurrence(power, self.process.start_norm, self.damping)

    def _push(self, alpha: Tensor, beta: Tensor) -> None:
        assert self.recurrence is not None
        size = self.recurrence.push(alpha, beta)
        active = self.code == RUNNING
        self.num_steps = self.num_steps + active
        self.history.append(torch.where(active, size, self.history[-1]) if self.history else size)
        code = torch.where((size <= self.aim) | (beta == 0), CONVERGED, self.code)
        code = torch.where(alpha.isfinite() & beta.isfinite(), code, NONFINITE)
        self.code = torch.where(active, code, self.code)
        self.min_curvature = torch.where(active, torch.minimum(self.min_curvature, alpha), self.min_curvature)

    def _keep_the_start(self) -> None:
        """The least residual is never above that of x = 0, but for rounding in a system without a solution."""
        worse = (self.residual_norm > self.process.start_norm) & (self.context.power == 1)
        self.x = torch.where(worse[..., None], 0.0, self.x)
        self.residual = torch.where(worse[..., None], self.b, self.residual)
        self.residual_norm = torch.where(worse, self.process.start_norm, self.residual_norm)

    def _verify(self) -> bool:
        """Recompute the residuals; True when a system that claimed too early has steps left and goes on."""
        power, before = self.context.power, self.residual_norm
        self.alphas, self.betas = torch.stack(self.process.alphas, -1), torch.stack(self.process.betas, -1)
        self.basis = self.process.basis[..., : self.alphas.shape[-1] + 1, :]
        self.x = _combine(self, self.process.start_norm, self.damping.detach(), power, self.num_steps)
        self.residual = _residual(self.operator, self.b, self.x, self.damping.to(self.b.dtype), power)
        self.residual_norm = wide_norm(self.residual.detach())
        self._keep_the_start()
        is_within = self.residual_norm <= self.tolerance
        is_used_up = self.betas[..., -1] == 0
        may_go_on = (self.residual_norm <= 0.5 * before) & ~is_used_up
        wrong = (self.code == CONVERGED) & ~is_within
        self.code = torch.where(wrong, torch.where(may_go_on, RUNNING, STAGNATED), self.code)
        self.code = torch.where(self.residual_norm.isfinite(), self.code, NONFINITE)
        self.code = torch.where((self.code == RUNNING) & is_within, CONVERGED, self.code)
        self.aim = torch.where(wrong, 0.5 * self.aim * self.tolerance / self.residual_norm, self.aim)
        steps_left = len(self.process.alphas) < self.limit and not is_capturing(self.b.device)
        return steps_left and bool(host_value(wrong & may_go_on).any())


def _solve(
    context: _Context,
    b: Tensor,
    damping: Tensor,
    relative_damping: float,
    limit: int,
    differentiable: bool = True,
) -> LanczosResult:
    """Run, and report in the user's kind of vectors."""
    run = _Run(context, b, damping, relative_damping, limit)
    if not run.process.alphas:
        run.alphas = run.betas = torch.zeros_like(run.process.start_norm)[..., None][..., :0]
        run.basis = run.process.basis
    history = run.history if run.history else [run.process.start_norm]
    if context.power == 2 and run.process.alphas:
        history = [*history, torch.where(run.num_steps == len(history), run.residual_norm, history[-1])]
    x = torch.where((run.code == NONFINITE)[..., None], torch.nan, run.x)
    if differentiable:
        fixed, settings = run.damping.detach(), context.settings
        is_damped = not is_capturing(b.device) and bool(host_value(fixed).any())
        again = replace(context, settings=of_derivatives(settings, b))

        def solve_again(right_hand_side: Tensor, **more: Any) -> LinearSolveResult:
            asked = replace(again, settings=replace(again.settings, **more))
            return _solve(asked, right_hand_side.detach(), fixed, 0.0, limit, differentiable=False)

        x = x + implicit_zero(run.residual, *inverses_by(solve_again, context.vectors, checks=not is_damped))
    scale = torch.where(run.process.start_norm > 0, run.process.start_norm, 1.0)
    return LanczosResult(
        solution=context.vectors.unflatten(x),
        status_code=run.code,
        relative_residual=(run.residual_norm / scale).to(b.dtype),
        num_steps=run.num_steps,
        num_products=run.operator.num_products,
        residual_history=(torch.stack(history, -1) / scale[..., None]).to(b.dtype),
        min_curvature=run.min_curvature.to(b.dtype),
        damping=run.damping.detach().to(b.dtype),
        direction=context.vectors.unflatten(torch.zeros_like(run.x)),
        ritz_values=ritz_values_of(run.alphas, run.betas, run.num_steps),
        basis=run.basis,
        alphas=run.alphas,
        betas=run.betas,
        context=context,
    )
