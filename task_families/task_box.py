"""TaskBox: the set Psi of a family. TaskSet: the part of it where a condition holds.

Shapes: k task parameters. *Unit coordinates* are the affine image of the box on [-1, 1]^k; the adversary's step
size lives there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from task_families.choices import check_name, whole_number
from task_families.task_space import KINDS, TaskSet, as_tasks, check_real, real, slack, unit_grid


@dataclass(frozen=True)
class TaskBox:
    """The set Psi: a box in R^k, with a name and a unit for every coordinate."""

    low: Tensor  # (k,)
    high: Tensor  # (k,)
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        check_real("TaskBox", "low", self.low)
        check_real("TaskBox", "high", self.high)
        shapes = self.low.shape == self.high.shape and self.low.dim() == 1 and len(self.low) > 0
        finite = bool(self.low.isfinite().all() and self.high.isfinite().all())
        if not shapes or not finite or not bool((self.low < self.high).all()):
            raise ValueError(
                "TaskBox: expected low < high, finite, both of shape (k,); "
                f"got low {self.low.tolist()}, high {self.high.tolist()}"
            )
        if not len(self.names) == len(self.units) == self.size:
            raise ValueError(
                f"TaskBox: expected {self.size} names and units, got {len(self.names)} and {len(self.units)}"
            )

    @property
    def size(self) -> int:
        """k, the number of task parameters."""
        return len(self.low)

    def project(self, psi: Tensor) -> Tensor:
        """Euclidean projection of psi (..., k) onto the box."""
        psi = real(psi, self.low)
        return torch.minimum(torch.maximum(psi, self.low.to(psi)), self.high.to(psi))

    def to_unit(self, psi: Tensor) -> Tensor:
        """psi (..., k) -> unit coordinates (..., k), [-1, 1] inside the box."""
        psi = real(psi, self.low)
        low, high = self.low.to(psi), self.high.to(psi)
        return (psi - low) / (high - low) * 2 - 1

    def from_unit(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`."""
        unit = real(unit, self.low)
        low, high = self.low.to(unit), self.high.to(unit)
        return low + (unit + 1) / 2 * (high - low)

    def from_cube(self, cube: Tensor) -> Tensor:
        """Cube coordinates [0, 1]^k -> tasks: uniform numbers give uniform tasks."""
        return self.from_unit(2 * cube - 1)

    def embed(self, psi: Tensor) -> Tensor:
        """Coordinates in which near tasks are near: the unit coordinates."""
        return self.to_unit(psi)

    def grid(self, shape: Sequence[int]) -> Tensor:
        """A regular grid that includes the corners: (prod(shape), k), the last coordinate fastest.

        Raises:
            ValueError: not one count per task parameter, or a count below 1.
        """
        return self.project(self.from_unit(unit_grid(shape, self.names)).to(self.low.dtype))

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n tasks (n, k) drawn independently.

        kind: ``uniform`` in the box; ``gaussian``, standard normal in unit coordinates, clipped to the box
        (the released MB-Gauss); ``gaussian_task``, standard normal in the task's own units, clipped to the box;
        ``boundary``, uniform on the faces, each face equally likely.
        """
        check_name("kind", kind, KINDS)
        shape, dtype = (whole_number("n", n, 0), self.size), self.low.dtype
        if kind == "gaussian_task":
            return self.project(torch.randn(shape, generator=generator, dtype=dtype))
        if kind == "gaussian":
            unit = torch.randn(shape, generator=generator, dtype=dtype).clamp(-1, 1)
        else:
            unit = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
        if kind == "boundary":
            face = torch.randint(2 * self.size, (n,), generator=generator)
            unit[torch.arange(n), face // 2] = (face % 2 * 2 - 1).to(dtype)
        return self.project(self.from_unit(unit))  # rounded, it may lie outside

    def fixed(self, n: int, seed: int, kind: str = "uniform") -> Tensor:
        """n tasks (n, k) that depend on the seed alone: a training set drawn once."""
        return self.sample(n, kind, torch.Generator().manual_seed(seed))

    def restrict(self, predicate: Callable[[Tensor], Tensor]) -> TaskSet:
        """The tasks where ``predicate(psi (n, k)) -> (n,) bool`` holds, e.g. directions up to 90 degrees."""
        return TaskSet(self, (predicate,))

    def check(self, psi: Tensor, *, allow_outside: bool = False) -> Tensor:
        """psi as (M, k), unchanged (whole numbers as real ones), if every task is finite and lies in the box.

        Args:
            allow_outside: accept finite tasks outside the box, for out-of-distribution evaluation.

        Raises:
            ValueError: wrong shape, not finite, or outside the box; names the coordinate.
        """
        psi = as_tasks(psi, self.low, self.names)
        if allow_outside:
            bad, remedy = ~psi.isfinite(), "even `allow_outside` needs finite numbers"
        else:
            low, high, more = self.low.to(psi), self.high.to(psi), slack(psi, self.low, self.high)
            bad = ~((psi >= low - more) & (psi <= high + more))
            remedy = (
                "use box.project(psi) for the nearest task, or `allow_outside` to evaluate "
                "out of distribution"
            )
        if bool(bad.any()):
            row, i = (int(x) for x in bad.nonzero()[0])
            raise ValueError(
                f"psi: {self.names[i]} = {float(psi[row, i]):g} {self.units[i]} of task {row} is outside "
                f"[{float(self.low[i]):g}, {float(self.high[i]):g}]; {remedy}"
            )
        return psi
