"""Iterative solvers for A x = b with a callable A: conjugate gradients, normal equations, MINRES-QLP.

    solver(matvec, b, *, x0=None, damping=0.0, rtol=1e-6, atol=0.0, max_steps=None, preconditioner=None)

`matvec: (..., p) -> (..., p)`; all leading axes of b are independent systems (tasks or right-hand sides),
solved by one batched product a step, each converging on its own. `least_squares.py` has LSMR for rectangular A,
`nonsymmetric.py` GMRES. b may also be a pytree or a scalar: one
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
from typing import Any

import torch
from torch import Tensor

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.krylov.basis import as_damping, resolve_damping
from policy_opt.krylov.block_cg_step import BlockConjugateGradient
from policy_opt.krylov.cg_step import ConjugateGradient
from policy_opt.krylov.method import Settings, is_capturing
from policy_opt.krylov.minres_step import Minres
from policy_opt.krylov.scaling import power_of_two, rescaled, unit_of_operator
from policy_opt.krylov.solve_loop import solve
from policy_opt.linear_operator import Matvec, Operator, VectorSpace, check_symmetric, dot, host_value, norm
from policy_opt.operator_solve import (
    moves_the_null_space,
    product_of_constants,
    takes_operators,
    takes_operators_of_least_squares,
)
from policy_opt.operators import LinearOperator
from policy_opt.solve_result import LinearSolveResult


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
    block: bool = False,
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
        block: b (..., s, p) holds s right-hand sides of one A (and one damping), which share a Krylov space: fewer
            products, more arithmetic beside them (`policy_opt.krylov.block_cg_step`). Without a preconditioner and
            a radius.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, integer tensors, a non-symmetric operator
            (checked), several dampings in one block.
    """
    settings = Settings(rtol, atol, max_steps, preconditioner)
    if trust_radius is not None and (preconditioner is not None or not trust_radius > 0):
        raise ValueError(
            f"trust_radius: expected a positive number and no preconditioner, got {trust_radius} "
            f"and preconditioner={preconditioner}; scale the variables instead of preconditioning"
        )
    operator, flat, start = _prepare(matvec, b, x0, damping, relative_damping, check_symmetry)
    if not block or flat.dim() == 1:
        return solve(ConjugateGradient(trust_radius), operator, flat, start, settings)
    if preconditioner is not None or trust_radius is not None:
        raise ValueError("block: expected no preconditioner and no trust_radius beside it; leave block out")
    operator.damping = _damping_of_block(operator.damping, relative_damping)
    return solve(BlockConjugateGradient(), operator, flat, start, settings)


def _damping_of_block(damping: Tensor | None, relative_damping: float) -> Tensor | None:
    """One number for each block (..., s): with a relative damping the largest that its systems estimate."""
    if damping is None:
        return None
    largest = damping.amax(-1, keepdim=True).expand_as(damping)
    is_one = is_capturing(damping.device) or relative_damping or bool(host_value(largest == damping).all())
    if not is_one:
        raise ValueError(
            f"damping: expected one number for each block of {damping.shape[-1]} right-hand sides, got several; "
            "give equal ones, or leave block out"
        )
    return largest if relative_damping else damping


def _solve_gram(A: LinearOperator, damping: Any, c: Any, **settings: Any) -> LinearSolveResult:
    gram = A.gram() if damping is None else A.gram().damped(damping)
    return conjugate_gradient(product_of_constants(gram), c, **settings)


def _semidefinite_cg(matvec: Matvec, b: Any, **settings: Any) -> LinearSolveResult:
    """Conjugate gradients where the caller sees to the null space."""
    operator, flat, _ = _prepare(matvec, b, None, 0.0, 0.0, False)
    return solve(ConjugateGradient(), operator, flat, None, Settings(**settings), may_be_singular=True)


@outside_of_compiled_programs
@takes_operators_of_least_squares(_solve_gram)
@moves_the_null_space(_semidefinite_cg)
def normal_cg(
    matvec: Matvec,
    b: Any,
    *,
    rmatvec: Matvec | None = None,
    x0: Any = None,
    damping: float | Tensor = 0.0,
    relative_damping: float = 0.0,
    rtol: float = 1e-6,
    atol: float | Tensor = 0.0,
    max_steps: int | None = None,
    preconditioner: Matvec | None = None,
) -> LinearSolveResult:
    """Solve (A'A + damping I) x = A'b for any square A by conjugate gradients; two products a step.

    The residual of the result is that of this damped normal system, relative to |A'b|. `rmatvec` is w -> A'w;
    without it A is taken to be symmetric, A' = A, which is *tested* with one more product: <b, A(Ab)> must be
    |Ab|^2. `relative_damping` is in units of |A|_2^2, `preconditioner` approximates (A'A + damping I)^-1. The
    rest as in `conjugate_gradient`. The condition number is squared: prefer `lsmr` for an ill-conditioned A.

    Raises:
        ValueError: as `conjugate_gradient`; also when `rmatvec` is missing and A is seen not to be symmetric.
    """
    transpose = matvec if rmatvec is None else rmatvec
    vectors = VectorSpace(b)
    flat_b = vectors.flatten(b, "b")
    settings = Settings(rtol, atol, max_steps, preconditioner)
    unit_of_b = power_of_two(flat_b.detach())
    right_hand_side = Operator(transpose, vectors)(flat_b)
    unit_of_A = None if unit_of_b is not None else unit_of_operator(right_hand_side.detach(), flat_b.detach())
    if unit_of_b is not None or unit_of_A is not None:
        one = torch.ones_like(flat_b.detach()[..., 0])
        unit_of_A = one if unit_of_A is None else unit_of_A
        unit_of_b = one if unit_of_b is None else unit_of_b
        of_x = unit_of_b / unit_of_A
        answer = normal_cg(
            _times(matvec, unit_of_A, vectors),
            vectors.unflatten(flat_b * unit_of_b[..., None]),
            rmatvec=None if rmatvec is None else _times(rmatvec, unit_of_A, vectors),
            x0=None if x0 is None else _times(lambda v: v, of_x, vectors)(x0),
            damping=as_damping(damping, flat_b) * unit_of_A.double() ** 2,
            relative_damping=relative_damping,
            rtol=rtol,
            atol=torch.as_tensor(atol) * unit_of_A * unit_of_b,
            max_steps=max_steps,
            preconditioner=preconditioner,
        )
        answer = dataclasses.replace(answer, num_products=answer.num_products + 1)
        return rescaled(answer, vectors, of_x, unit_of_A**-2)
    if rmatvec is None:
        _require_symmetric_at(matvec, vectors, flat_b, right_hand_side)

    def normal(v: Any) -> Any:
        return transpose(vectors.unflatten(Operator(matvec, vectors)(vectors.flatten(v, "v"))))

    operator, flat, start = _prepare(
        normal, vectors.unflatten(right_hand_side), x0, damping, relative_damping, False
    )
    method = ConjugateGradient(is_consistent=True)
    result = solve(method, operator, flat, start, settings, may_be_singular=True)
    checks = 2 if rmatvec is None else 1
    return dataclasses.replace(result, num_products=2 * result.num_products + checks)


def _times(product: Matvec, unit: Tensor, vectors: VectorSpace) -> Matvec:
    """v -> unit product(v), unit (...)."""
    return lambda v: vectors.unflatten(vectors.flatten(product(v), "matvec") * unit[..., None])


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

    MINRES-QLP: minimises |b - A x| over the Krylov space. An inconsistent system ends as STAGNATED with the shortest
    least-squares solution (from x0: the nearest one; with a preconditioner, any one). `min_curvature` is the smallest
    Rayleigh quotient of the Lanczos vectors: negative proves that A is indefinite. Arguments and errors as in
    `conjugate_gradient`; the preconditioner must be positive definite. SciPy's equivalent is
    `scipy.sparse.linalg.minres`, whose tolerance is relative to |A| |x| instead of |b|.
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
