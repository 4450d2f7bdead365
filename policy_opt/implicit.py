"""The implicit function theorem: derivatives of theta_hat(psi), defined by F(theta_hat, psi) = 0.

    dF/dtheta d theta_hat + dF/dpsi d psi = 0      =>      d theta_hat / d psi = - (dF/dtheta)^-1 dF/dpsi

    root_vjp   adjoint, one solve:    y = (dF/dtheta)'^-1 c,  c' d theta_hat/d psi = - y' dF/dpsi
    root_jvp   forward, one solve for each direction of psi
    custom_root  makes any solver differentiable that way, in every order and under every torch.func transform
                 (`implicit_function`: the linear solves of its rules are such functions themselves)

F is the gradient of the inner objective for an optimum (then dF/dtheta is its Hessian), or any residual.
The solves never differentiate through the iterations of the inner solver. Formula and names: Blondel et al.,
"Efficient and modular implicit differentiation", 2022; AdMRL Eq. 5.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.eager import outside_of_compiled_programs
from policy_opt.implicit_function import implicit_function, require_nothing_hidden
from policy_opt.krylov.derivative_solves import warn_if_failed, warns_if_singular
from policy_opt.krylov.method import is_capturing
from policy_opt.linear_operator import (
    LinearMap,
    Matvec,
    VectorSpace,
    batched,
    host_value,
    linear_map,
    require_dense,
    require_real_and_dense,
    wide_norm,
)
from policy_opt.linear_solve import normal_cg
from policy_opt.operator_solve import LinearEquation, constant
from policy_opt.operators import LinearOperator
from policy_opt.solve_result import LinearSolveResult, LinearSolveWarning

Optimality = Callable[..., Any]
ROOT_TOLERANCE = 1e-3
Solve = Callable[[Matvec, Any], LinearSolveResult]


class RootDerivative(NamedTuple):
    """A derivative of theta_hat(psi), the linear solve behind it, and two numbers that say what it is worth."""

    value: Any
    solve: LinearSolveResult
    optimality_norm: Tensor
    """|F(theta_hat, psi)|, in units of F; the theorem holds where it is 0."""
    relative_residual: Tensor
    """(...) of the system of the theorem itself, which `normal_cg` does not see: near 1 where dF/dtheta is
    singular and no derivative exists."""


def root_vjp(
    optimality: Optimality,
    theta_hat: Any,
    psi: Any,
    cotangent: Any,
    *,
    solve: Solve | None = None,
    tolerance: float = ROOT_TOLERANCE,
) -> RootDerivative:
    """c' (d theta_hat / d psi), shaped as psi, by one solve with (dF/dtheta)'.

    Args:
        optimality: F(theta, psi), shaped as theta; zero at theta_hat.
        cotangent: c, shaped as theta_hat; extra leading axes are several cotangents in one batched solve.
        solve: (matvec, b) -> LinearSolveResult, for example `functools.partial(minres, rtol=1e-8)` when
            dF/dtheta is symmetric. None: `normal_cg` with both products of dF/dtheta, right for every
            invertible dF/dtheta.
        tolerance: above it a `LinearSolveWarning` says that |F(theta_hat, psi)| (theta_hat is not a root), or
            the relative residual of the system of the theorem (dF/dtheta is singular), is too large.

    Returns the derivative and the solve; check `.solve.ok` (nothing is raised for a failed solve).
    Raises ValueError for vectors that do not fit theta_hat.
    """
    jacobian = _jacobian(optimality, theta_hat, psi)
    answer = _solve(LinearMap(jacobian.rmatvec, jacobian.matvec), cotangent, solve)
    pull_back = torch.func.vjp(lambda p: optimality(theta_hat, p), psi)[1]
    pull = batched(lambda y: pull_back(y)[0], theta_hat, "cotangent")
    value = _negative(pull(answer.solution))
    return _judged(value, answer, jacobian.rmatvec, cotangent, optimality(theta_hat, psi), tolerance)


def root_jvp(
    optimality: Optimality,
    theta_hat: Any,
    psi: Any,
    tangent: Any,
    *,
    solve: Solve | None = None,
    tolerance: float = ROOT_TOLERANCE,
) -> RootDerivative:
    """(d theta_hat / d psi) t, shaped as theta_hat, by a solve with dF/dtheta.

    Extra leading axes of `tangent` are several directions, solved as one batch: the identity gives the whole
    Jacobian, transposed. Arguments and errors as in `root_vjp`.
    """
    jacobian = _jacobian(optimality, theta_hat, psi)
    push = batched(
        lambda t: torch.func.jvp(lambda p: optimality(theta_hat, p), (psi,), (t,))[1], psi, "tangent"
    )
    right = _negative(push(tangent))
    answer = _solve(jacobian, right, solve)
    return _judged(answer.solution, answer, jacobian.matvec, right, optimality(theta_hat, psi), tolerance)


def _judged(
    value: Any, answer: LinearSolveResult, matvec: Matvec, b: Any, optimality: Any, tolerance: float
) -> RootDerivative:
    """The derivative with |F| and the residual of A y = b recomputed (one product), and a warning above the
    tolerance."""
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number >= 0, got {tolerance}; inf never warns")
    leaves = [wide_norm(leaf.detach().reshape(-1)) for leaf in pytree.tree_leaves(optimality)]
    size = torch.stack(leaves).norm()
    _warn_above(
        tolerance,
        size,
        "|F(theta_hat, psi)|: theta_hat is not a root, so the theorem does not apply; solve F = 0 more",
    )
    residual = _relative_residual(matvec, answer.solution, b)
    _warn_of_residual(residual, tolerance)
    return RootDerivative(value, answer, size, residual)


def _relative_residual(matvec: Matvec, y: Any, b: Any) -> Tensor:
    """|b - A y| / |b| (...): `normal_cg` does not see a singular A."""
    vectors = VectorSpace(b, "cotangent or tangent")
    right = vectors.flatten(b, "cotangent or tangent").detach()
    scale = wide_norm(right)
    product = vectors.flatten(matvec(y), "optimality").detach()
    return wide_norm(right - product) / torch.where(scale > 0, scale, 1.0)


def _warn_of_residual(residual: Tensor, tolerance: float) -> None:
    meaning = "the relative residual of the linear system: dF/dtheta is singular or the solve failed"
    _warn_above(tolerance, residual, meaning)


def _warn_above(tolerance: float, number: Tensor, meaning: str) -> None:
    plain = host_value(number)
    if not is_capturing(plain.device) and not bool((plain <= tolerance).all()):
        warnings.warn(
            f"the derivative of a root is not to be trusted: expected at most {tolerance:g}, got "
            f"{float(plain.max()):.2e} for {meaning}",
            LinearSolveWarning,
            stacklevel=4,
        )


def _jacobian(optimality: Optimality, theta_hat: Any, psi: Any) -> LinearMap:
    """dF/dtheta at theta_hat and its transpose, on vectors with any leading axes."""
    for name, tree in (("theta_hat", theta_hat), ("psi", psi)):
        for leaf in pytree.tree_leaves(tree):
            require_dense(name, leaf)
    jacobian = linear_map(lambda theta: optimality(theta, psi), theta_hat)
    return LinearMap(*(batched(product, theta_hat, "cotangent or tangent") for product in jacobian))


def _solve(operator: LinearMap, b: Any, solve: Solve | None) -> LinearSolveResult:
    if solve is not None:
        return solve(operator.matvec, b)
    rtol = torch.finfo(pytree.tree_leaves(b)[0].dtype).eps ** 0.75  # 2e-12 in float64, 6e-6 in float32
    return normal_cg(operator.matvec, b, rmatvec=operator.rmatvec, rtol=rtol)


def _negative(tree: Any) -> Any:
    return pytree.tree_map(torch.neg, tree)


# --- custom_root --------------------------------------------------------------------------------------------


def custom_root(
    optimality: Optimality, *, solve: Solve | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: give `solver(*args) -> theta_hat`, a root of F(theta, *args), its implicit derivatives.

    All floating tensors in args (any pytrees) are differentiated; the solver itself is run without a graph.
    Composes with every transform of torch.func in any nesting (`vmap` if the solver may be vmapped), in every
    order. Tensors that carry derivatives or vmap axes must be arguments; F may not close over them.
    `solve` as in `root_vjp`; a solve that fails inside a derivative gives a `LinearSolveWarning`.

        @custom_root(lambda theta, l2: X.T @ (X @ theta - y) + l2 * theta)
        def ridge(l2): ...
        torch.func.grad(lambda l2: loss(ridge(l2)))(l2)
    """

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        @outside_of_compiled_programs
        @functools.wraps(solver)
        def root(*args: Any, **keywords: Any) -> Any:
            if keywords:
                raise ValueError(
                    f"{', '.join(keywords)}: expected positional arguments, got keywords; optimality(theta, *args) "
                    "takes the solver's arguments in their order"
                )
            _require_differentiable(args)
            theta_hat = implicit_function(_RootEquation(optimality, solver, solve), args)
            _require_fitting(optimality, theta_hat, args)
            return theta_hat

        return root

    return decorate


def _require_differentiable(args: Any) -> None:
    leaves = pytree.tree_leaves(args)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_complex():
            if leaf.requires_grad:  # a constant may be complex
                require_real_and_dense("args", leaf)
        else:
            require_dense("args", leaf)
    is_active = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)
    if not is_active and any(isinstance(leaf, float) for leaf in leaves):
        raise ValueError(
            "args: expected at least one floating tensor to differentiate, got Python floats alone; pass "
            "torch.tensor(x), since a float carries no derivative"
        )


def _require_fitting(optimality: Optimality, theta_hat: Any, args: Any) -> None:
    """Check F at the root: shaped as theta, and a function of its arguments alone."""
    value = optimality(constant(theta_hat), *constant(args))
    expected, got = ([tuple(leaf.shape) for leaf in pytree.tree_leaves(tree)] for tree in (theta_hat, value))
    if expected != got:
        raise ValueError(f"optimality: expected F(theta, *args) shaped as theta, {expected}, got {got}")
    require_nothing_hidden(value, args, "optimality")


@dataclass(frozen=True)
class _RootEquation:
    """F(theta, *args) = 0."""

    optimality: Optimality
    solver: Callable[..., Any]
    solve: Solve | None

    def solution(self, *args: Any) -> Any:
        theta_hat = self.solver(*args)
        for leaf in pytree.tree_leaves(theta_hat):
            require_real_and_dense("solver", leaf)
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"solver: expected theta_hat alone, floating tensors in a pytree, got {got} in its answer; "
                    "return statuses and counts another way"
                )
        return theta_hat

    def residual(self, theta: Any, *args: Any) -> Any:
        return self.optimality(theta, *args)

    def linear_solve(self, theta: Any, args: Any, c: Any, transposed: bool) -> Any:
        if not transposed:
            warns_if_singular(VectorSpace(c), self._is_solved)(constant((theta, args)))
        return LinearEquation(self._jacobian, self._solution, transposed).again((theta, args), c)

    def _solution(self, parameters: Any, c: Any, transposed: bool) -> Any:
        answer, product = self._solve_with_jacobian(parameters, c, transposed)
        warn_if_failed(answer)
        if is_capturing(answer.status_code.device) or bool(host_value(answer.converged).all()):
            _warn_of_residual(_relative_residual(product, answer.solution, c), ROOT_TOLERANCE)
        return answer.solution

    def _is_solved(self, parameters: Any, c: Any, rtol: float) -> Tensor:
        answer, product = self._solve_with_jacobian(parameters, c, transposed=False)
        return _relative_residual(product, answer.solution, c) <= max(rtol, ROOT_TOLERANCE)

    def _solve_with_jacobian(
        self, parameters: Any, c: Any, transposed: bool
    ) -> tuple[LinearSolveResult, Matvec]:
        forward, backward = self._jacobian(parameters), self._jacobian(parameters).T
        if transposed:
            forward, backward = backward, forward
        products = LinearMap(forward.prepare(), backward.prepare())
        return _solve(products, c, self.solve), products.matvec

    def _jacobian(self, parameters: Any) -> LinearOperator:
        """dF/dtheta at (theta, args)."""

        def at(parameters: Any) -> LinearMap:
            theta, args = parameters
            return linear_map(lambda point: self.optimality(point, *args), theta)

        space = VectorSpace(parameters[0], "theta")
        return LinearOperator(parameters, lambda p: at(p).matvec, lambda p: at(p).rmatvec, space, space)
