"""Iterative solvers for A x = b with a callable A: conjugate gradients, normal equations, MINRES.

    solver(matvec, b, *, x0=None, damping=0.0, rtol=1e-6, atol=0.0, max_steps=None, preconditioner=None)

`matvec: (..., p) -> (..., p)`; all leading axes of b are independent systems (tasks or right-hand sides),
solved by one batched product a step, each converging on its own. b may also be a pytree or a scalar: one
system. Float32 or float64, CPU or GPU, inside `torch.func.vmap`, `grad`, `jacrev`, `jacfwd` (implicit
derivative, not through the iterations). With a `LinearOperator` as matvec the solution has derivatives of every
order in its parameters, b and the damping (`operator_solve`); with a callable of first order, in what it closes over.

Differs from SciPy in:
1. the tolerance max(rtol |b|, atol) is tested on the recomputed residual of the returned x, in every solver;
2. the answer is a `LinearSolveResult` with a status per system; nothing that failed says that it converged;
3. conjugate gradients stop at a direction of non-positive curvature and return it;
4. `damping` shifts the operator, and `relative_damping` does so in units of its own largest eigenvalue.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.krylov_basis import resolve_damping
from policy_opt.linear_operator import Matvec, Operator, VectorSpace, check_symmetric, dot, host_value, norm
from policy_opt.minres_step import Minres
from policy_opt.operator_solve import takes_operators, takes_operators_of_normal_equations
from policy_opt.solve_loop import (
    CONVERGED,
    NONFINITE,
    STAGNATED,
    Iterate,
    Problem,
    Settings,
    is_capturing,
    solve,
)
from policy_opt.solve_result import CODE, RUNNING, LinearSolveResult, SolveStatus

NEGATIVE_CURVATURE, TRUST_RADIUS = CODE[SolveStatus.NEGATIVE_CURVATURE], CODE[SolveStatus.TRUST_RADIUS]


# --- conjugate gradients ------------------------------------------------------------------------------------
#
#   q = A p,  alpha = r'z / p'q,  x += alpha p,  r -= alpha q,  z = M r,  beta = r'z / (r'z before),
#   p = z + beta p
#
# Hestenes and Stiefel 1952; the trust radius: Steihaug, "The conjugate gradient method and trust regions in
# large scale optimization", 1983.


class _CGMemory(NamedTuple):
    r: Tensor
    p: Tensor
    rho: Tensor  # r'z
    max_curvature: Tensor


@dataclasses.dataclass(frozen=True)
class ConjugateGradient:
    """One conjugate-gradient step for the shared loop."""

    trust_radius: float | Tensor | None = None

    def scaled(self, scale: Tensor) -> ConjugateGradient:
        return self if self.trust_radius is None else ConjugateGradient(self.trust_radius * scale)

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        z = problem.precondition(r)
        size, rho = norm(r), dot(r, z)
        return Iterate(
            x=x,
            residual_norm=size,
            code=torch.where(rho > 0, RUNNING, torch.where(rho.isfinite(), STAGNATED, NONFINITE)),
            min_curvature=torch.full_like(size, torch.inf),
            direction=torch.zeros_like(x),
            memory=_CGMemory(r, z, rho, torch.zeros_like(size)),
        )

    def step(self, problem: Problem, now: Iterate) -> Iterate:
        r, p, rho, max_curvature = now.memory
        q = problem.product(p)
        p_p, p_q = dot(p, p), dot(p, q)
        curvature = p_q / p_p
        max_curvature = torch.maximum(max_curvature, curvature.abs())
        # Below the rounding of A p the sign of p'Ap means nothing; with a preconditioner p has no scale.
        floor = torch.finfo(p.dtype).eps if problem.preconditioner is None else 0.0
        is_negative = curvature <= floor * max_curvature
        alpha = rho / p_q
        x = now.x + alpha[..., None] * p
        r = r - alpha[..., None] * q
        z = problem.precondition(r)
        size, new_rho = norm(r), dot(r, z)
        code = torch.full_like(now.code, RUNNING)
        code = torch.where(new_rho > 0, code, STAGNATED)
        code = torch.where(size <= problem.tolerance, CONVERGED, code)
        code = torch.where(is_negative, NEGATIVE_CURVATURE, code)
        if self.trust_radius is not None:
            leaves = ~is_negative & (norm(x) >= self.trust_radius)
            code = torch.where(leaves, TRUST_RADIUS, code)
            to_border = _step_to_border(now.x, p, self.trust_radius)
            at_border = now.x + to_border[..., None] * p
            x = torch.where((leaves | is_negative)[..., None], at_border, x)
            size = torch.where(leaves | is_negative, norm(now.memory[0] - to_border[..., None] * q), size)
        else:
            x = torch.where(is_negative[..., None], now.x, x)
            size = torch.where(is_negative, now.residual_norm, size)
        code = torch.where(p_q.isfinite() & size.isfinite(), code, NONFINITE)
        stopped_on_p = (code == NEGATIVE_CURVATURE) | (code == TRUST_RADIUS)
        return Iterate(
            x=x,
            residual_norm=size,
            code=code,
            min_curvature=torch.minimum(now.min_curvature, curvature),
            direction=torch.where(stopped_on_p[..., None], p, now.direction),
            memory=_CGMemory(r, z + (new_rho / rho)[..., None] * p, new_rho, max_curvature),
        )


def _step_to_border(x: Tensor, p: Tensor, radius: float | Tensor) -> Tensor:
    """The tau >= 0 with |x + tau p| = radius, for |x| <= radius."""
    x_p, p_p = dot(x, p), dot(p, p)
    room = (radius**2 - dot(x, x)).clamp_min(0)
    # the form without cancellation for x'p >= 0, which CG has
    return room / (x_p + (x_p**2 + p_p * room).sqrt())


@outside_of_compiled_programs
@takes_operators
def conjugate_gradient(
    matvec: Matvec,
    b: Any,
    *,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    relative_damping: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
    trust_radius: float | None = None,
    check_symmetry: bool = False,
) -> LinearSolveResult:
    """Solve (A + damping I) x = b for symmetric positive definite A + damping I; one product a step.

    SciPy's equivalent is `scipy.sparse.linalg.cg`: the iterates are the same.

    Args:
        matvec: v -> A v, (..., p) -> (..., p), or pytree -> pytree.
        b: (..., p), every leading axis a system of its own; or a pytree or scalar, one system.
        x0: starting point shaped as b; None is zero and saves a product.
        damping: absolute, a number or a tensor of the batch shape.
        relative_damping: added in units of |A|_2, which costs 12 products of Lanczos (held constant in
            derivatives).
        rtol, atol: a system has converged when |b - A x| <= max(rtol |b|, atol), recomputed.
        max_steps: per system; None is 10 p.
        preconditioner: r -> M r with M close to A^-1, symmetric positive definite.
        trust_radius: stop on |x| = radius, also along a direction of negative curvature (Steihaug).
            Differentiating the solution then raises. Not with a preconditioner, under which |x| need not grow.
        check_symmetry: spend four products on checking <u, Av> = <Au, v> first.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, integer tensors, a non-symmetric operator
            (checked).
    """
    settings = Settings(rtol, atol, max_steps, preconditioner)
    if trust_radius is not None and (preconditioner is not None or not trust_radius > 0):
        raise ValueError(
            f"trust_radius: expected a positive number and no preconditioner, got {trust_radius} "
            f"and preconditioner={preconditioner}; scale the variables instead of preconditioning"
        )
    operator, flat, start = _prepare(matvec, b, x0, damping, relative_damping, check_symmetry)
    return solve(ConjugateGradient(trust_radius), operator, flat, start, settings)


@outside_of_compiled_programs
@takes_operators_of_normal_equations(conjugate_gradient)
def normal_cg(
    matvec: Matvec,
    b: Any,
    *,
    rmatvec: Matvec | None = None,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    relative_damping: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
) -> LinearSolveResult:
    """Solve (A'A + damping I) x = A'b for any square A by conjugate gradients; two products a step.

    The residual of the result is that of this damped normal system, relative to |A'b|. `rmatvec` is w -> A'w;
    without it A is taken to be symmetric, A' = A, which is *tested* with one more product: <b, A(Ab)> must be
    |Ab|^2. `relative_damping` is in units of |A|_2^2, `preconditioner` approximates (A'A + damping I)^-1. The
    rest as in `conjugate_gradient`. SciPy's equivalents are lsqr and lsmr with `damp = sqrt(damping)`, which
    square no condition
    number: prefer `as_scipy_operator` with lsmr for an ill-conditioned A without damping.

    Raises:
        ValueError: as `conjugate_gradient`; also when `rmatvec` is missing and A is seen not to be symmetric.
    """
    transpose = matvec if rmatvec is None else rmatvec
    vectors = VectorSpace(b)
    flat_b = vectors.flatten(b, "b")
    right_hand_side = Operator(transpose, vectors)(flat_b)
    if rmatvec is None:
        _require_symmetric_at(matvec, vectors, flat_b, right_hand_side)

    def normal(v: Any) -> Any:
        return transpose(vectors.unflatten(Operator(matvec, vectors)(vectors.flatten(v, "v"))))

    settings = Settings(rtol, atol, max_steps, preconditioner)
    operator, flat, start = _prepare(
        normal, vectors.unflatten(right_hand_side), x0, damping, relative_damping, False
    )
    result = solve(ConjugateGradient(), operator, flat, start, settings)
    checks = 2 if rmatvec is None else 1
    return dataclasses.replace(result, num_products=2 * result.num_products + checks)


@outside_of_compiled_programs
@takes_operators
def minres(
    matvec: Matvec,
    b: Any,
    *,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    relative_damping: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
    check_symmetry: bool = False,
) -> LinearSolveResult:
    """Solve (A + damping I) x = b for symmetric A, which may be indefinite or singular; one product a step.

    Minimises |b - A x| over the Krylov space. An inconsistent system ends as STAGNATED with the least-squares
    residual. `min_curvature` is the smallest Rayleigh quotient of the Lanczos vectors: negative proves that A
    is indefinite. Arguments and errors as in `conjugate_gradient`; the preconditioner must be positive
    definite. SciPy's equivalent is `scipy.sparse.linalg.minres`, whose tolerance is relative to |A| |x|
    instead of |b|.
    """
    operator, flat, start = _prepare(matvec, b, x0, damping, relative_damping, check_symmetry)
    return solve(Minres(), operator, flat, start, Settings(rtol, atol, max_steps, preconditioner))


def _prepare(
    matvec: Matvec,
    b: Any,
    x0: Any,
    damping: float | Tensor,
    relative_damping: float,
    check_symmetry: bool,
) -> tuple[Operator, Tensor, Tensor | None]:
    """Check the inputs once and put them in flat form: the damped operator, b (..., p) and x0."""
    vectors = VectorSpace(b)
    if check_symmetry:
        check_symmetric(matvec, b)
    flat = vectors.flatten(b, "b")
    start = None if x0 is None else vectors.flatten(x0, "x0")
    shift, num_products = resolve_damping(matvec, vectors, flat, damping, relative_damping)
    operator = Operator(matvec, vectors, shift)
    operator.num_products = num_products
    return operator, flat, start


def _require_symmetric_at(matvec: Matvec, vectors: VectorSpace, b: Tensor, product: Tensor) -> None:
    """Raise ValueError unless <b, A(Ab)> = |Ab|^2, given Ab: a free-standing test of A' = A for one
    product."""
    operator = Operator(matvec, vectors)
    b, product = b.detach(), product.detach()
    again = operator(product).detach()
    defect = (dot(b, again) - dot(product, product)).abs()
    scale = norm(b) * norm(again) + norm(product) ** 2
    tolerance = 10 * torch.finfo(b.dtype).eps ** 0.75
    if not is_capturing(b.device) and bool(host_value(defect > tolerance * scale).any()):
        raise ValueError(
            "matvec: expected a symmetric operator because rmatvec is missing, got <b, A(Ab)> different "
            "from |Ab|^2; "
            "pass rmatvec=lambda w: A'w (linear_map(matvec, b).rmatvec makes one)"
        )
