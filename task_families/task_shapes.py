"""Task spaces beyond the box: ball, simplex, circle, finite set, product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from task_families.task_space import TaskSpace, _Space, check_real, grid_counts, real, slack


@dataclass(frozen=True)
class TaskBall(_Space):
    """{psi: |psi - center| <= radius}."""

    center: Tensor  # (k,)
    radius: float
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.center.dim() != 1 or not len(self.center) or not bool(self.center.isfinite().all()):
            raise ValueError(
                f"TaskBall: expected a finite center of shape (k,), k >= 1, got {self.center.tolist()}"
            )
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"TaskBall: expected a positive radius, got {self.radius:g}: the ball is empty")
        self._check_names()

    @property
    def low(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return self.center - self.radius

    @property
    def high(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return self.center + self.radius

    @property
    def description(self) -> str:  # type: ignore[override]
        """For messages."""
        center = ", ".join(f"{x:g}" for x in self.center.tolist())
        return f"the ball of radius {self.radius:g} around ({center})"

    def project(self, psi: Tensor) -> Tensor:
        """center + (psi - center) min(1, radius / |psi - center|)"""
        psi = real(psi, self.center)
        offset = psi - self.center.to(psi)
        norm = offset.norm(dim=-1, keepdim=True)
        far = offset.abs().amax(-1, keepdim=True)  # of 1e20 in float32, the sum of squares is infinite
        norm = torch.where(norm.isinf(), far * (offset / far).norm(dim=-1, keepdim=True), norm)
        # untouched inside, up to rounding: the projection of a projection is itself, bit for bit
        outside = norm > self.radius * (1 + 4 * torch.finfo(psi.dtype).eps)
        return torch.where(outside, self.center.to(psi) + offset * (self.radius / norm), psi)

    def from_cube(self, cube: Tensor) -> Tensor:
        """A normal vector gives the direction; its chi-square probability to the power 1/k the radius."""
        z = torch.special.ndtri(cube.clamp(1e-12, 1 - 1e-12))
        square = z.square().sum(-1, keepdim=True)
        half = torch.full_like(square, self.size / 2)
        radius = torch.special.gammainc(half, square / 2) ** (1 / self.size)
        return self.project(self.center.to(z) + self.radius * radius * z / square.sqrt().clamp_min(1e-12))

    def _boundary(self, cube: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.special.ndtri(cube.clamp(1e-12, 1 - 1e-12))
        return self.project(self.center.to(z) + self.radius * z / z.norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class TaskSimplex(_Space):
    """{psi >= 0, sum psi = total}: mixtures, shares of a budget, weights of reward terms."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    total: float = 1.0
    dtype: torch.dtype = torch.float32
    description = "the simplex"

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(
                f"TaskSimplex: expected at least 2 names, got {len(self.names)}: one task is no space"
            )
        if not (math.isfinite(self.total) and self.total > 0):
            raise ValueError(f"TaskSimplex: expected a positive total, got {self.total:g}")
        self._check_names()

    @property
    def low(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return torch.zeros(len(self.names), dtype=self.dtype)

    @property
    def high(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return torch.full((len(self.names),), self.total, dtype=self.dtype)

    def project(self, psi: Tensor) -> Tensor:
        """max(psi - tau, 0) with the tau that makes the sum right (found by sorting; Held et al. 1974)."""
        psi = real(psi, self.low)
        eps = 8 * len(self.names) * torch.finfo(psi.dtype).eps * self.total
        feasible = ((psi.sum(-1, keepdim=True) - self.total).abs() <= eps) & (psi >= 0).all(-1, keepdim=True)
        # a number added to all coordinates changes nothing, and what is below the largest by total or more becomes 0
        psi, given = (psi - psi.amax(-1, keepdim=True)).clamp_min(-self.total), psi
        ordered = psi.sort(dim=-1, descending=True).values
        count = torch.arange(1, self.size + 1, device=psi.device).to(psi)
        tau = (ordered.cumsum(-1) - self.total) / count
        num_positive = (ordered > tau).sum(-1, keepdim=True).clamp_min(1)
        inside = (psi - tau.gather(-1, num_positive - 1)).clamp_min(0)
        # far outside, rounding of tau is large against total: restore the sum
        inside = inside * (self.total / inside.sum(-1, keepdim=True))
        return torch.where(feasible, given, inside)

    def from_cube(self, cube: Tensor) -> Tensor:
        """Exponential numbers divided by their sum are uniform on the simplex."""
        return _shares(-torch.log(cube.clamp(1e-12, 1 - 1e-12)), self.total)

    def _boundary(self, cube: Tensor, generator: torch.Generator) -> Tensor:
        exponential = -torch.log(cube.clamp(1e-12, 1 - 1e-12))
        face = torch.randint(self.size, (len(cube), 1), generator=generator)
        return _shares(exponential.scatter(-1, face, 0.0), self.total)


def _shares(x: Tensor, total: float) -> Tensor:
    return total * x / x.sum(-1, keepdim=True)


@dataclass(frozen=True)
class TaskCircle(_Space):
    """Directions: one angle in [start, start + 2 pi] rad, whose ends are the same task.

    Its projection takes whole turns off; distances are those along the circle.
    """

    name: str = "direction"
    start: float = 0.0
    dtype: torch.dtype = torch.float32
    description = "one turn of the circle"

    def __post_init__(self) -> None:
        if not math.isfinite(self.start):
            raise ValueError(f"TaskCircle: expected a finite start, got {self.start}")

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """(1,)"""
        return (self.name,)

    @property
    def units(self) -> tuple[str, ...]:  # type: ignore[override]
        """(1,)"""
        return ("rad",)

    @property
    def low(self) -> Tensor:  # type: ignore[override]
        """(1,)"""
        return torch.tensor([self.start], dtype=self.dtype)

    @property
    def high(self) -> Tensor:  # type: ignore[override]
        """(1,)"""
        return self.low + 2 * math.pi

    def project(self, psi: Tensor) -> Tensor:
        """The same direction within the turn."""
        psi = real(psi, self.low)
        low, high = self.low.to(psi), self.high.to(psi)
        wrapped = (low + torch.remainder(psi - low, 2 * math.pi)).clamp(low, high)
        return torch.where((psi >= low) & (psi <= high), psi, wrapped)

    def from_cube(self, cube: Tensor) -> Tensor:
        """start + 2 pi cube"""
        return self.low.to(cube) + 2 * math.pi * cube

    def embed(self, psi: Tensor) -> Tensor:
        """(..., 2): a circle whose arcs are as long as in unit coordinates."""
        angle = math.pi * self.to_unit(psi)
        return torch.cat([angle.cos(), angle.sin()], dim=-1) / math.pi

    def grid(self, shape: Sequence[int]) -> Tensor:
        """n equally spaced directions (n, 1); the end of the turn is not repeated."""
        grid_counts(shape, self.names)
        return self.from_cube(torch.arange(shape[0]).double()[:, None] / shape[0]).to(self.low.dtype)


@dataclass(frozen=True)
class TaskChoice(_Space):
    """A finite set of tasks. Its projection is the nearest of them, which is not non-expansive."""

    tasks: Tensor  # (n, k), all different
    names: tuple[str, ...]
    units: tuple[str, ...]
    description = "the finite set of tasks"

    def __post_init__(self) -> None:
        check_real("TaskChoice", "tasks", self.tasks)
        if self.tasks.dim() != 2 or not self.tasks.numel() or not bool(self.tasks.isfinite().all()):
            raise ValueError(
                f"TaskChoice: expected finite tasks of shape (n, k) with n, k >= 1, got {tuple(self.tasks.shape)}"
            )
        if len(torch.unique(self.tasks, dim=0)) < len(self.tasks):
            raise ValueError(
                f"TaskChoice: expected different tasks, got repetitions in {self.tasks.tolist()}"
            )
        self._check_names()

    @property
    def low(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return self.tasks.amin(0)

    @property
    def high(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return self.tasks.amax(0)

    def project(self, psi: Tensor) -> Tensor:
        """The nearest task in unit coordinates; the first of them if several are."""
        psi = real(psi, self.low)
        tasks = self.tasks.to(psi)
        square = (self.to_unit(psi.double())[..., None, :] - self.to_unit(tasks.double())).square().sum(-1)
        return tasks[square.argmin(-1)]

    def from_cube(self, cube: Tensor) -> Tensor:
        """The first coordinate chooses."""
        index = (cube[..., 0] * len(self.tasks)).long().clamp(0, len(self.tasks) - 1)
        return self.tasks.to(cube)[index]

    def grid(self, shape: Sequence[int]) -> Tensor:
        """All tasks (n, k), whatever the shape."""
        grid_counts(shape, self.names)
        return self.tasks


@dataclass(frozen=True)
class TaskProduct(_Space):
    """Tasks made of parts, each from a space of its own: psi = (psi_1, psi_2, ...)."""

    parts: tuple[TaskSpace, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("TaskProduct: expected at least one space, got none")
        if len({part.low.dtype for part in self.parts}) > 1:
            raise ValueError(f"TaskProduct: expected one dtype, got {[str(p.low.dtype) for p in self.parts]}")

    @property
    def low(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return torch.cat([part.low for part in self.parts])

    @property
    def high(self) -> Tensor:  # type: ignore[override]
        """(k,) of the enclosing box."""
        return torch.cat([part.high for part in self.parts])

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """(k,)"""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def units(self) -> tuple[str, ...]:  # type: ignore[override]
        """(k,)"""
        return tuple(unit for part in self.parts for unit in part.units)

    @property
    def description(self) -> str:  # type: ignore[override]
        """For messages."""
        return "the product of " + " x ".join(type(part).__name__ for part in self.parts)

    def _map(self, method: str, x: Tensor) -> Tensor:
        pieces = real(x, self.low).split([part.size for part in self.parts], dim=-1)
        return torch.cat(
            [getattr(part, method)(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=-1
        )

    def _slack(self, psi: Tensor) -> Tensor:
        parts = [p._slack(psi) if isinstance(p, _Space) else slack(psi, p.low, p.high) for p in self.parts]
        return torch.cat(parts)

    def project(self, psi: Tensor) -> Tensor:
        """Each part on its own."""
        return self._map("project", psi)

    def to_unit(self, psi: Tensor) -> Tensor:
        """Each part on its own."""
        return self._map("to_unit", psi)

    def from_unit(self, unit: Tensor) -> Tensor:
        """Each part on its own."""
        return self._map("from_unit", unit)

    def from_cube(self, cube: Tensor) -> Tensor:
        """Each part on its own."""
        return self._map("from_cube", cube)

    def embed(self, psi: Tensor) -> Tensor:
        """Each part on its own."""
        return self._map("embed", psi)

    def grid(self, shape: Sequence[int]) -> Tensor:
        """All combinations of the parts' grids."""
        counts, grids, begin = grid_counts(shape, self.names), [], 0
        for part in self.parts:
            grids.append(part.grid(counts[begin : begin + part.size]))
            begin += part.size
        return torch.stack([torch.cat(rows) for rows in itertools.product(*grids)])

    def sample(self, n: int, kind: str, generator: torch.Generator) -> Tensor:
        """n tasks (n, k), the parts independent."""
        return torch.cat([part.sample(n, kind, generator) for part in self.parts], dim=-1)
