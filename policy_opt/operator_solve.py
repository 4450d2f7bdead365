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
from policy_opt.krylov.derivative_solves import (
    TRUNCATED,
    rtol_of_derivatives,
    warn_if_failed,
    warns_if_singular,
)
from policy_opt.krylov.method import is_capturing
from policy_opt.linear_operator import Matvec, VectorSpace, host_value
from policy_opt.operators import LinearOperator
from policy_opt.solve_result import LinearSolveResult

Solver = TypeVar("Solver", bound=Callable[..., LinearSolveResult])
Damping = float | Tensor
OF_THE_FIRST_SOLVE_ALONE = (
    "x0", "atol", "damping", "relative_damping", "check_symmetry", "trust_radius", "rmatvec", "like"
)  # fmt: skip


@dataclass(frozen=True)
class LinearEquation:
    """operator_of(parameters) x = b, for which x is known."""

    operator_of: Callable[[Any], LinearOperator]
    solve: Callable[[Any, Any, bool], Any]
    """(parameters, c, transposed) -> the solution for c, of constants; warns if the solve failed."""
    transposed: bool = False
    warn_if_singular: Callable[[Any], None] = lambda parameters: None

    def attach(self, x: Any, parameters: Any, b: Any) -> Any:
        """x, as a function of the parameters and b."""
        return implicit_function(self, (constant(x), parameters, b))

    def again(self, parameters: Any, b: Any) -> Any:
        """The solution for another b, as such a function."""
        return self.attach(self.solve(constant(parameters), constant(b), self.transposed), parameters, b)

    def solution(self, *args: Any) -> Any:
        return args[0]

    def residual(self, at: Any, /, *args: Any) -> Any:
        _, parameters, b = args
        operator = self.operator_of(parameters)
        return pytree.tree_map(torch.sub, (operator.T if self.transposed else operator)(at), b)

    def linear_solve(self, at: Any, /, args: Any, c: Any, transposed: bool) -> Any:
        if not transposed:
            self.warn_if_singular(constant(args[1]))
        return replace(self, transposed=self.transposed != transposed).again(args[1], c)


def constant(tree: Any) -> Any:
    """The same numbers without derivatives."""
    return pytree.tree_map_only(Tensor, torch.Tensor.detach, tree)


def takes_operators(solver: Solver) -> Solver:
    """Decorator of a solver of (A^power + damping) x = b with symmetric A: with a `LinearOperator` in place of
    the callable, the solution has derivatives of every order."""
    return _taking_operators(solver, is_symmetric=True)


def takes_square_operators(solver: Solver) -> Solver:
    """The same for a solver of (A + damping) x = b with any square A; A' is the operator's own."""
    return _taking_operators(solver, is_symmetric=False)


def _taking_operators(solver: Solver, is_symmetric: bool) -> Solver:
    @functools.wraps(solver)
    def solve(matvec: Any, b: Any, **settings: Any) -> LinearSolveResult:
        if not isinstance(matvec, LinearOperator):
            return solver(matvec, b, **settings)
        matvec.require_square("matvec")
        _require_no_rmatvec(settings)
        answer = solver(product_of_constants(matvec), constant(b), **constant(settings))
        rest, power = _settings_of_derivatives(settings, b), settings.get("power", 1)

        def operator_of(parameters: Any) -> LinearOperator:
            operator, shift, _ = parameters
            return _damped(operator if power == 1 else operator @ operator, shift)

        def again(parameters: Any, c: Any, transposed: bool, **more: Any) -> LinearSolveResult:
            operator, shift, helper = parameters
            helped = _helped(rest, helper)
            if transposed and not is_symmetric:  # M of A is M' of A'
                operator, helped = operator.T, _helped(_unhelped(rest), None if helper is None else helper.T)
            damping = 0.0 if shift is None else shift
            return solver(product_of_constants(operator), c, damping=damping, **helped | more)

        def solution(parameters: Any, c: Any, transposed: bool) -> Any:
            return _solution(again(parameters, c, transposed))

        parameters = (matvec, _shift(answer, settings), _helper(settings))
        if settings.get("trust_radius") is not None:
            x = undifferentiable(answer.solution, (parameters, b), TRUNCATED)
        else:
            equation = LinearEquation(operator_of, solution)
            if parameters[1] is None and not matvec.is_positive_definite:
                probe = lambda p, g, rtol: again(p, g, False, rtol=rtol).converged  # noqa: E731
                equation = replace(equation, warn_if_singular=warns_if_singular(VectorSpace(b), probe))
            x = equation.attach(answer.solution, parameters, b)
        return replace(answer, solution=x)

    return solve  # type: ignore[return-value]


def takes_operators_of_least_squares(
    solve_gram: Callable[..., LinearSolveResult], *, rectangular: bool = False
) -> Callable[[Solver], Solver]:
    """The same for a solver of (A'A + damping) x = A'b with any A; A' is the operator's own.

    `solve_gram(A, damping or None, c, **settings)` solves (A'A + damping) x = c of constants.

    Without damping x is A^+ b, also where A is singular: then x = A'w with A A'w = A x, of which the equations
    hold in every order while the rank does not change, and so does the derivative (Golub and Pereyra 1973).
    """

    def decorate(solver: Solver) -> Solver:
        @functools.wraps(solver)
        def solve(matvec: Any, b: Any, **settings: Any) -> LinearSolveResult:
            if not isinstance(matvec, LinearOperator):
                return solver(matvec, b, **settings)
            if not rectangular:
                matvec.require_square("matvec")
            _require_no_rmatvec(settings)
            if rectangular and settings.get("like") is None:
                settings["like"] = matvec.domain.zeros()
            answer = solver(
                product_of_constants(matvec),
                constant(b),
                rmatvec=product_of_constants(matvec.T),
                **constant(settings),
            )
            rest, shift = _settings_of_derivatives(settings, b), _shift(answer, settings)

            def operator_of(parameters: Any) -> LinearOperator:
                return _damped(parameters[0].gram(), parameters[1])

            def again(parameters: Any, c: Any, transposed: bool) -> Any:
                operator, shift, helper = parameters
                return _solution(solve_gram(operator, shift, c, **_helped(rest, helper)))

            def other_side(parameters: Any, c: Any, transposed: bool) -> Any:
                operator, shift = parameters
                return _solution(solve_gram(operator, shift, c, **_unhelped(rest)))

            x = LinearEquation(operator_of, again).attach(
                answer.solution, (matvec, shift, _helper(settings)), matvec.T(b)
            )
            if is_zero_somewhere(shift) and _is_differentiated(x):
                w = LinearEquation(operator_of, other_side).again((matvec.T, None), matvec(x))
                x = _projected(x, matvec.T(w))
            return replace(answer, solution=x)

        return solve  # type: ignore[return-value]

    return decorate


def moves_the_null_space(conjugate_gradient: Callable[..., LinearSolveResult]) -> Callable[[Solver], Solver]:
    """Decorator of a solver of (A'A + damping) x = A'b with a callable: the derivative that has the part in the
    null space of A, too, as `takes_operators_of_least_squares`."""

    def decorate(solver: Solver) -> Solver:
        @functools.wraps(solver)
        def solve(matvec: Any, b: Any, **settings: Any) -> LinearSolveResult:
            answer = solver(matvec, b, **settings)
            damping = answer.damping if _is_damped(settings) else None
            if not is_zero_somewhere(damping) or not _is_differentiated(answer.solution):
                return answer
            transpose = settings.get("rmatvec") or matvec
            rest = _unhelped(_settings_of_derivatives(settings, b))
            side = conjugate_gradient(lambda w: matvec(transpose(w)), matvec(answer.solution), **rest)
            warn_if_failed(side)
            return replace(answer, solution=_projected(answer.solution, transpose(side.solution)))

        return solve  # type: ignore[return-value]

    return decorate


def _solution(answer: LinearSolveResult) -> Any:
    warn_if_failed(answer)
    return answer.solution


def _require_no_rmatvec(settings: dict[str, Any]) -> None:
    if settings.pop("rmatvec", None) is not None:
        raise ValueError("rmatvec: expected None with a LinearOperator, which knows its transpose")


def product_of_constants(operator: LinearOperator) -> Matvec:
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


def _unhelped(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the preconditioner: for A' or A A', where it is one of A or A'A."""
    return {name: value for name, value in settings.items() if name != "preconditioner"}


def _projected(x: Any, projection: Any) -> Any:
    """x with the derivative of its projection A'w onto the range of A', which is x in value: the part of dx in
    the null space of A, which moves with A, is in it."""
    return pytree.tree_map(lambda value, p: p - p.detach() + value.detach(), x, projection)


def _is_damped(settings: dict[str, Any]) -> bool:
    damping = settings.get("damping", 0.0)
    return isinstance(damping, Tensor) or damping != 0 or settings.get("relative_damping", 0.0) != 0


def is_zero_somewhere(damping: Tensor | float | None) -> bool:
    """Some system of the batch is not damped (None: all), as far as that can be read."""
    if damping is None or not isinstance(damping, Tensor):
        return damping is None or damping == 0
    return not is_capturing(damping.device) and bool(host_value(damping.detach() == 0).any())


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
