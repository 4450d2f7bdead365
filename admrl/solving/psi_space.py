"""Where psi is looked for: the coordinates of a task space that are searched, and those that are enumerated.

Boxes are searched within their bounds, circles without any (a whole turn is the same task), finite sets are
enumerated, and products are made of these.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from task_families.task_box import TaskBox
from task_families.task_shapes import TaskChoice, TaskCircle, TaskProduct
from task_families.task_space import TaskSpace

MAX_COMBINATIONS = 1000
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class PsiSpace:
    """k coordinates; psi (k,) is a row of `choices` with its free coordinates replaced."""

    low: Array  # (k,)
    high: Array  # (k,)
    free: Array  # (k,) bool: searched
    turns: Array  # (k,) bool: an angle
    choices: Array  # (C, k) all combinations of the finite parts; free coordinates are at their middle

    @classmethod
    def of(cls, space: TaskSpace) -> PsiSpace:
        """
        Raises:
            ValueError: neither box, circle, finite set nor a product of them, or too many combinations.
        """
        parts = _parts(space)
        low, high = (
            np.concatenate([getattr(p, end).double().numpy() for p in parts]) for end in ("low", "high")
        )
        rows = [_rows(p) for p in parts]
        count = int(np.prod([len(r) for r in rows]))
        if count > MAX_COMBINATIONS:
            raise ValueError(
                f"family: its finite sets have {count} combinations, and infer_psi tries each; expected at most "
                f"{MAX_COMBINATIONS}"
            )
        choices = np.array([np.concatenate(combination) for combination in itertools.product(*rows)])
        free, turns = (
            np.concatenate([np.full(p.size, isinstance(p, kinds)) for p in parts])
            for kinds in ((TaskBox, TaskCircle), TaskCircle)
        )
        return cls(low, high, free, turns, choices)

    @property
    def size(self) -> int:
        """k"""
        return len(self.low)

    def points(self, num: int, held: int | None = None, value: float = 0.0) -> Array:
        """num Sobol points for every combination (C num, k), the middle first; coordinate `held` is the value, of a
        finite set only combinations that have it."""
        cube = qmc.Sobol(self.size, scramble=False).random(num)
        cube[0] = 0.5  # instead of a corner
        inside = self.low + cube * (self.high - self.low)
        rows = (
            self.choices if held is None or self.free[held] else self.choices[self.choices[:, held] == value]
        )
        psi = np.where(self.free, inside[None], rows[:, None]).reshape(-1, self.size)
        if held is not None:
            psi[:, held] = value
        return np.unique(psi, axis=0) if not self.free.any() else psi

    def at_bound(self, psi: Array) -> Array:
        """(k,) bool"""
        near = 1e-9 * (self.high - self.low)
        on_it = (psi <= self.low + near) | (psi >= self.high - near)
        return on_it & self.free & ~self.turns


def _parts(space: TaskSpace) -> list[TaskSpace]:
    if isinstance(space, TaskProduct):
        return [part for each in space.parts for part in _parts(each)]
    if isinstance(space, TaskBox | TaskCircle | TaskChoice):
        return [space]
    raise ValueError(
        f"family: infer_psi searches TaskBox, TaskCircle, TaskChoice and products of them, got "
        f"{type(space).__name__}; give the family such a space, for instance the enclosing box"
    )


def _rows(part: TaskSpace) -> Array:
    if isinstance(part, TaskChoice):
        return part.tasks.double().numpy()
    return ((part.low + part.high) / 2).double().numpy()[None]
