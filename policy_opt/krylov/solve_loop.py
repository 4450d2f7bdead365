"""The loop that every short-recurrence solver shares: masks, verification, restarts, and the implicit
derivative.

A method (conjugate gradients, MINRES) only says how one step goes. This file runs it for a whole batch:

    r = b - A x                                            the true residual, one product
    repeat   start the method at (x, r)
             repeat  one step for the systems still running    (one product; the others take steps of length 0)
             r = b - A x                                       recomputed: the recurrence's r is never believed
             a system that only believed it converged starts again from r, or STAGNATED if r has not halved

Nothing in the inner loop waits for a GPU (`AnyRunning`); the host waits once after each cycle, and before the first
for whether b is far from 1. Outside of transforms the vectors of a step are updated
in place: a step on a cheap operator is bound by the passes over memory. b and A far from 1 are brought there by
powers of two, which round nothing (`_solve_scaled`). The solution carries the implicit derivative

    A x = b   =>   dx = A^-1 (db - dA x),     reverse:  y = A^-1 g,  gradient = y' d(b - A x) at fixed x,

because x + S(b - A x) is returned, where S is zero in value and A^-1 in its derivative: the chain rule
through the recomputed residual does the rest, whatever tensors `matvec` closes over.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from policy_opt.implicit_zero import implicit_zero
from policy_opt.krylov.derivative_solves import TRUNCATED, Inverses, inverses_by, of_derivatives
from policy_opt.krylov.method import (
    CONVERGED,
    CYCLE_IS_FULL,
    MAX_STEPS,
    NONFINITE,
    STAGNATED,
    AnyRunning,
    Iterate,
    Method,
    Problem,
    Settings,
    is_capturing,
    select,
)
from policy_opt.krylov.scaling import ExtremeOperator, ScaledOperator, power_of_two, rescaled
from policy_opt.linear_operator import Operator, norm, number_on
from policy_opt.solve_result import RUNNING, LinearSolveResult

COMPILED = (
    "a solve inside torch.compile: its implicit derivative would be lost in the traced program; call it "
    "outside, or wrap the function that solves with torch.compiler.disable"
)
STILL_FALLING = 0.999  # of the residual in one such cycle; a cycle that repeats itself makes no progress


class _Progress(NamedTuple):
    """One system's record over all restarts."""

    x: Tensor
    residual: Tensor  # true residual of x; carries the graph of the operator and of b
    residual_norm: Tensor
    code: Tensor
    min_curvature: Tensor
    direction: Tensor


def run(method: Method, problem: Problem, x0: Tensor | None) -> tuple[_Progress, Tensor, list[Tensor]]:
    """Iterate until every system has stopped. Returns the record, the step counts (...) and the residual
    norms."""
    x = torch.zeros_like(problem.b).detach() if x0 is None else x0.detach()
    residual = problem.b if x0 is None else method.residual(problem, x)
    size = norm(residual.detach())
    running = torch.full_like(size, RUNNING, dtype=torch.int64)
    code = torch.where(size <= problem.tolerance, CONVERGED, running)
    code = torch.where(size.isfinite(), code, NONFINITE)  # last: an infinite b makes an infinite tolerance
    done = _Progress(x, residual, size, code, torch.full_like(size, torch.inf), torch.zeros_like(x))
    num_steps = torch.zeros_like(code)
    history = [size]
    any_running = AnyRunning()
    for num_cycles in range(1 if is_capturing(x.device) else method.max_cycles):
        active = (done.code == RUNNING) & (num_steps < problem.max_steps)
        if not (any_running.exactly(active) if num_cycles else any_running(active)):
            break
        now = method.start(problem, done.x, done.residual.detach())
        now = now._replace(
            code=torch.where(active, now.code, done.code),
            residual_norm=done.residual_norm,
            min_curvature=done.min_curvature,
        )
        cycle, seen = active, None
        for _ in range(problem.max_steps):
            if method.is_full(now):
                break
            if now.code is not seen or len(history) > problem.max_steps:  # else nobody can have stopped
                active = cycle & (now.code == RUNNING) & (num_steps < problem.max_steps)
                if not any_running(active):
                    break
            seen = now.code
            now = method.step(problem, now, active)
            num_steps = num_steps + active
            history.append(now.residual_norm)
        done = select(cycle, _verify(method, problem, method.finish(problem, now), done), done)
    code = torch.where(done.code == RUNNING, MAX_STEPS, done.code)
    return done._replace(code=code), num_steps, history


def _verify(method: Method, problem: Problem, now: Iterate, before: _Progress) -> _Progress:
    """Recompute the residual of the iterate and decide what its status really is."""
    residual = method.residual(problem, now.x)
    size = norm(residual.detach())
    is_full = now.code == CYCLE_IS_FULL
    claims = (now.code == CONVERGED) | (now.code == STAGNATED) | is_full
    falls = size <= torch.where(is_full, STILL_FALLING, 0.5) * before.residual_norm
    code = torch.where(claims, torch.where(falls, RUNNING, STAGNATED), now.code)
    code = torch.where(size <= problem.tolerance, torch.where(claims | (code < 0), CONVERGED, code), code)
    code = torch.where(size.isfinite(), code, NONFINITE)
    worse = (code == STAGNATED) & (size > before.residual_norm)  # keep the best verified x
    fresh = _Progress(now.x, residual, size, code, now.min_curvature, now.direction)
    kept = fresh._replace(x=before.x, residual=before.residual, residual_norm=before.residual_norm)
    return select(worse, kept, fresh)


def solve(
    method: Method,
    operator: Operator,
    b: Tensor,
    x0: Tensor | None,
    settings: Settings,
    differentiable: bool = True,
    inverses: Inverses | None = None,
    may_be_singular: bool = False,
) -> LinearSolveResult:
    """Run `method` on the flat system and report; the user's kind of vectors is restored in the result.

    `inverses` are v -> A^-1 v and w -> A'^-1 w for the derivative; None: `method` on A, which is symmetric.
    Forward mode warns of a singular A unless the caller sees to the null space (`may_be_singular`).
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(COMPILED)
    vectors = operator.vectors
    unit = power_of_two(b.detach())
    if differentiable and inverses is None:
        inverses = _symmetric_inverses(method, operator, settings, may_be_singular)
    if unit is not None:
        return _solve_scaled(unit, None, method, operator, b, x0, settings, inverses)
    size_of_b = norm(b.detach())
    if x0 is not None:  # A x = 0 is solved by zero, whatever the start: a tolerance of rtol 0 is not reached
        x0 = torch.where((size_of_b > 0)[..., None] | ~x0.isfinite(), x0, 0.0)
    user = settings.preconditioner
    problem = Problem(
        operator=operator,
        b=b,
        tolerance=tolerance_for(settings, size_of_b),
        max_steps=10 * vectors.size if settings.max_steps is None else settings.max_steps,
        preconditioner=None
        if user is None
        else lambda r: vectors.flatten(user(vectors.unflatten(r)), "preconditioner"),
    )
    try:
        done, num_steps, history = run(method, problem, x0)
    except ExtremeOperator as found:
        return _solve_scaled(None, found.unit, method, operator, b, x0, settings, inverses)
    x = torch.where((done.code == NONFINITE)[..., None], torch.nan, done.x)
    if inverses is not None:
        x = x + implicit_zero(done.residual, *inverses)
    scale = torch.where(size_of_b > 0, size_of_b, 1.0)
    damping = torch.zeros_like(size_of_b) if operator.damping is None else operator.damping.detach()
    return LinearSolveResult(
        solution=vectors.unflatten(x),
        status_code=done.code,
        relative_residual=done.residual_norm / scale,
        num_steps=num_steps,
        num_products=operator.num_products,
        residual_history=torch.stack(history, dim=-1) / scale[..., None],
        min_curvature=done.min_curvature,
        damping=damping.expand_as(size_of_b),
        direction=vectors.unflatten(done.direction),
    )


def tolerance_for(settings: Settings, size_of_b: Tensor) -> Tensor:
    """max(rtol |b|, atol), (...)."""
    atol = number_on(size_of_b.device, settings.atol, size_of_b.dtype)
    return torch.maximum(settings.rtol * size_of_b, atol)


def _solve_scaled(
    unit_of_b: Tensor | None,
    unit_of_A: Tensor | None,
    method: Method,
    operator: Operator,
    b: Tensor,
    x0: Tensor | None,
    settings: Settings,
    inverses: Inverses | None,
) -> LinearSolveResult:
    """(unit_of_A A) x' = unit_of_b b: the same iterates, since powers of two round nothing, without under- or
    overflow. One unit is None, and 1."""
    vectors, unit = operator.vectors, unit_of_b if unit_of_A is None else unit_of_A
    assert unit is not None
    of_x, of_b = (unit, unit) if unit_of_A is None else (1 / unit, torch.ones_like(unit))
    inner = operator if unit_of_A is None else ScaledOperator(operator, unit_of_A)
    answer = solve(
        method.scaled(of_x, of_b),
        inner,
        b.detach() * of_b[..., None],
        None if x0 is None else x0 * of_x[..., None],
        dataclasses.replace(settings, atol=settings.atol * of_b),
        differentiable=False,
    )
    answer = rescaled(answer, vectors, of_x, 1.0 if unit_of_A is None else 1 / unit)
    if inverses is not None:
        x = vectors.flatten(answer.solution, "x")
        problem = Problem(operator, b, of_x, 0, None)
        x = x + implicit_zero(method.residual(problem, x), *inverses)
        answer = dataclasses.replace(answer, solution=vectors.unflatten(x))
    return dataclasses.replace(answer, num_products=operator.num_products)


def _symmetric_inverses(
    method: Method, operator: Operator, settings: Settings, may_be_singular: bool
) -> Inverses:
    """A^-1 twice, by the same method."""

    def again(right_hand_side: Tensor, **more: Any) -> LinearSolveResult:
        if getattr(method, "trust_radius", None) is not None:
            raise RuntimeError(TRUNCATED)
        asked = dataclasses.replace(of_derivatives(settings, right_hand_side), **more)
        same = Operator(operator.matvec, operator.vectors, operator.damping)
        return solve(method, same, right_hand_side.detach(), None, asked, differentiable=False)

    is_damped = operator.damping is not None
    return inverses_by(again, operator.vectors, checks=not (is_damped or may_be_singular))
