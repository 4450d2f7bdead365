"""What conformance checks work with: how they run and fail; tasks, actions, states and simulations of families."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from task_families.family import TaskFamily

DOUBLE = torch.float64
ROUNDING = 1e-10  # BLAS sums in an order that depends on the batch
Subject = TypeVar("Subject")


class ConformanceError(AssertionError):
    """Something breaks its contract: a family, a search, an adapter."""


def run_checks(
    name: str, checks: Mapping[str, Callable[[Subject], None]], subject: Subject
) -> tuple[str, ...]:
    """Run every check on the subject; the names of the checks, all of them passed.

    Raises:
        ConformanceError: lists every check that failed, with expected and found.
    """
    failures = []
    for title, check in checks.items():
        try:
            check(subject)
        except ConformanceError as error:
            failures.append(f"{title}: {error}")
        except Exception as error:
            raise ConformanceError(f"{name}: {title} stopped with {error!r}") from error
    if failures:
        raise ConformanceError(f"{name}:\n  " + "\n  ".join(failures))
    return tuple(checks)


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
    expect(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    error = float((got.double() - expected.double()).abs().nan_to_num(nan=torch.inf).max())
    expect(error <= tolerance, f"{what}: differ by {error:.3g}, expected at most {tolerance:g}")
