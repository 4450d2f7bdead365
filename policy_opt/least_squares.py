"""LSMR: rectangular least squares, min |A x - b|^2 + damping |x|^2, from products with A and A'.

Golub-Kahan vectors of A from b (u in the space of b, v in that of x), and MINRES on (A'A + damping) x = A'b without
ever forming it:

  beta u = A v - alpha u,   alpha v = A'u - beta v,   two reflections a step,   |A'r| = |zeta_bar|, which only falls

Damping is rows below A: A^ = [A; sqrt(damping) I], b^ = [b; 0]. From x = 0 the iterates stay in the range of A', so a
problem of deficient rank gets its shortest solution, x = A^+ b. Its derivative, for constant rank (Golub and Pereyra,
"The differentiation of pseudo-inverses and nonlinear least squares problems", 1973):

  dx = (A'A)^+ (d(A'b) - d(A'A) x)  +  (I - A^+ A) dA' z,    z = A'^+ x    (the second term is 0 for full column rank)

with (A'A)^+ c = A^+ (A'^+ c), two more runs of LSMR: the condition is never squared.

Fong and Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", SIAM J. Sci. Comput. 33, 2011.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.implicit_function import carries_derivative
from policy_opt.implicit_zero import implicit_zero
from policy_opt.krylov.basis import as_damping
from policy_opt.krylov.derivative_solves import Inverses, of_derivatives, warn_if_failed
from policy_opt.krylov.method import (
    CONVERGED,
    NONFINITE,
    STAGNATED,
    Iterate,
    Method,
    Problem,
    Settings,
    code_of_start,
    is_capturing,
)
from policy_opt.krylov.reflections import divided, ratio
from policy_opt.krylov.scaling import power_of_two, rescaled, unit_of_operator
from policy_opt.krylov.solve_loop import solve
from policy_opt.linear_operator import (
    Matvec,
    Operator,
    VectorSpace,
    host_value,
    linear_map,
    norm,
    wide_norm,
)
from policy_opt.operator_solve import (
    is_zero_somewhere,
    product_of_constants,
    takes_operators_of_least_squares,
)
from policy_opt.operators import LinearOperator
from policy_opt.solve_result import RUNNING, LinearSolveResult

Product = Callable[[Tensor], Tensor]


class Rectangle:
    """A (..., n) -> (..., m) and A' on flat vectors, the products counted."""

    def __init__(self, forward: Product, backward: Product) -> None:
        self._forward, self._backward, self.num_products = forward, backward, 0

    def forward(self, v: Tensor) -> Tensor:
        self.num_products += 1
        return self._forward(v)

    def backward(self, w: Tensor) -> Tensor:
        self.num_products += 1
        return self._backward(w)

    def transposed(self) -> Rectangle:
        return Rectangle(self._backward, self._forward)

    def damped(self, root: Tensor) -> Rectangle:
        """[A; root I], root (...)."""
        size = root[..., None]

        def backward(w: Tensor) -> Tensor:
            upper, lower = w[..., : -self.num_columns], w[..., -self.num_columns :]
            return self._backward(upper) + size * lower

        damped = Rectangle(lambda v: torch.cat([self._forward(v), size * v], -1), backward)
        damped.num_columns = self.num_columns
        return damped

    def times(self, unit: Tensor) -> Rectangle:
        """unit A, unit (...)."""
        return Rectangle(
            lambda v: self._forward(v) * unit[..., None], lambda w: self._backward(w) * unit[..., None]
        )

    num_columns = 0


class _LsmrMemory(NamedTuple):
    """Vectors (..., m) and (..., n); numbers (...) in float64, with the paper's names."""

    u: Tensor
    v: Tensor
    h: Tensor
    h_bar: Tensor
    alpha: Tensor
    alpha_bar: Tensor
    zeta_bar: Tensor
    rho: Tensor
    rho_bar: Tensor
    c_bar: Tensor
    s_bar: Tensor
    scale: Tensor  # running estimate of |A|
    beta_1: Tensor


@dataclasses.dataclass(frozen=True)
class Lsmr(Method):
    """One LSMR step for the shared loop, which sees the normal equations A'A x = A'b."""

    rectangle: Rectangle
    b: Tensor  # (..., m), with its graph
    damping: Tensor | None  # (...), with its graph; its value is in the rows of the rectangle

    def scaled(self, of_x: Tensor, of_b: Tensor) -> Lsmr:
        return Lsmr(self.rectangle, self.b * of_b[..., None], self.damping)

    def residual(self, problem: Problem, x: Tensor) -> Tensor:
        gradient = self.rectangle.backward(self.b - self.rectangle.forward(x))
        if self.damping is None:
            return gradient
        return gradient - (self.damping - self.damping.detach())[..., None] * x

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        u = self.b.detach()
        if not problem.is_readable or bool(x.any()):
            u = u - self.rectangle.forward(x).detach()
        beta = wide_norm(u)
        v = divided(r, beta)  # alpha v = A'u, and r = A'(b - A x)
        alpha = wide_norm(v)
        v = divided(v, alpha)
        none, size = torch.zeros_like(alpha), wide_norm(r)
        return Iterate(
            x=x.clone(),
            residual_norm=norm(r),
            code=code_of_start(size, size),
            min_curvature=torch.full_like(norm(r), torch.inf),
            direction=torch.zeros_like(x),
            memory=_LsmrMemory(
                u=divided(u, beta),
                v=v,
                h=v.clone(),
                h_bar=torch.zeros_like(v),
                alpha=alpha,
                alpha_bar=alpha,
                zeta_bar=alpha * beta,
                rho=none + 1,
                rho_bar=none + 1,
                c_bar=none + 1,
                s_bar=none,
                scale=alpha,
                beta_1=beta,
            ),
        )

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        m = _LsmrMemory(*now.memory)
        u = self.rectangle.forward(m.v).detach()
        is_finite = u.isfinite().all(-1)
        u = problem.add(problem.zero_rows(~is_finite, u), -m.alpha, m.u, into=m.u)
        beta = wide_norm(u)
        u = divided(u, beta)
        v = self.rectangle.backward(u).detach()
        is_finite = is_finite & v.isfinite().all(-1)
        v = problem.add(problem.zero_rows(~is_finite, v), -beta, m.v, into=m.v)
        alpha = wide_norm(v)
        v = divided(v, alpha)

        rho = torch.hypot(m.alpha_bar, beta)
        c, s = ratio(m.alpha_bar, rho), ratio(beta, rho)
        theta, alpha_bar = s * alpha, c * alpha
        theta_bar, short = m.s_bar * rho, m.c_bar * rho
        rho_bar = torch.hypot(short, theta)
        c_bar, s_bar = ratio(short, rho_bar), ratio(theta, rho_bar)
        zeta, zeta_bar = c_bar * m.zeta_bar, -s_bar * m.zeta_bar
        moves = active & is_finite
        h_bar = problem.add(m.h, -ratio(theta_bar * rho, m.rho * m.rho_bar), m.h_bar, into=m.h_bar)
        x = problem.add(now.x, torch.where(moves, ratio(zeta, rho * rho_bar), 0.0), h_bar)
        h = problem.add(v, -ratio(theta, rho), m.h, into=m.h)

        size, curvature = zeta_bar.abs(), m.alpha**2 + beta**2  # v'A'A v
        scale = torch.maximum(m.scale, torch.hypot(torch.maximum(alpha, m.alpha), beta))
        eps = torch.finfo(v.dtype).eps
        is_end = (alpha <= eps * scale) | (size <= eps * scale * m.beta_1)
        code = torch.where(is_end, STAGNATED, RUNNING)
        code = torch.where(size <= problem.tolerance, CONVERGED, code)
        code = torch.where(is_finite, code, NONFINITE)
        least = torch.minimum(now.min_curvature, curvature.to(v.dtype))
        return Iterate(
            x=x,
            residual_norm=torch.where(active, size.to(v.dtype), now.residual_norm),
            code=torch.where(active, code, now.code),
            min_curvature=torch.where(moves, least, now.min_curvature),
            direction=now.direction,
            memory=_LsmrMemory(
                u, v, h, h_bar, alpha, alpha_bar, zeta_bar, rho, rho_bar, c_bar, s_bar, scale, m.beta_1
            ),
        )


def _solve_gram(
    A: LinearOperator, damping: Any, c: Any, *, rtol: float = 1e-6, max_steps: int | None = None
) -> LinearSolveResult:
    """(A'A + damping)^+ c = A^+ (A'^+ c), where A has rows sqrt(damping) I below."""
    settings, domain = Settings(rtol, 0.0, max_steps, None), VectorSpace(c)
    flat = domain.flatten(c, "c")
    codomain = _space(A.codomain.zeros(), flat)
    rectangle = _rectangle(product_of_constants(A), product_of_constants(A.T), domain, codomain)
    if damping is not None:
        rectangle = rectangle.damped(as_damping(damping, flat).to(flat.dtype).sqrt())
    w = _pseudo_inverse(rectangle.transposed(), flat, settings)
    answer = _least_squares(rectangle, w, None, settings, None)
    return dataclasses.replace(answer, solution=domain.unflatten(answer.solution))


@outside_of_compiled_programs
@takes_operators_of_least_squares(_solve_gram, rectangular=True)
def lsmr(
    matvec: Matvec,
    b: Any,
    *,
    rmatvec: Matvec | None = None,
    like: Any = None,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
) -> LinearSolveResult:
    """The x (..., n) that minimises |A x - b|^2 + damping |x|^2, for any A (m, n); two products a step.

    The shortest one where there are many, if x0 is None. A system has converged when the recomputed gradient
    |A'(b - A x) - damping x| <= max(rtol |A'b|, atol); `relative_residual` is that of the gradient. SciPy's
    equivalent is `scipy.sparse.linalg.lsmr` with `damp = sqrt(damping)`.

    Args:
        matvec: v -> A v, (..., n) -> (..., m), or pytree -> pytree.
        b: (..., m), every leading axis a system of its own; or a pytree, one system.
        rmatvec: w -> A'w. None: by torch.func.vjp of matvec, which must then be differentiable.
        like: what x is like: a tensor (n,) or (..., n), or a pytree. None: like b, A square.
        x0: starting point shaped as x.
        damping: >= 0, a number or a tensor of the batch shape.
        max_steps: per system; None is 10 n.

    Derivatives are those of x with respect to b, the damping and what `matvec` and `rmatvec` close over, for constant
    rank; of every order where `matvec` is a `LinearOperator`, which gives A' and the space of x itself.

    Raises:
        ValueError: as `conjugate_gradient`, and for a negative damping.
    """
    settings = Settings(rtol, atol, max_steps, None)
    codomain = VectorSpace(b)
    flat_b = codomain.flatten(b, "b")
    domain = _space(b if like is None else like, flat_b)
    shift = as_damping(damping, flat_b).to(flat_b.dtype)
    if not is_capturing(flat_b.device) and bool(host_value(shift < 0).any()):
        raise ValueError(
            f"damping: expected numbers >= 0, got {float(shift.min())}; least squares has no less"
        )
    if not callable(matvec):
        raise ValueError(f"matvec: expected a callable v -> A v, got {type(matvec).__name__}")

    rectangle = _rectangle(matvec, rmatvec, domain, codomain)
    is_damped = isinstance(damping, Tensor) or damping != 0
    if is_damped:
        rectangle = rectangle.damped(shift.detach().sqrt())
        flat_b = torch.cat(
            [flat_b, torch.zeros(domain.flat_shape, dtype=domain.dtype, device=domain.device)], -1
        )
    start = None if x0 is None else domain.flatten(x0, "x0")
    answer = _least_squares(
        rectangle, flat_b, start, settings, _inverses(rectangle, settings), shift if is_damped else None
    )
    x = answer.solution
    if is_zero_somewhere(shift if is_damped else None) and carries_derivative(x):
        moved = x.detach() if start is None else x.detach() - start.detach()
        x = x + _null_space_term(rectangle, moved, settings)
    return dataclasses.replace(
        answer,
        solution=domain.unflatten(x),
        direction=domain.unflatten(answer.direction),
        num_products=rectangle.num_products,
        damping=shift.detach().expand(answer.status_code.shape),
    )


def _rectangle(
    matvec: Matvec, rmatvec: Matvec | None, domain: VectorSpace, codomain: VectorSpace
) -> Rectangle:
    """The products on flat vectors; A' by torch.func.vjp where there is none."""

    def forward(v: Tensor) -> Tensor:
        return codomain.flatten(matvec(domain.unflatten(v)), "matvec")

    def backward(w: Tensor) -> Tensor:
        assert rmatvec is not None
        return domain.flatten(rmatvec(codomain.unflatten(w)), "rmatvec")

    if rmatvec is None:
        at = torch.zeros(domain.flat_shape, dtype=domain.dtype, device=domain.device)
        rectangle = Rectangle(forward, linear_map(forward, at).rmatvec)
    else:
        rectangle = Rectangle(forward, backward)
    rectangle.num_columns = domain.size
    return rectangle


def _space(like: Any, b: Tensor) -> VectorSpace:
    """The space of vectors like `like`, which gets the batch axes of b (..., m) where it is one vector."""
    if isinstance(like, Tensor) and like.dim() == 1 and b.dim() > 1:
        like = like.expand(*b.shape[:-1], -1)
    domain = VectorSpace(like, "like")
    if domain.flat_shape[:-1] != b.shape[:-1] or domain.dtype != b.dtype or domain.device != b.device:
        raise ValueError(
            f"like: expected the batch axes {tuple(b.shape[:-1])}, dtype and device of b, {b.dtype} on {b.device}, "
            f"got shape {tuple(domain.flat_shape)}, {domain.dtype} on {domain.device}; one vector (n,) serves all"
        )
    return domain


def _least_squares(
    rectangle: Rectangle,
    b: Tensor,
    x0: Tensor | None,
    settings: Settings,
    inverses: Inverses | None,
    damping: Tensor | None = None,
) -> LinearSolveResult:
    """min |A x - b| on flat vectors, b and A brought near 1 where they are not."""
    unit_of_b, one = power_of_two(b.detach()), torch.ones_like(b.detach()[..., 0])
    if unit_of_b is not None:
        b = b * unit_of_b[..., None]
    right, scaled = rectangle.backward(b), rectangle
    unit_of_A = unit_of_operator(right.detach(), b.detach())
    if unit_of_A is not None:
        scaled, right = rectangle.times(unit_of_A), right * unit_of_A[..., None]
        damping = None if damping is None else damping * unit_of_A * unit_of_A
        inverses = None if inverses is None else _inverses(scaled, settings)
    is_scaled = unit_of_A is not None or unit_of_b is not None
    unit_of_A = one if unit_of_A is None else unit_of_A
    unit_of_b = one if unit_of_b is None else unit_of_b
    of_x = unit_of_b / unit_of_A
    if is_scaled:
        x0 = None if x0 is None else x0 * of_x[..., None]
        # one after the other: the product of the units may overflow
        settings = dataclasses.replace(settings, atol=settings.atol * unit_of_A * unit_of_b)
    space = VectorSpace(right)
    operator = Operator(lambda v: scaled.backward(scaled.forward(v)), space)
    method = Lsmr(scaled, b, damping)
    answer = solve(method, operator, right, x0, settings, differentiable=False, inverses=inverses)
    rectangle.num_products += 0 if scaled is rectangle else scaled.num_products
    return rescaled(answer, space, of_x, unit_of_A**-2) if is_scaled else answer


def _inverses(rectangle: Rectangle, settings: Settings) -> Inverses:
    """(A'A)^+ twice: c -> A^+ (A'^+ c)."""

    def apply(c: Tensor) -> Tensor:
        return _pseudo_inverse(rectangle, _pseudo_inverse(rectangle.transposed(), c, settings), settings)

    return apply, apply


def _pseudo_inverse(rectangle: Rectangle, b: Tensor, settings: Settings) -> Tensor:
    answer = _least_squares(rectangle, b.detach(), None, of_derivatives(settings, b), None)
    warn_if_failed(answer)
    x: Tensor = answer.solution
    return x.detach()


def _null_space_term(rectangle: Rectangle, x: Tensor, settings: Settings) -> Tensor:
    """(I - A^+ A) A' z with z = A'^+ x fixed: zero, with the derivative that moves the null space."""
    z = _pseudo_inverse(rectangle.transposed(), x, settings)

    def project(c: Tensor) -> Tensor:
        c = c.detach()
        return c - _pseudo_inverse(rectangle, rectangle.forward(c).detach(), settings)

    return implicit_zero(rectangle.backward(z), project, project)
