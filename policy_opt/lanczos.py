"""Lanczos with a stored, re-orthogonalised basis: every damping from one run, Ritz values, and |A|.

After k products,  A V_k = V_{k+1} T  with V orthonormal (..., k+1, p) and T (..., k+1, k) tridiagonal. From
it, for any damping without further products,

    power 1:  x = V_k y,  y minimises | |b| e_1 - (T + damping) y |        (MINRES, without its loss of
        orthogonality)
    power 2:  x = V_k y,  (T'T + damping) y = |b| e_1                      (A^2 + damping, in half the
        products of CG)

The basis costs k p numbers: 2 MB for 200 steps at p = 2384 in float32. Small matrices are float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.linear_operator import Matvec, Operator, VectorSpace, check_symmetric, norm
from policy_opt.solve_loop import (
    CONVERGED,
    MAX_STEPS,
    NONFINITE,
    STAGNATED,
    AnyRunning,
    Settings,
    host_value,
    implicit_zero,
    is_capturing,
    warn_if_failed,
)
from policy_opt.solve_result import RUNNING, LinearSolveResult

NUM_RITZ_STEPS = (
    12  # products spent on |A| for a relative damping; the estimate is then within a few per cent
)
MAX_STORED_STEPS = 200  # default limit, because the basis is stored


class _Process:
    """The Lanczos recurrence of a batch: `basis` (..., k+1, p), `alphas` and `betas` k float64 tensors
    (...)."""

    def __init__(self, operator: Operator, b: Tensor, max_steps: int) -> None:
        self.operator = operator
        b = b.detach()
        self.start_norm = norm(b.double())
        first = b / torch.where(self.start_norm > 0, self.start_norm, 1.0).to(b.dtype)[..., None]
        self.basis = torch.zeros_like(first)[..., None, :].repeat_interleave(max_steps + 1, dim=-2)
        self.basis[..., 0, :] = first
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.scale = torch.zeros_like(self.start_norm)

    def extend(self) -> tuple[Tensor, Tensor]:
        """One product. A system whose Krylov space is used up gets beta = 0 and zero vectors from then on."""
        k = len(self.alphas)
        v = self.basis[..., : k + 1, :]  # (..., k+1, p)
        w = self.operator(v[..., -1, :]).detach()
        alpha = torch.zeros_like(self.start_norm)
        for _ in range(2):  # "twice is enough" (Parlett): orthogonal to rounding
            overlap = v @ w[..., None]  # (..., k+1, 1)
            w = w - (v.mT @ overlap)[..., 0]
            alpha = alpha + overlap[..., -1, 0].double()
        beta = norm(w).double()
        self.scale = torch.maximum(self.scale, torch.hypot(alpha, beta))
        rounding = torch.finfo(w.dtype).eps * self.operator.vectors.size**0.5 * self.scale
        beta = torch.where(beta <= rounding, 0.0, beta)
        self.basis[..., k + 1, :] = torch.where(
            (beta == 0)[..., None], 0.0, w / torch.where(beta == 0, 1.0, beta).to(w.dtype)[..., None]
        )
        self.alphas.append(alpha)
        self.betas.append(beta)
        return alpha, beta


def _tridiagonal(alphas: Tensor, betas: Tensor, num_steps: Tensor) -> Tensor:
    """T (..., k+1, k) of which each system keeps its own first num_steps columns; the others are zero."""
    k = alphas.shape[-1]
    square = (
        torch.diag_embed(alphas)
        + torch.diag_embed(betas[..., :-1], 1)
        + torch.diag_embed(betas[..., :-1], -1)
    )
    last = torch.zeros_like(alphas)
    last = torch.cat([last[..., :-1], betas[..., -1:]], dim=-1)
    columns = torch.arange(k, device=alphas.device) < num_steps[..., None]  # (..., k)
    return torch.where(columns[..., None, :], torch.cat([square, last[..., None, :]], dim=-2), 0.0)


def _ritz_values(alphas: Tensor, betas: Tensor, num_steps: Tensor) -> Tensor:
    """Eigenvalues of each system's own square T, ascending (..., k); NaN beyond num_steps."""
    k = alphas.shape[-1]
    if k == 0:
        return alphas
    own = torch.arange(k, device=alphas.device) < num_steps[..., None]
    # Unused diagonal entries are put above the spectrum (Gershgorin), so that they sort to the end.
    above = 1 + 4 * (alphas.abs() + 2 * betas).amax(-1, keepdim=True)
    diagonal = torch.where(own, alphas, above)
    coupling = torch.where(own[..., 1:], betas[..., :-1], 0.0)
    square = torch.diag_embed(diagonal) + torch.diag_embed(coupling, 1) + torch.diag_embed(coupling, -1)
    return torch.where(own, torch.linalg.eigvalsh(square.nan_to_num()), torch.nan)


# --- the residual of the current solution, by scalar recurrences (no small solve a step) --------------------


class _ResidualPower1:
    """|b - (A + damping) x_k| after k products: the running QR of MINRES."""

    def __init__(self, start_norm: Tensor, damping: Tensor) -> None:
        zero = torch.zeros_like(start_norm)
        self.damping, self.phi_bar = damping, start_norm
        self.c, self.s, self.delta_bar = zero - 1, zero, zero

    def push(self, alpha: Tensor, beta: Tensor) -> Tensor:
        gamma_bar = self.s * self.delta_bar - self.c * (alpha + self.damping)
        self.delta_bar = -self.c * beta
        gamma = torch.hypot(gamma_bar, beta)
        safe = torch.where(gamma > 0, gamma, 1.0)
        self.c, self.s = gamma_bar / safe, torch.where(gamma > 0, beta / safe, 1.0)
        self.phi_bar = self.s * self.phi_bar
        return self.phi_bar


class _ResidualPower2:
    """|b - (A^2 + damping) x_{k-1}| after k products.

    M = T'T + damping is five-diagonal with nested leading blocks, so M = L D L' grows by one row a step:
      M_kk = alpha_k^2 + beta_{k-1}^2 + beta_k^2 + damping,   M_{k-1,k} = beta_{k-1} (alpha_{k-1} + alpha_k),
      M_{k-2,k} = beta_{k-2} beta_{k-1};
    the residual of the solution of size k-1 has only the entries k and k+1, which need its last two unknowns.
    """

    def __init__(self, start_norm: Tensor, damping: Tensor) -> None:
        zero = torch.zeros_like(start_norm)
        self.damping = damping
        self.alpha, self.beta, self.beta_before = zero, zero, zero
        self.d_1, self.d_2, self.l_before = zero + 1, zero + 1, zero  # pivots k-1, k-2; L_{k-1,k-2}
        self.z_1, self.z_2 = zero, zero  # entries k-1 and k-2 of L^-1 |b| e_1
        self.start_norm, self.is_first = start_norm, True

    def push(self, alpha: Tensor, beta: Tensor) -> Tensor:
        m_1 = self.beta * (self.alpha + alpha)  # M_{k-1,k}
        m_2 = self.beta_before * self.beta  # M_{k-2,k}
        if self.is_first:
            residual, z = self.start_norm, self.start_norm
        else:
            y_1 = self.z_1 / self.d_1
            y_2 = self.z_2 / self.d_2 - self.l_before * y_1
            residual = torch.hypot(m_1 * y_1 + m_2 * y_2, self.beta * beta * y_1)
        l_2 = m_2 / self.d_2
        l_1 = (m_1 - l_2 * self.l_before * self.d_2) / self.d_1
        d = alpha**2 + self.beta**2 + beta**2 + self.damping - l_1**2 * self.d_1 - l_2**2 * self.d_2
        if not self.is_first:
            z = -l_1 * self.z_1 - l_2 * self.z_2
        self.z_1, self.z_2, self.d_1, self.d_2, self.l_before = z, self.z_1, d, self.d_1, l_1
        self.alpha, self.beta, self.beta_before, self.is_first = alpha, beta, self.beta, False
        return residual


def _residual_recurrence(
    power: int, start_norm: Tensor, damping: Tensor
) -> _ResidualPower1 | _ResidualPower2:
    return _ResidualPower1(start_norm, damping) if power == 1 else _ResidualPower2(start_norm, damping)


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
        of max_steps. Not differentiable.
        """
        context = self.context
        vectors = context.vectors
        b = vectors.flatten(context.b, "b").detach()
        operator = Operator(context.matvec, vectors)
        shift = _as_damping(damping, b) + relative_damping * _largest(self.ritz_values) ** context.power
        x = _combine(self, norm(b.double()), shift, context.power, self.num_steps)
        residual = _residual(operator, b, x, shift.to(b.dtype), context.power)
        size, scale = norm(residual), norm(b)
        tolerance = (rtol * scale).clamp_min(context.settings.atol)
        code = torch.where(size <= tolerance, CONVERGED, MAX_STEPS)
        code = torch.where(size.isfinite(), code, NONFINITE)
        relative = size / torch.where(scale > 0, scale, 1.0)
        values = {f.name: getattr(self, f.name) for f in fields(LinearSolveResult)}
        values |= dict(
            solution=vectors.unflatten(torch.where((code == NONFINITE)[..., None], torch.nan, x)),
            status_code=code,
            relative_residual=relative,
            num_products=operator.num_products,
            residual_history=relative[..., None],
            damping=shift.to(b.dtype).expand_as(scale),
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
    small = _tridiagonal(run.alphas, run.betas, num_steps)  # (..., k+1, k)
    if power == 1:
        k = small.shape[-1]
        own = torch.arange(k, device=small.device) < num_steps[..., None]
        shift = torch.diag_embed(torch.where(own, damping[..., None], 0.0))
        small = small + torch.cat([shift, torch.zeros_like(small[..., -1:, :])], dim=-2)
    u, s, w = torch.linalg.svd(small.nan_to_num(), full_matrices=False)
    cut = torch.finfo(s.dtype).eps * s.shape[-1] * s[..., :1]
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


def _as_damping(damping: float | Tensor, b: Tensor) -> Tensor:
    """The damping as a float64 tensor of the batch shape of b. Raises ValueError where it does not
    broadcast."""
    shape = b.shape[:-1]
    value = torch.as_tensor(damping, dtype=torch.float64, device=b.device)
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"damping: expected a number or a tensor that broadcasts to the batch shape {tuple(shape)} of b, "
            f"got shape {tuple(value.shape)}; give one value per system"
        ) from None


def _largest(ritz_values: Tensor) -> Tensor:
    return ritz_values.nan_to_num().abs().amax(-1)


def resolve_damping(
    matvec: Matvec, vectors: VectorSpace, b: Tensor, damping: float | Tensor, relative_damping: float
) -> tuple[Tensor | None, int]:
    """The absolute damping (...) = damping + relative_damping * |A|, or None for exactly none, and its
    products."""
    if relative_damping < 0:
        raise ValueError(
            f"relative_damping: expected a number >= 0, got {relative_damping}; use damping for negative "
            "shifts"
        )
    if relative_damping == 0:
        is_none = not isinstance(damping, Tensor) and damping == 0
        return (None if is_none else _as_damping(damping, b).to(b.dtype)), 0
    process = _Process(Operator(matvec, vectors), b, min(NUM_RITZ_STEPS, vectors.size))
    for _ in range(process.basis.shape[-2] - 1):
        process.extend()
    shift = _as_damping(damping, b) + relative_damping * _current_largest(process)
    return shift.to(b.dtype), process.operator.num_products


def _current_largest(process: _Process) -> Tensor:
    """|A| of the Krylov space so far; as T is square here, never more than the true |A|."""
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    return _largest(_ritz_values(alphas, betas, torch.full_like(process.start_norm, alphas.shape[-1])))


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
    limit = min(vectors.size, MAX_STORED_STEPS) if max_steps is None else min(max_steps, vectors.size)
    settings = Settings(rtol, atol, max_steps, None)
    context = _Context(matvec, vectors, vectors.unflatten(flat.detach()), power, settings)
    return _solve(context, flat, _as_damping(damping, flat), relative_damping, limit)


class _Run:
    """One Lanczos run over a batch: steps until every system claims its tolerance, verifies, and goes on if
    wrong."""

    def __init__(
        self, context: _Context, b: Tensor, damping: Tensor, relative_damping: float, limit: int
    ) -> None:
        self.context, self.b, self.limit = context, b, limit
        self.operator = Operator(context.matvec, context.vectors)
        self.process = _Process(self.operator, b, limit)
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
        self.recurrence = None if relative_damping else _residual_recurrence(context.power, start, damping)
        self.x, self.residual, self.residual_norm = torch.zeros_like(b).detach(), b, start
        self._iterate()
        self.code = torch.where(self.code == RUNNING, MAX_STEPS, self.code)

    def _iterate(self) -> None:
        any_running = AnyRunning()
        num_pushed = 0
        while True:
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
            self.damping = self.damping + self.relative_damping * _current_largest(self.process) ** power
            self.recurrence = _residual_recurrence(power, self.process.start_norm, self.damping)

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

    def _verify(self) -> bool:
        """Recompute the residuals; True when a system that claimed too early has steps left and goes on."""
        power, before = self.context.power, self.residual_norm
        self.alphas, self.betas = torch.stack(self.process.alphas, -1), torch.stack(self.process.betas, -1)
        self.basis = self.process.basis[..., : self.alphas.shape[-1] + 1, :]
        self.x = _combine(self, self.process.start_norm, self.damping.detach(), power, self.num_steps)
        self.residual = _residual(self.operator, self.b, self.x, self.damping.to(self.b.dtype), power)
        self.residual_norm = norm(self.residual.detach()).double()
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
        fixed = run.damping.detach()

        def solve_again(right_hand_side: Tensor) -> Tensor:
            answer = _solve(context, right_hand_side.detach(), fixed, 0.0, limit, differentiable=False)
            warn_if_failed(answer)
            return context.vectors.flatten(answer.solution, "solution").detach()

        x = x + implicit_zero(run.residual, solve_again, solve_again)
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
        ritz_values=_ritz_values(run.alphas, run.betas, run.num_steps),
        basis=run.basis,
        alphas=run.alphas,
        betas=run.betas,
        context=context,
    )


# --- the ends of the spectrum -------------------------------------------------------------------------------


class ExtremeEigenvalues(NamedTuple):
    """The ends of the spectrum of a symmetric operator, each with the radius in which an eigenvalue surely
    lies."""

    smallest: Tensor
    largest: Tensor
    smallest_error: Tensor
    largest_error: Tensor
    num_products: int


def extreme_eigenvalues(
    matvec: Matvec, like: Any, *, num_steps: int = 50, generator: torch.Generator | None = None
) -> ExtremeEigenvalues:
    """Lanczos estimates of the extreme eigenvalues of symmetric A from a random start shaped as `like`.

    The Ritz values lie inside the spectrum; an eigenvalue is within the reported error |A u - theta u| of
    each (Parlett, "The Symmetric Eigenvalue Problem", 1980, section 4.5).
    """
    vectors = VectorSpace(like, "like")
    start = torch.randn(vectors.flat_shape, generator=generator, dtype=vectors.dtype, device=vectors.device)
    process = _Process(Operator(matvec, vectors), start, min(num_steps, vectors.size))
    for _ in range(process.basis.shape[-2] - 1):
        process.extend()
    alphas, betas = torch.stack(process.alphas, -1), torch.stack(process.betas, -1)
    square = (
        torch.diag_embed(alphas)
        + torch.diag_embed(betas[..., :-1], 1)
        + torch.diag_embed(betas[..., :-1], -1)
    )
    theta, s = torch.linalg.eigh(square)
    error = betas[..., -1:] * s[..., -1, :].abs()  # (..., k)
    return ExtremeEigenvalues(
        theta[..., 0], theta[..., -1], error[..., 0], error[..., -1], process.operator.num_products
    )
