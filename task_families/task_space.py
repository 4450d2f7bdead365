"""Sets of tasks beyond the box: ball, simplex, circle, finite set, product. `TaskSpace` is what a search asks of one.

Shapes: k task parameters. *Unit coordinates* are the affine image of the smallest enclosing box on [-1, 1]^k. Every
space here is scaled in them by one factor (a product: one for each part), so that the Euclidean projection is the
same in psi and in unit coordinates. *Cube coordinates* in [0, 1]^k carry uniform numbers to uniform tasks.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from task_families.choices import check_name, whole_number

KINDS = ("uniform", "gaussian", "gaussian_task", "boundary")
MAX_REJECTIONS = 10_000  # draws per wanted task before a condition counts as unsatisfiable


TOLERANCE = 1e-6  # of the enclosing box's half-range: how far outside a task may lie and still be accepted
SAME_PLACE = 1e-5  # embedded coordinates: what rounding may move a task by that is projected onto itself


def real(psi: Tensor, low: Tensor) -> Tensor:
    """psi as real numbers: whole numbers get the space's dtype, or its bounds would be cut to whole numbers."""
    return psi if psi.is_floating_point() else psi.to(low.dtype)


def check_real(space: str, name: str, value: object) -> None:
    """Refuse what a space cannot be made of.

    Raises:
        ValueError: a list, or a tensor of whole numbers, whose dtype would be that of all tasks.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = f"one of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.60}"
        raise ValueError(
            f"{space}: expected {name} as a tensor of real numbers, as in torch.tensor([0.0, 1.0]), got {what}"
        )


def slack(psi: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(k,) how far outside [low, high] a coordinate of psi may lie: TOLERANCE, and what rounding may have done.

    Relative to the box in either way, so that it means the same for boxes of every size and place.
    """
    eps = max(torch.finfo(psi.dtype).eps, torch.finfo(low.dtype).eps)
    largest = torch.maximum(low.abs(), high.abs())
    return (TOLERANCE * (high - low) / 2 + eps * largest).to(psi)


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a box that satisfy all predicates; sampled by rejection."""

    box: TaskSpace
    predicates: tuple[Callable[[Tensor], Tensor], ...]  # each (n, k) -> (n,) bool

    def contains(self, psi: Tensor) -> Tensor:
        """Whether psi (n, k) satisfies every predicate: (n,) bool. Does not check the box.

        Raises:
            ValueError: a predicate returns something else than (n,) bool.
        """
        inside = torch.ones(len(psi), dtype=torch.bool)
        for predicate in self.predicates:
            holds = predicate(psi)
            if holds.shape != inside.shape or holds.dtype != torch.bool:
                raise ValueError(
                    f"restrict: expected a predicate of psi (n, k) that returns (n,) bool, got {holds.dtype} of "
                    f"shape {tuple(holds.shape)} for n = {len(psi)}; index a coordinate, as in psi[:, 0] > 1"
                )
            inside &= holds
        return inside

    def restrict(self, predicate: Callable[[Tensor], Tensor]) -> TaskSet:
        """One more condition."""
        return TaskSet(self.box, (*self.predicates, predicate))

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n tasks (n, k); see `TaskBox.sample`.

        Raises:
            ValueError: hardly any task of the box satisfies the predicates.
        """
        n, found = whole_number("n", n, 0), self.box.low.new_empty(0, self.box.size)
        num_drawn = 0
        while len(found) < n:
            if num_drawn > MAX_REJECTIONS * n:
                raise ValueError(
                    f"restrict: {len(found)} of {num_drawn} tasks of the box satisfy the predicate, "
                    f"expected {n}; check the predicate's units ({', '.join(self.box.units)})"
                )
            psi = self.box.sample(max(64, 2 * n), kind, generator)
            num_drawn += len(psi)
            found = torch.cat([found, psi[self.contains(psi)]])
        return found[:n]

    def fixed(self, n: int, seed: int, kind: str = "uniform") -> Tensor:
        """See `TaskBox.fixed`."""
        return self.sample(n, kind, torch.Generator().manual_seed(seed))

    def grid(self, shape: Sequence[int]) -> Tensor:
        """The points of the box's grid that satisfy the predicates: (at most prod(shape), k)."""
        psi = self.box.grid(shape)
        return psi[self.contains(psi)]


class TaskSpace(Protocol):
    """A set Psi of tasks; `TaskBox` and every class of this page."""

    @property
    def low(self) -> Tensor:
        """(k,), of the smallest enclosing box."""

    @property
    def high(self) -> Tensor:
        """(k,)"""

    @property
    def names(self) -> tuple[str, ...]:
        """(k,) what each coordinate is."""

    @property
    def units(self) -> tuple[str, ...]:
        """(k,)"""

    @property
    def size(self) -> int:
        """k"""

    def project(self, psi: Tensor) -> Tensor:
        """The nearest task of the set: (..., k) -> (..., k)."""

    def to_unit(self, psi: Tensor) -> Tensor:
        """psi (..., k) -> unit coordinates (..., k)."""

    def from_unit(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`."""

    def from_cube(self, cube: Tensor) -> Tensor:
        """Cube coordinates (n, k) -> tasks (n, k); uniform numbers give uniform tasks."""

    def embed(self, psi: Tensor) -> Tensor:
        """Coordinates (..., d) in which near tasks are near: unit coordinates, but for circles."""

    def grid(self, shape: Sequence[int]) -> Tensor:
        """A regular grid (at most prod(shape), k)."""

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n independent tasks (n, k); see `TaskBox.sample`."""

    def fixed(self, n: int, seed: int, kind: str = "uniform") -> Tensor:
        """See `TaskBox.fixed`."""

    def restrict(self, predicate: Callable[[Tensor], Tensor]) -> TaskSet:
        """See `TaskBox.restrict`."""

    def check(self, psi: Tensor, *, allow_outside: bool = False) -> Tensor:
        """See `TaskBox.check`."""


class _Space(ABC):
    """What the spaces of this page share."""

    low: Tensor
    high: Tensor
    names: tuple[str, ...]
    units: tuple[str, ...]
    description: str = ""  # for messages

    def _check_names(self) -> None:
        if not len(self.names) == len(self.units) == self.size:
            raise ValueError(
                f"{type(self).__name__}: expected {self.size} names and units, "
                f"got {len(self.names)} and {len(self.units)}"
            )

    @property
    def size(self) -> int:
        """k, the number of task parameters."""
        return len(self.low)

    @property
    def _half_range(self) -> Tensor:
        half = (self.high - self.low) / 2
        return torch.where(half > 0, half, 1.0)  # a coordinate in which a finite set does not vary

    @abstractmethod
    def project(self, psi: Tensor) -> Tensor:
        """See `TaskSpace.project`."""

    @abstractmethod
    def from_cube(self, cube: Tensor) -> Tensor:
        """See `TaskSpace.from_cube`."""

    def to_unit(self, psi: Tensor) -> Tensor:
        """See `TaskSpace.to_unit`."""
        psi, center = real(psi, self.low), (self.low + self.high) / 2
        return (psi - center.to(psi)) / self._half_range.to(psi)

    def from_unit(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`."""
        unit, center = real(unit, self.low), (self.low + self.high) / 2
        return center.to(unit) + self._half_range.to(unit) * unit

    def embed(self, psi: Tensor) -> Tensor:
        """See `TaskSpace.embed`."""
        return self.to_unit(psi)

    def grid(self, shape: Sequence[int]) -> Tensor:
        """The enclosing box's grid, projected, without repetitions: (at most prod(shape), k).

        Raises:
            ValueError: not one count per task parameter, or a count below 1.
        """
        psi = self.project(self.from_unit(unit_grid(shape, self.names))).to(self.low.dtype)
        return torch.unique(self.project(psi), dim=0)  # rounded, it may lie outside

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n tasks (n, k) drawn independently; kinds as in `TaskBox.sample`, projected where they leave the set."""
        check_name("kind", kind, KINDS)
        shape, dtype = (whole_number("n", n, 0), self.size), self.low.dtype
        if kind in ("uniform", "boundary"):
            cube = torch.rand(shape, generator=generator, dtype=torch.float64)
            psi = self.from_cube(cube) if kind == "uniform" else self._boundary(cube, generator)
            return self.project(psi.to(dtype))  # rounded, it may lie outside
        noise = torch.randn(shape, generator=generator, dtype=dtype)
        return self.project(noise if kind == "gaussian_task" else self.from_unit(noise))

    def _boundary(self, cube: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError(
            f"kind: {self.description} has no boundary to draw from; expected uniform or gaussian"
        )

    def fixed(self, n: int, seed: int, kind: str = "uniform") -> Tensor:
        """See `TaskBox.fixed`."""
        return self.sample(n, kind, torch.Generator().manual_seed(seed))

    def restrict(self, predicate: Callable[[Tensor], Tensor]) -> TaskSet:
        """See `TaskBox.restrict`."""
        return TaskSet(self, (predicate,))

    def _slack(self, psi: Tensor) -> Tensor:
        """(k,) `slack`; the rounding of one coordinate moves the projection of the others."""
        return slack(psi, self.low, self.high).amax().expand(self.size)

    def check(self, psi: Tensor, *, allow_outside: bool = False) -> Tensor:
        """psi as (M, k), unchanged, if every task is finite and lies in the set; see `TaskBox.check`.

        Raises:
            ValueError: wrong shape, not finite, or outside the set; names the nearest task.
        """
        psi = as_tasks(psi, self.low, self.names)
        bad = ~psi.isfinite().all(-1)
        if not allow_outside:
            distance = (psi - self.project(psi)).abs()
            bad |= ~(distance <= self._slack(psi)).all(-1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            where = ", ".join(f"{x:g}" for x in psi[row].tolist())
            near = ", ".join(f"{x:g}" for x in self.project(psi[row]).tolist())
            raise ValueError(
                f"psi: task {row} = ({where}) is not in {self.description}; the nearest task is ({near}); use "
                "project(psi), or `allow_outside` for finite tasks to evaluate out of distribution"
            )
        return psi


def as_tasks(psi: Tensor, like: Tensor, names: tuple[str, ...]) -> Tensor:
    """psi as (M, k), whole numbers as real ones; one task may be (k,).

    Raises:
        ValueError: another shape.
    """
    psi = torch.atleast_2d(real(psi, like))
    if psi.dim() == 2 and psi.shape[1] != len(names):
        plural = "s" if len(names) > 1 else ""
        raise ValueError(
            f"psi: expected {len(names)} number{plural} a task ({', '.join(names)}), got {psi.shape[1]}"
        )
    if psi.dim() != 2:
        raise ValueError(f"psi: expected shape (M, {len(names)}) or ({len(names)},), got {tuple(psi.shape)}")
    return psi


def unwrapped(space: TaskSpace, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The tasks (..., k) nearest to the wanted ones, and where these lie without the whole turns that a circle's
    projection takes off: differences of the latter are ways that were gone."""
    nearest = space.project(wanted)
    distance = (space.embed(nearest) - space.embed(wanted)).abs().amax(-1, keepdim=True)
    return nearest, torch.where(distance <= SAME_PLACE, wanted, nearest)


def grid_counts(shape: Sequence[int], names: tuple[str, ...]) -> list[int]:
    """Points of a grid along each task parameter.

    Raises:
        ValueError: not one count per task parameter, or a count below 1.
    """
    if len(shape) != len(names) or min(shape) < 1:
        raise ValueError(
            f"grid: expected {len(names)} positive counts, one for each of {', '.join(names)}; got {tuple(shape)}"
        )
    return [whole_number("grid", n) for n in shape]


def unit_grid(shape: Sequence[int], names: tuple[str, ...]) -> Tensor:
    """Regular points (prod(shape), k) of [-1, 1]^k in float64, corners included, the last coordinate fastest.

    Raises:
        ValueError: see `grid_counts`.
    """
    counts = grid_counts(shape, names)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64).tolist() if n > 1 else [0.0] for n in counts]
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)
