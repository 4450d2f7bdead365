"""The solves inside a derivative of a solve: what they are asked for, and what they warn of."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_opt.krylov.method import Settings, is_capturing
from policy_opt.linear_operator import VectorSpace, host_value
from policy_opt.solve_result import LinearSolveResult, LinearSolveWarning, SolveStatus

TRUNCATED = (
    "a solution with a trust_radius is no function that can be differentiated: it is where the iteration was cut; "
    "take .detach() of it, or solve without the radius"
)
SINGULAR = (
    "a forward-mode derivative of a solve whose operator looks singular (it does not reach a random right-hand side) "
    "holds only while the null space does not move; use normal_cg or lsmr, which move it, or damping; "
    "positive_definite=True on a LinearOperator that is regular skips this check"
)
Inverses = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def rtol_of_derivatives(rtol: float, b: Tensor) -> float:
    """The solves inside a derivative have right-hand sides of another size, so that atol says nothing there."""
    return rtol if rtol > 0 else torch.finfo(b.dtype).eps ** 0.75


def of_derivatives(settings: Settings, b: Tensor) -> Settings:
    """What the solves inside a derivative are asked for."""
    return dataclasses.replace(settings, atol=0.0, rtol=rtol_of_derivatives(settings.rtol, b))


def inverses_by(
    solve_again: Callable[..., LinearSolveResult],
    vectors: VectorSpace,
    *,
    checks: bool,
    transposed: Callable[..., LinearSolveResult] | None = None,
) -> Inverses:
    """A^-1 and A'^-1 from solves of constants, (c (..., p), rtol=...) -> answer; transposed None: A symmetric.
    `checks`: forward mode warns of a singular A."""
    probe = warns_if_singular(
        vectors, lambda _, g, rtol: solve_again(vectors.flatten(g, "g"), rtol=rtol).converged
    )

    def solution(answer: LinearSolveResult) -> Tensor:
        warn_if_failed(answer)
        return vectors.flatten(answer.solution, "solution").detach()

    def forward(c: Tensor) -> Tensor:
        if checks:
            probe(None)
        return solution(solve_again(c))

    return forward, lambda c: solution((transposed or solve_again)(c))


def warns_if_singular(
    vectors: VectorSpace, is_solved: Callable[[Any, Any, float], Tensor]
) -> Callable[[Any], None]:
    """A check of forward mode, made once, by is_solved(parameters, g, rtol): A z = g of a random g has a solution
    where A is regular alone.

    In reverse mode the cotangent is such a g. In forward mode A dx = db - dA x has one also where A is singular and
    the null space moves, and says nothing of the part of dx in it.
    """
    is_done = False

    def check(parameters: Any) -> None:
        nonlocal is_done
        if is_done or is_capturing(vectors.device):
            return
        is_done = True
        g = torch.from_numpy(np.random.default_rng(0).standard_normal(vectors.flat_shape))
        # g has about |g| / sqrt(p) in a null space of one dimension, well above this tolerance
        rtol = 1e-2 * vectors.size**-0.5
        g = g.to(vectors.dtype).to(vectors.device)
        if not bool(host_value(is_solved(parameters, vectors.unflatten(g), rtol)).all()):
            warnings.warn(SINGULAR, LinearSolveWarning, stacklevel=2)

    return check


def warn_if_failed(answer: LinearSolveResult) -> None:
    """Warn where a solve inside a derivative rule did not converge (its result reaches no caller)."""
    if is_capturing(answer.status_code.device) or bool(host_value(answer.converged).all()):
        return
    codes = host_value(answer.status_code)
    names = sorted({list(SolveStatus)[int(code)].name for code in codes.unique()} - {"CONVERGED"})
    warnings.warn(
        f"the solve inside the derivative of a linear solve ended with {', '.join(names)}: the gradient is "
        "inaccurate; solve with more steps, damping, or a preconditioner",
        LinearSolveWarning,
        stacklevel=2,
    )
