"""Solves with a `LinearOperator` as functions of its tensors, of b and of the damping: every order of derivative.

    A x = b      =>      dx = A^-1 (db - dA x),      reverse:  y = A'^-1 c,  db = y,  dA: - y' dA x

The solver runs on constants. Its answer is then stated as the solution of the equation (`implicit_function`),
and each rule calls the same differentiable solve again. What is in an answer beside the solution is constant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from policy_opt.implicit_function import carries_derivative, implicit_function, require_nothing_hidden
from policy_opt.implicit_zero import undifferentiable
from policy_opt.linear_operator import Matvec
from policy_opt.operators import LinearOperator
from policy_opt.solve_loop import TRUNCATED, rtol_of_derivatives, warn_if_failed
from policy_opt.solve_result import LinearSolveResult

Solver = TypeVar("Solver", bound=Callable[..., LinearSolveResult])
Damping = float | Tensor
OF_THE_FIRST_SOLVE_ALONE = ("x0", "atol", "damping", "relative_damping", "check_symmetry", "trust_radius")


@dataclass(frozen=True)
class LinearEquation:
    """operator_of(parameters) x = b, for which x is known."""

    operator_of: Callable[[Any], LinearOperator]
    solve: Callable[[Any, Any, bool], LinearSolveResult]
    """(parameters, c, transposed) -> the answer for c; of constants."""
    transposed: bool = False

    def attach(self, x: Any, parameters: Any, b: Any) -> Any:
        """x, as a function of the parameters and b."""
        return implicit_function(self, (constant(x), parameters, b))

    def again(self, parameters: Any, b: Any) -> Any:
        """The solution for another b, as such a function; warns if the solve failed."""
        answer = self.solve(constant(parameters), constant(b), self.transposed)
        warn_if_failed(answer)
        return self.attach(answer.solution, parameters, b)

    def solution(self, *args: Any) -> Any:
        return args[0]

    def residual(self, at: Any, /, *args: Any) -> Any:
        _, parameters, b = args
        operator = self.operator_of(parameters)
        return pytree.tree_map(torch.sub, (operator.T if self.transposed else operator)(at), b)

    def linear_solve(self, at: Any, /, args: Any, c: Any, transposed: bool) -> Any:
        return replace(self, transposed=self.transposed != transposed).again(args[1], c)


def constant(tree: Any) -> Any:
    """The same numbers without derivatives."""
    return pytree.tree_map_only(Tensor, torch.Tensor.detach, tree)


def takes_operators(solver: Solver) -> Solver:
    """Decorator of a solver of (A^power + damping) x = b with symmetric A: with a `LinearOperator` in place of
    the callable, the solution has derivatives of every order."""

    @functools.wraps(solver)
    def solve(matvec: Any, b: Any, **settings: Any) -> LinearSolveResult:
        if not isinstance(matvec, LinearOperator):
            return solver(matvec, b, **settings)
        matvec.require_square("matvec")
        answer = solver(_product(matvec), constant(b), **constant(settings))
        rest, power = _settings_of_derivatives(settings, b), settings.get("power", 1)

        def operator_of(parameters: Any) -> LinearOperator:
            operator, shift, _ = parameters
            return _damped(operator if power == 1 else operator @ operator, shift)

        def again(parameters: Any, c: Any, transposed: bool) -> LinearSolveResult:
            operator, shift, helper = parameters  # its values are symmetric
            return solver(
                _product(operator), c, damping=0.0 if shift is None else shift, **_helped(rest, helper)
            )

        parameters = (matvec, _shift(answer, settings), _helper(settings))
        if settings.get("trust_radius") is not None:
            x = undifferentiable(answer.solution, (parameters, b), TRUNCATED)
        else:
            x = LinearEquation(operator_of, again).attach(answer.solution, parameters, b)
        return replace(answer, solution=x)

    return solve  # type: ignore[return-value]


def takes_operators_of_normal_equations(
    conjugate_gradient: Callable[..., LinearSolveResult],
) -> Callable[[Solver], Solver]:
    """The same for a solver of (A'A + damping) x = A'b with any A; A' is the operator's own.

    Without damping x is A^+ b, also where A is singular: then x = A'w with A A'w = A x, of which the equations
    hold in every order while the rank does not change, and so does the derivative (Golub and Pereyra 1973).
    """

    def decorate(solver: Solver) -> Solver:
        @functools.wraps(solver)
        def solve(matvec: Any, b: Any, **settings: Any) -> LinearSolveResult:
            if not isinstance(matvec, LinearOperator):
                answer = solver(matvec, b, **settings)
                if _is_damped(settings) or not _is_differentiated(answer.solution):
                    return answer
                transpose = settings.get("rmatvec") or matvec
                side = conjugate_gradient(
                    lambda w: matvec(transpose(w)), matvec(answer.solution), **_unhelped(settings, b)
                )
                warn_if_failed(side)
                return replace(answer, solution=_projected(answer.solution, transpose(side.solution)))
            matvec.require_square("matvec")
            if settings.pop("rmatvec", None) is not None:
                raise ValueError("rmatvec: expected None with a LinearOperator, which knows its transpose")
            answer = solver(_product(matvec), constant(b), rmatvec=_product(matvec.T), **constant(settings))
            rest, shift = _settings_of_derivatives(settings, b), _shift(answer, settings)

            def operator_of(parameters: Any) -> LinearOperator:
                return _damped(parameters[0].gram(), parameters[1])

            def again(parameters: Any, c: Any, transposed: bool) -> LinearSolveResult:
                return conjugate_gradient(
                    _product(operator_of(parameters)), c, **_helped(rest, parameters[2])
                )

            def other_side(parameters: Any, c: Any, transposed: bool) -> LinearSolveResult:
                return conjugate_gradient(_product(operator_of(parameters)), c, **_unhelped(settings, b))

            x = LinearEquation(operator_of, again).attach(
                answer.solution, (matvec, shift, _helper(settings)), matvec.T(b)
            )
            if shift is None and _is_differentiated(x):
                w = LinearEquation(operator_of, other_side).again((matvec.T, None), matvec(x))
                x = _projected(x, matvec.T(w))
            return replace(answer, solution=x)

        return solve  # type: ignore[return-value]

    return decorate


def _product(operator: LinearOperator) -> Matvec:
    """v -> A v of constants. Raises ValueError where A depends on more than its parameters."""
    operator = operator.detach()
    product, is_checked = operator.prepare(), False

    def checked(v: Any) -> Any:
        nonlocal is_checked
        image = product(v)
        if not is_checked:
            is_checked = True
            require_nothing_hidden(image, (operator, v), "matvec")
        return image

    return checked


def _settings_of_derivatives(settings: dict[str, Any], b: Any) -> dict[str, Any]:
    """What the solves inside a derivative are asked for."""
    rest = {name: constant(value) for name, value in settings.items() if name not in OF_THE_FIRST_SOLVE_ALONE}
    if "rtol" in rest:
        rest["rtol"] = rtol_of_derivatives(rest["rtol"], pytree.tree_leaves(b)[0])
    return rest


def _unhelped(settings: dict[str, Any], b: Any) -> dict[str, Any]:
    """For A A': without the preconditioner, which is one of A'A."""
    rest = _settings_of_derivatives(settings, b)
    return {name: value for name, value in rest.items() if name not in ("preconditioner", "rmatvec")}


def _projected(x: Any, projection: Any) -> Any:
    """x with the derivative of its projection A'w onto the range of A', which is x in value: the part of dx in
    the null space of A, which moves with A, is in it."""
    return pytree.tree_map(lambda value, p: p - p.detach() + value.detach(), x, projection)


def _is_damped(settings: dict[str, Any]) -> bool:
    damping = settings.get("damping", 0.0)
    return isinstance(damping, Tensor) or damping != 0 or settings.get("relative_damping", 0.0) != 0


def _helper(settings: dict[str, Any]) -> LinearOperator | None:
    """A preconditioner that carries its tensors, as one more parameter; a callable stays a setting."""
    given = settings.get("preconditioner")
    return given if isinstance(given, LinearOperator) else None


def _helped(settings: dict[str, Any], helper: LinearOperator | None) -> dict[str, Any]:
    return settings if helper is None else settings | {"preconditioner": helper.prepare()}


def _shift(answer: LinearSolveResult, settings: dict[str, Any]) -> Tensor | float | None:
    """The absolute damping, with the derivative of `damping`; None for exactly none."""
    damping = settings.get("damping", 0.0)
    if settings.get("relative_damping", 0.0):
        extra = damping - damping.detach() if isinstance(damping, Tensor) else 0.0
        return answer.damping + extra
    return damping if _is_damped(settings) else None


def _damped(operator: LinearOperator, shift: Tensor | float | None) -> LinearOperator:
    return operator if shift is None else operator.damped(shift)


def _is_differentiated(tree: Any) -> bool:
    return any(carries_derivative(leaf) for leaf in pytree.tree_leaves(tree))
