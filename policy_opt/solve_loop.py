"""The loop that every short-recurrence solver shares: masks, verification, restarts, and the implicit
derivative.

A method (conjugate gradients, MINRES) only says how one step goes. This file runs it for a whole batch:

    r = b - A x                                            the true residual, one product
    repeat   start the method at (x, r)
             repeat  one step for the systems still running    (one product; the others take steps of length 0)
             r = b - A x                                       recomputed: the recurrence's r is never believed
             a system that only believed it converged starts again from r, or STAGNATED if r has not halved

Nothing in the inner loop waits for a GPU (`AnyRunning`). Outside of transforms the vectors of a step are updated
in place: a step on a cheap operator is bound by the passes over memory. b and A far from 1 are brought there by
powers of two, which round nothing (`_solve_scaled`). The solution carries the implicit derivative

    A x = b   =>   dx = A^-1 (db - dA x),     reverse:  y = A^-1 g,  gradient = y' d(b - A x) at fixed x,

because x + S(b - A x) is returned, where S is zero in value and A^-1 in its derivative: the chain rule
through the recomputed residual does the rest, whatever tensors `matvec` closes over.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policy_opt.implicit_zero import implicit_zero
from policy_opt.linear_operator import (
    Matvec,
    Operator,
    VectorSpace,
    dot,
    host_value,
    norm,
    whole_number,
    wide_norm,
)
from policy_opt.solve_result import CODE, RUNNING, LinearSolveResult, LinearSolveWarning, SolveStatus

COMPILED = (
    "a solve inside torch.compile: its implicit derivative would be lost in the traced program; call it "
    "outside, or wrap the function that solves with torch.compiler.disable"
)
TRUNCATED = (
    "a solution with a trust_radius is no function that can be differentiated: it is where the iteration was cut; "
    "take .detach() of it, or solve without the radius"
)
SINGULAR = (
    "a forward-mode derivative of a solve whose operator looks singular (it does not reach a random right-hand side) "
    "holds only while the null space does not move; use normal_cg or lsmr, which move it, or damping; "
    "positive_definite=True on a LinearOperator that is regular skips this check"
)
CONVERGED, MAX_STEPS, STAGNATED = (
    CODE[s] for s in (SolveStatus.CONVERGED, SolveStatus.MAX_STEPS, SolveStatus.STAGNATED)
)
NONFINITE = CODE[SolveStatus.NONFINITE]
CYCLE_IS_FULL = -2  # claimed by a method that restarts by itself
STILL_FALLING = 0.999  # of the residual in one such cycle; a cycle that repeats itself makes no progress
MAX_RESTARTS = 20
SAFE_EXPONENT = {torch.float64: 200, torch.float16: 4}  # of b and A, with room for r'Ar to fall; others: 16
RUN_AHEAD = 8  # steps a GPU may be ahead of the newest "is anybody running?" that the host has seen


Inverses = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Iterate(NamedTuple):
    """What a method hands to the loop after a step. Vectors are (..., p), numbers (...)."""

    x: Tensor
    residual_norm: Tensor
    code: Tensor  # RUNNING, or the code of the status that the method claims
    min_curvature: Tensor
    direction: Tensor
    memory: Any  # a NamedTuple of tensors: the method's own recurrence


class Method:
    """One solver: how to start at (x, r) and how to take one step with one product."""

    max_cycles = MAX_RESTARTS  # how often the loop may start it again

    def start(self, problem: Problem, x: Tensor, r: Tensor) -> Iterate:
        """The state before the first step, on copies of x and r (a step may work in place)."""
        raise NotImplementedError

    def step(self, problem: Problem, now: Iterate, active: Tensor) -> Iterate:
        """One step of the systems in `active` (...); x, direction and code of the others must stay. Where no code
        changes, the same tensor may be returned, and the loop asks nobody whether to go on."""
        raise NotImplementedError

    def finish(self, problem: Problem, now: Iterate) -> Iterate:
        """The state with the x to return, when no system of the cycle goes on."""
        return now

    def residual(self, problem: Problem, x: Tensor) -> Tensor:
        """b - A x (..., p), with the graph of b and of the operator."""
        return problem.b - problem.operator(x)

    def scaled(self, of_x: Tensor, of_b: Tensor) -> Method:
        """The method for of_x x and of_b b instead of x and b, each (...)."""
        return self


@dataclass(frozen=True)
class Problem:
    """A x = b on flat vectors, with everything a step needs. Products handed to a step carry no graph."""

    operator: Operator
    b: Tensor  # (..., p)
    tolerance: Tensor  # (...)
    max_steps: int
    preconditioner: Callable[[Tensor], Tensor] | None

    @functools.cached_property
    def is_plain(self) -> bool:
        """No transform of torch.func is active: vectors may be updated in place."""
        return torch._C._functorch.maybe_current_level() is None

    @functools.cached_property
    def is_readable(self) -> bool:
        """A flag costs nothing to read."""
        return self.is_plain and self.b.device.type == "cpu"

    def all_of(self, mask: Tensor) -> bool:
        """True where that can be read and holds for all systems."""
        return self.is_readable and bool(mask.all())

    def none_of(self, mask: Tensor) -> bool:
        """True where that can be read and the mask holds for no system."""
        return self.is_readable and not bool(mask.any())

    def product(self, v: Tensor) -> Tensor:
        return self.operator(v).detach()

    def precondition(self, r: Tensor) -> Tensor:
        return r if self.preconditioner is None else self.preconditioner(r).detach()

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products (...); on a CPU by BLAS, row by row, which needs no product in between as torch does."""
        if not self.is_readable or a.dtype not in (torch.float32, torch.float64):
            return dot(a, b)
        with np.errstate(all="ignore"):
            return torch.as_tensor(np.vecdot(a.numpy(), b.numpy()))

    def add(self, y: Tensor, factor: Tensor, x: Tensor, *, into: Tensor | None = None) -> Tensor:
        """y + factor x for vectors (..., p) and a factor (...); written into y, or into another of the two."""
        factor = factor[..., None]
        if factor.dtype != x.dtype:
            factor = factor.to(x.dtype)
        if not self.is_plain:
            return y + factor * x
        return torch.addcmul(y, x, factor, out=y if into is None else into)

    def put_rows(self, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """`new` in the systems of the mask (...), `old` (which is overwritten) in the others."""
        if not self.is_readable:
            return torch.where(mask[..., None], new, old)
        if bool(mask.any()):
            old[mask] = new[mask]
        return old

    def zero_rows(self, mask: Tensor, vector: Tensor) -> Tensor:
        """The vector with zeros in the systems of the mask (...), whatever stood there."""
        if self.is_readable and not bool(mask.any()):
            return vector
        return torch.where(mask[..., None], 0.0, vector)


def select(mask: Tensor, new: Any, old: Any) -> Any:
    """Elementwise over a (named) tuple: `new` where the system's mask (...) is set, else `old`."""
    if isinstance(new, Tensor):
        return torch.where(mask[..., None] if new.dim() > mask.dim() else mask, new, old)
    parts = [select(mask, a, b) for a, b in zip(new, old, strict=True)]
    return type(new)(*parts)


class AnyRunning:
    """Answers "is any system still running?" without draining a GPU's queue.

    On the CPU: exactly. On a GPU: by flags copied back asynchronously; the newest one that has arrived is
    used, and the host waits only for the one of `RUN_AHEAD` steps ago. While a CUDA graph is captured: always
    yes.
    """

    def __init__(self) -> None:
        self.pending: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def __call__(self, mask: Tensor) -> bool:
        mask = host_value(mask)
        if mask.device.type != "cuda":
            return bool(mask.any())
        if torch.cuda.is_current_stream_capturing():
            return True
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(mask.any(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.pending.append((event, flag))
        if len(self.pending) > RUN_AHEAD:
            self.pending[0][0].synchronize()
        while self.pending and self.pending[0][0].query():
            if not bool(self.pending.popleft()[1]):
                return False
        return True


def is_capturing(device: torch.device) -> bool:
    """True while a CUDA graph is being recorded, when no value may be read back."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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
    for _ in range(1 if is_capturing(x.device) else method.max_cycles):
        active = (done.code == RUNNING) & (num_steps < problem.max_steps)
        if not any_running(active):
            break
        now = method.start(problem, done.x, done.residual.detach())
        now = now._replace(
            code=torch.where(active, now.code, done.code),
            residual_norm=done.residual_norm,
            min_curvature=done.min_curvature,
        )
        cycle, seen = active, None
        for _ in range(problem.max_steps):
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


@dataclass(frozen=True)
class Settings:
    """What a solve was asked for, apart from A, b and x0."""

    rtol: float
    atol: float | Tensor
    max_steps: int | None
    preconditioner: Matvec | None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and name == "atol":
                continue  # rescaled by `solve`, checked before
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}; 0 asks for the exact answer")
        if self.max_steps is not None:
            whole_number("max_steps", self.max_steps, 0, "None means 10 p")


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


def rtol_of_derivatives(rtol: float, b: Tensor) -> float:
    """The solves inside a derivative have right-hand sides of another size, so that atol says nothing there."""
    return rtol if rtol > 0 else torch.finfo(b.dtype).eps ** 0.75


def of_derivatives(settings: Settings, b: Tensor) -> Settings:
    """What the solves inside a derivative are asked for."""
    return dataclasses.replace(settings, atol=0.0, rtol=rtol_of_derivatives(settings.rtol, b))


def tolerance_for(settings: Settings, size_of_b: Tensor) -> Tensor:
    """max(rtol |b|, atol), (...)."""
    atol = torch.as_tensor(settings.atol, dtype=size_of_b.dtype, device=size_of_b.device)
    return torch.maximum(settings.rtol * size_of_b, atol)


class ExtremeOperator(Exception):
    """Raised by a method whose numbers would leave the range of the precision: `unit` (...) times A is near 1."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__("the operator must be scaled")
        self.unit = unit


def power_of_two(vectors: Tensor) -> Tensor | None:
    """Powers of two (...) that bring the largest entry of each vector (..., p) near 1, or None where all are so
    near that no square leaves the range of their precision (then nothing is scaled, and nothing is paid)."""
    if vectors.numel() == 0 or is_capturing(vectors.device):
        return None
    largest = vectors.abs().amax(-1)
    exponent = torch.frexp(largest).exponent
    limit = SAFE_EXPONENT.get(vectors.dtype, 16)
    is_extreme = (exponent.abs() > limit) & (largest > 0) & largest.isfinite()
    if not bool(host_value(is_extreme).any()):
        return None
    room = math.frexp(torch.finfo(vectors.dtype).max)[1] - 2
    power = torch.where(is_extreme, -exponent, 0).clamp(-room, room)
    return torch.ldexp(torch.ones_like(largest), power)


def unit_of_operator(product: Tensor, v: Tensor) -> Tensor | None:
    """Powers of two (...) that bring |A v| / |v| near 1, or None where it is."""
    size = norm(v)
    return power_of_two(product / torch.where(size > 0, size, 1.0)[..., None])


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


def rescaled(
    answer: LinearSolveResult, vectors: VectorSpace, of_x: Tensor, of_A: Tensor | float
) -> LinearSolveResult:
    """The answer for x from that for of_x x, of an operator that was of_A times smaller, (...) each.

    A solution that this precision cannot hold is not one: 0, infinity, or a few bits of a subnormal number.
    """
    flat = vectors.flatten(answer.solution, "x")
    x = flat / of_x[..., None]
    direction = vectors.flatten(answer.direction, "x") / of_x[..., None]
    lost = wide_norm(x.detach() * of_x[..., None] - flat.detach())
    is_held = lost <= torch.finfo(flat.dtype).eps * wide_norm(flat.detach())
    code = torch.where(is_held | ~answer.converged, answer.status_code, STAGNATED)
    code = torch.where(x.detach().isfinite().all(-1), code, NONFINITE)
    return dataclasses.replace(
        answer,
        solution=vectors.unflatten(torch.where((code == NONFINITE)[..., None], torch.nan, x)),
        direction=vectors.unflatten(direction),
        status_code=code,
        min_curvature=answer.min_curvature * of_A,
        damping=answer.damping * of_A,
    )


class ScaledOperator(Operator):
    """unit A, unit (...); the products are counted by the operator that is scaled."""

    def __init__(self, operator: Operator, unit: Tensor) -> None:
        damping = None if operator.damping is None else operator.damping * unit
        super().__init__(operator.matvec, operator.vectors, damping)
        self.unscaled, self.unit = operator, unit

    def __call__(self, v: Tensor) -> Tensor:
        self.num_products += 1
        return self.unscaled(v) * self.unit[..., None]


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
