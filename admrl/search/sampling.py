"""Tasks that do not depend on what was found: drawn at random (the paper's MB-Unif and MB-Gauss), or a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from admrl.search.base import Search, no_tags
from task_families.choices import check_name, whole_number
from task_families.task_space import KINDS, TaskSpace

MAX_POINTS = 1_000_000  # of a grid


class RandomSearch(Search):
    """Independent draws after given first tasks.

    kind: ``uniform``; ``gaussian``, standard normal in unit coordinates (the released MB-Gauss); or
    ``gaussian_task``, standard normal in the task's own units (the paper's words), both projected; ``boundary``.
    """

    def __init__(self, space: TaskSpace, first: Tensor | None, kind: str, generator: torch.Generator) -> None:
        super().__init__(space, generator, first)
        check_name("kind", kind, KINDS)
        self._kind = kind

    @property
    def num_starts(self) -> int:
        """All of them."""
        return len(self.history)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        # one at a time: how many are asked for at once makes no difference
        draws = [self.space.sample(1, self._kind, self.generator) for _ in range(n)]
        return torch.cat(draws), no_tags(n)


class GridSearch(Search):
    """A regular grid in random order, so that any beginning of it covers the space; then the same again."""

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        shape: Sequence[int] | None = None,
        budget: int = 100,
    ) -> None:
        """
        Args:
            shape: points for each task parameter.
            budget: without a shape: as many points for each parameter as fit into it, at least 2.

        Raises:
            ValueError: see `Search` and `TaskSpace.grid`; a budget below 1.
        """
        super().__init__(space, generator, first)
        budget = whole_number("budget", budget)
        per_parameter = max(2, int(budget ** (1 / space.size) + 1e-9))
        counts = tuple(shape) if shape is not None else (per_parameter,) * space.size
        if math.prod(counts) > MAX_POINTS:
            raise ValueError(
                f"GridSearch: {math.prod(counts):.3g} points for {space.size} task parameters are more than "
                f"{MAX_POINTS}; choose another search, or a shape"
            )
        self._grid = space.grid(counts)
        self._order = torch.randperm(len(self._grid), generator=generator)
        self._count = 0

    @property
    def num_starts(self) -> int:
        """All of them."""
        return len(self.history)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        failed = self.history.psi[~self.history.known].to(self._grid)
        sound = ~(self._grid[:, None] == failed).all(-1).any(1)  # what failed is not asked for again
        rows: list[int] = []
        while len(rows) < n:
            row = int(self._order[self._count % len(self._grid)])
            self._count += 1
            if bool(sound[row]) or not bool(sound.any()):
                rows.append(row)
        return self._grid[rows], no_tags(n)

    def _state(self) -> dict[str, Tensor]:
        return {"order": self._order, "count": torch.tensor(self._count)}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._order, self._count = state["order"], int(state["count"])
