"""What conformance checks work with: how they run and fail; tasks, actions, states and simulations of families."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from task_families.family import TaskFamily

DOUBLE = torch.float64
ROUNDING = 1e-10  # BLAS sums in an order that depends on the batch
Subject = TypeVar("Subject")


class ConformanceError(AssertionError):
    """Something breaks its contract: a family, a search, an adapter."""


class SkippedCheck(Exception):
    """A check that cannot be made here; says why."""


def run_checks(
    name: str, checks: Mapping[str, Callable[[Subject], None]], subject: Subject
) -> tuple[str, ...]:
    """Run every check on the subject; the names of those that passed. A check that cannot be made warns.

    Raises:
        ConformanceError: lists every check that failed, with expected and found; a check that raises ends the list.
    """
    failures, passed = [], []
    for title, check in checks.items():
        try:
            check(subject)
            passed.append(title)
        except SkippedCheck as reason:
            warnings.warn(f"{name}: {title} was skipped: {reason}", stacklevel=3)
        except ConformanceError as error:
            failures.append(f"{title}: {error}")
        except Exception as error:
            earlier = "; before it:\n  " + "\n  ".join(failures) if failures else ""
            raise ConformanceError(f"{name}: {title} stopped with {error!r}{earlier}") from error
    if failures:
        raise ConformanceError(f"{name}:\n  " + "\n  ".join(failures))
    return tuple(passed)


def require_checks(
    argument: str, name: str, checks: Mapping[str, Callable[[Subject], None]], subject: Subject, advice: str
) -> None:
    """`run_checks` up to the first check that fails.

    Args:
        argument: that named the subject, for the message.
        advice: the message's end.

    Raises:
        ValueError: names the check, with expected and found.
    """
    for title, check in checks.items():
        try:
            run_checks(name, {title: check}, subject)
        except ConformanceError as error:
            raise ValueError(f"{argument}: {' '.join(str(error).split())}; {advice}") from error


def seeded(seed: int) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def tasks_of(family: TaskFamily, n: int, seed: int) -> Tensor:
    """n uniform tasks (n, k) float64."""
    return family.box.sample(n, "uniform", seeded(seed)).double()


def random_actions(family: TaskFamily, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """scale N(0, 1) actions (*shape, A) float64, in units of the limits; many lie beyond them."""
    unit = scale * torch.randn(*shape, family.act_size, generator=seeded(seed), dtype=DOUBLE)
    return family.action_bounds.from_unit(unit)


def start_states(family: TaskFamily, shape: tuple[int, ...], seed: int) -> Tensor:
    """States (*shape, .) from p_0."""
    psi = tasks_of(family, 1, 0) if family.psi_changes_dynamics else None
    simulator = family.make_simulator((1, 1), dtype=DOUBLE, psi=psi)
    return simulator.start_states(math.prod(shape), seeded(seed)).unflatten(0, shape)


def simulate(
    family: TaskFamily, states: Tensor, actions: Tensor, *, psi: Tensor | None = None, num_threads: int = 1
) -> Tensor:
    """Observations (T + 1, M, N, S) of lanes that start from states (M, N, .), actions (T, M, N, A), psi (M, k)."""
    shape = (states.shape[0], states.shape[1])
    if psi is None and family.psi_changes_dynamics:
        psi = tasks_of(family, shape[0], 1)
    simulator = family.make_simulator(shape, num_threads=num_threads, dtype=DOUBLE, psi=psi)
    first = simulator.reset(torch.ones(shape, dtype=torch.bool), states.flatten(0, 1))
    return torch.stack([first.clone()] + [simulator.step(act).clone() for act in actions])


def transitions(family: TaskFamily, num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transitions under random actions with a random task each, float64: (num, .) of psi, s, a, s'."""
    psi = tasks_of(family, num, seed + 2)
    actions = random_actions(family, 5, num, 1, seed=seed, scale=0.7)
    obs = simulate(family, start_states(family, (num, 1), seed + 1), actions, psi=psi)[:, :, 0]
    return psi, obs[-2], actions[-1, :, 0], obs[-1]


def expect(condition: bool, message: str) -> None:
    """Raises `ConformanceError` unless the condition holds."""
    if not condition:
        raise ConformanceError(message)


def same(got: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Equal up to the tolerance, relative to the largest value if that is above 1."""
    expect(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    here, there = got.double().flatten(), expected.double().flatten()
    error = (here - there).abs().nan_to_num(nan=torch.inf)
    allowed = tolerance * max(1.0, float(there.abs().nan_to_num().max()))
    at = int(error.argmax())
    expect(
        float(error[at]) <= allowed,
        f"{what}: differ by {float(error[at]):.3g}, expected at most {allowed:.3g}: {float(here[at]):.9g} and "
        f"{float(there[at]):.9g}",
    )


@dataclass(frozen=True)
class Derivative:
    """Of a function of rows (num, size), by every coordinate, from differences."""

    value: Tensor  # (size, num)
    tolerance: Tensor  # (size, num) what is left of truncation and rounding; inf: a kink at every step
    is_known: Tensor  # (size, num) bool: precise to a thousandth of what the function changes by
    step: Tensor  # (size, num) that gave it


def central_differences(function: Callable[[Tensor], Tensor], x: Tensor) -> Derivative:
    """Richardson's extrapolation of central differences with steps h and h / 2, at the best of several h.

    The tolerance is the difference of the two, of which truncation is a third, and the rounding of the function's
    dtype over h. A kink between the points shows in second differences that do not fall by four.

    Args:
        function: rows (..., num, size) -> (..., num); steps are in units of the spread of x over the rows.
    """
    here = function(x)  # (num,)
    largest, size = x.abs().amax(0), x.shape[-1]
    unit = x.amax(0) - x.amin(0)  # (size,)
    unit = torch.where(unit > 1e-3 * largest, unit, torch.where(largest > 0, largest, 1.0))
    eps = torch.finfo(here.dtype).eps
    shape = (size, len(x))
    value, tolerance, step = (
        torch.zeros(shape).double(),
        torch.full(shape, torch.inf).double(),
        torch.zeros(shape),
    )
    for h in (eps ** (1 / 3) * factor for factor in (100, 10, 1, 0.1)):
        width = (h * unit).to(x)[:, None]  # (size, 1)
        offset = torch.diag(width[:, 0])[:, None]  # (size, 1, size): coordinate i moved in block i
        up, down, near_up, near_down = (function(x + s * offset).double() for s in (1, -1, 0.5, -0.5))
        whole, half = (up - down) / (2 * width), (near_up - near_down) / width
        bend, near_bend = up - 2 * here + down, near_up - 2 * here + near_down
        rounding = 16 * eps * (here.abs().max() + x.abs().max() * half.abs())
        smooth = (bend - 4 * near_bend).abs() <= 0.1 * bend.abs() + 4 * rounding
        found = (whole - half).abs() + rounding / width
        better = smooth & (found < tolerance)
        value = torch.where(better, (4 * half - whole) / 3, value)
        tolerance = torch.where(better, found, tolerance)
        step = torch.where(better, width.expand(shape), step)
    change = torch.maximum(value.abs().max(), here.abs().max().double() / unit[:, None])
    return Derivative(value, tolerance, tolerance <= 1e-3 * change, step)
