"""Projected gradient ascent on the gap, AdMRL Alg. 1 lines 8 and 12: from one task, or from many.

All steps are taken in the unit coordinates u of the space and projected back. With g = d gap / d u, step size alpha:

    plain       u <- P(u + alpha g)                                                      (Alg. 1, line 12)
    momentum    m <- beta m + g;  u <- P(u + alpha m)
    normalised  u <- P(u + alpha g / |g|)
    adam        u <- P(u + alpha m_hat / (sqrt(v_hat) + eps))                            (Kingma & Ba 2015)

alpha is, for the first two, in unit coordinates per unit of the gap; for the others, a length in unit coordinates.

A step whose evaluation failed (a gap of nan) is taken back: the next one starts from the same task, without the
momentum that led astray, and is half as long. Where that does not help, a new start is drawn from the part of the
space in which the nearest task told did not fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from admrl.search.base import ADDED, Observations, Search, SobolPoints, project_unit, unit_scale
from task_families.choices import check_name, whole_number
from task_families.task_space import TaskSpace

RULES = ("plain", "momentum", "normalised", "adam")
MOMENTUM = 0.9
ADAM = (0.9, 0.999, 1e-8)
LONGEST = 1e6  # step, unit coordinates: far beyond every space
GROW, SHRINK = 1.5, 0.5  # of a climber's step after a success and after a failure
SHORTEST = 1 / 16  # of the rule's step: below it an ascent whose steps fail starts elsewhere
NUM_WAYS = 16  # other ways that a climber looks at where failure is expected
MOST_DRAWS = 1000  # of a start: the part that seems sound may be small


def check_step_size(step_size: float) -> None:
    """Refuse a step size that is not a finite number, 0 or more."""
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size: expected a finite number, 0 or more, got {step_size}")


class ProjectedAscent(Search):
    """One task that moves. Without a gradient (the first task of a training) the next task is drawn uniformly.

    Asked for n tasks at once, it is n ascents that know nothing of each other; the second and later ones start
    at uniform tasks. See the head of this page for evaluations that fail.

    In Alg. 1 the gap is the discounted return per horizon step: with alpha = 2, a gap that grows by 0.1 reward per
    step from one end of the box to the other moves the task by 0.1.
    """

    uses_gradient = True
    added_state = frozenset({"scale"})

    def __init__(
        self,
        space: TaskSpace,
        first: Tensor,
        step_size: float,
        generator: torch.Generator,
        *,
        rule: str = "plain",
    ) -> None:
        """
        Args:
            first: (1, k) where the first ascent starts.
            rule: see the head of this page.

        Raises:
            ValueError: a first task outside the space, an unknown rule, a negative step size.
        """
        super().__init__(space, generator, first)
        check_name("rule", rule, RULES)
        check_step_size(step_size)
        if len(self._waiting) != 1:
            raise ValueError(f"first: expected one task (1, {space.size}), got {len(self._waiting)}")
        self._step_size, self._rule = step_size, rule
        # ascents, one row each
        self._unit = space.to_unit(self._waiting.double())
        self._slope = torch.full_like(self._unit, torch.nan)
        self._moment, self._square = torch.zeros_like(self._unit), torch.zeros_like(self._unit)
        self._num_steps = torch.zeros(1, dtype=torch.long)
        self._scale = torch.ones(1, dtype=torch.float64)  # of the rule's step, less than 1 after failures

    @property
    def num_starts(self) -> int:
        """Ascents."""
        return len(self._unit)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        busy = set(self._tags.clamp(min=0).tolist())  # the first task is the first ascent's
        free = [i for i in range(len(self._unit)) if i not in busy][:n]
        free += range(len(self._unit), len(self._unit) + n - len(free))
        self._grow(max(free) + 1)
        return torch.cat([self._next(i) for i in free]), torch.tensor(free)

    def _grow(self, n: int) -> None:
        """At least n ascents; new ones have no task yet."""
        if (more := n - len(self._unit)) <= 0:
            return
        zeros = torch.zeros(more, self.space.size, dtype=torch.float64)
        self._unit, self._slope = torch.cat([self._unit, zeros]), torch.cat([self._slope, zeros + torch.nan])
        self._moment, self._square = torch.cat([self._moment, zeros]), torch.cat([self._square, zeros])
        self._num_steps = torch.cat([self._num_steps, torch.zeros(more, dtype=torch.long)])
        self._scale = torch.cat([self._scale, torch.ones(more, dtype=torch.float64)])

    def _next(self, i: int) -> Tensor:
        """Of ascent i, (1, k)."""
        if bool(self._slope[i].isnan().any()):  # Alg. 1, line 8
            return self._new_start()
        unit = self._unit[i] + self._scale[i] * _bounded(self._step(i))
        return self.space.from_unit(project_unit(self.space, unit))[None]  # line 12

    def _new_start(self) -> Tensor:
        """A uniform task (1, k), drawn again while the nearest task told is one that failed."""
        psi = self.space.sample(1, "uniform", self.generator)
        for _ in range(MOST_DRAWS):
            if not self.expects_failure(psi[0]):
                break
            psi = self.space.sample(1, "uniform", self.generator)
        return psi

    def _learn(self, told: Observations, tags: Tensor) -> None:
        for row, tag in enumerate(tags.tolist()):
            if tag != ADDED:  # somebody else's task does not move an ascent
                self._move(max(tag, 0), told[row : row + 1])

    def _move(self, i: int, last: Observations) -> None:
        """What ascent i learns from its task."""
        moving = not bool(self._slope[i].isnan().any())
        if not bool(last.known) and moving and float(self._scale[i]) * SHRINK >= SHORTEST:
            self._scale[i] *= SHRINK  # once more from where it stands
            self._forget(i)
        elif bool(last.gradient.isnan().any()):  # a new start
            self._slope[i], self._scale[i] = torch.nan, 1.0
            self._forget(i)
            return
        else:
            self._unit[i] = self.space.to_unit(last.psi[0])
            self._slope[i] = last.gradient[0] * unit_scale(self.space)
            self._scale[i] = min(GROW * float(self._scale[i]), 1.0)
        first, second = (MOMENTUM, 0.0) if self._rule == "momentum" else ADAM[:2]
        weight = 1.0 if self._rule == "momentum" else 1 - first
        self._moment[i] = first * self._moment[i] + weight * self._slope[i]
        self._square[i] = second * self._square[i] + (1 - second) * self._slope[i].square()
        self._num_steps[i] += 1

    def _forget(self, i: int) -> None:
        """The past of the steps of ascent i."""
        self._moment[i], self._square[i], self._num_steps[i] = 0.0, 0.0, 0

    def _step(self, i: int) -> Tensor:
        """Of ascent i, (k,), in unit coordinates."""
        if self._rule == "plain":
            return self._step_size * self._slope[i]
        if self._rule == "momentum":
            return self._step_size * self._moment[i]
        if self._rule == "normalised":
            norm = self._slope[i].norm()
            return self._step_size * self._slope[i] / torch.where(norm > 0, norm, 1.0)
        num_steps = int(self._num_steps[i])
        moment = self._moment[i] / (1 - ADAM[0] ** num_steps)
        square = self._square[i] / (1 - ADAM[1] ** num_steps)
        return self._step_size * moment / (square.sqrt() + ADAM[2])

    def _state(self) -> dict[str, Tensor]:
        return {
            "unit": self._unit,
            "slope": self._slope,
            "moment": self._moment,
            "square": self._square,
            "num_steps": self._num_steps,
            "scale": self._scale,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `TaskSearch.load_state_dict`; states of one ascent, without the leading axis, load too."""
        if (unit := state.get("own.unit")) is not None and unit.dim() == 1:
            state = {name: x[None] if name.startswith("own.") else x for name, x in state.items()}
        super().load_state_dict(state)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        if len({len(x) for x in state.values()}) != 1:
            raise ValueError("ProjectedAscent: the state's ascents do not fit together")
        self._unit, self._slope = state["unit"], state["slope"]
        self._moment, self._square = state["moment"], state["square"]
        self._num_steps, self._scale = state["num_steps"], state["scale"]


def _bounded(step: Tensor) -> Tensor:
    """A step (k,) of at most LONGEST, in the same direction: a gradient of 1e300 has no length in numbers."""
    size = step.nan_to_num(nan=torch.nan, posinf=1e300, neginf=-1e300)
    largest = size.abs().max()
    return size if float(largest) <= LONGEST else size / largest * LONGEST


class MultiStartAscent(Search):
    """Sobol tasks are screened; the best of them climb in turn, each with a step of its own.

    A climber's step (a length in unit coordinates, along its gradient) grows after a success and shrinks after a
    failure, which is taken back. Where the nearest task told failed, it takes the steepest other way that seems
    sound, along the border. A climber that came within `merge` of a higher one, or whose step has shrunk below
    `smallest`, ends; the best start that nobody has climbed from takes its place, or, where none is left, a further
    Sobol task. Without gradients, a climber steps in random directions.
    """

    uses_gradient = True

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        num_starts: int = 16,
        num_climbers: int = 4,
        step_size: float = 0.2,
        smallest: float = 0.0025,
        merge: float = 0.05,
    ) -> None:
        """
        Args:
            num_starts: Sobol tasks that are screened before the first climb.
            num_climbers: that climb at a time.
            step_size: of a new climber, in unit coordinates.

        Raises:
            ValueError: see `Search`; counts below 1, a step size that is not positive.
        """
        super().__init__(space, generator, first)
        check_step_size(step_size)
        num_starts = whole_number("num_starts", num_starts)
        num_climbers = whole_number("num_climbers", num_climbers)
        if not (step_size > 0 and smallest > 0 and merge >= 0):
            raise ValueError(
                "MultiStartAscent: expected step_size, smallest > 0, merge >= 0; got "
                f"{step_size:g}, {smallest:g}, {merge:g}"
            )
        self._num_starts, self._num_climbers = num_starts, num_climbers
        self._step_size, self._smallest, self._merge = step_size, smallest, merge
        self._sobol = SobolPoints(space, generator)
        self._starts = torch.zeros(0, dtype=torch.long)  # observations to climb from
        # climbers, one row each: observation where it stands, whether it waits for an answer
        self._at = torch.zeros(0, dtype=torch.long)
        self._busy = torch.zeros(0, dtype=torch.bool)
        self._length = torch.zeros(0, dtype=torch.float64)
        self._names = torch.zeros(0, dtype=torch.long)  # never reused: tags of what they asked
        self._counts = torch.zeros(2, dtype=torch.long)  # climbers ever made, turns taken

    def _state(self) -> dict[str, Tensor]:
        return {
            "sobol": self._sobol.state(),
            "starts": self._starts,
            "at": self._at,
            "busy": self._busy,
            "length": self._length,
            "names": self._names,
            "counts": self._counts,
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._sobol.load(state["sobol"])
        self._starts, self._at, self._busy = state["starts"], state["at"], state["busy"]
        self._length, self._names, self._counts = state["length"], state["names"], state["counts"]

    @property
    def num_starts(self) -> int:
        """Screened tasks."""
        return int(self._sobol.state()[1])

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        tasks: list[Tensor] = []
        tags: list[int] = []
        for _ in range(n):
            climber = None
            if int((self._tags == 0).sum()) + tags.count(0) + len(self.history) >= self._num_starts:
                self._recruit()
                climber = self._next_climber()
            if climber is None:
                tasks.append(self._sobol.draw(1))
                tags.append(0)
                continue
            self._busy[climber] = True
            tasks.append(self._move(climber))
            tags.append(int(self._names[climber]))
        return torch.cat(tasks), torch.tensor(tags)

    def _recruit(self) -> None:
        """Climbers for free places, from the best starts left."""
        while len(self._at) < self._num_climbers and len(self._starts):
            best = int(self.history.gap[self._starts].argmax())
            self._counts[0] += 1
            self._at = torch.cat([self._at, self._starts[best : best + 1]])
            self._busy = torch.cat([self._busy, torch.zeros(1, dtype=torch.bool)])
            self._length = torch.cat([self._length, torch.tensor([self._step_size], dtype=torch.float64)])
            self._names = torch.cat([self._names, self._counts[:1]])
            self._starts = torch.cat([self._starts[:best], self._starts[best + 1 :]])

    def _next_climber(self) -> int | None:
        """In turn; None if all wait for answers."""
        free = (~self._busy).nonzero()[:, 0].tolist()
        if not free:
            return None
        self._counts[1] += 1
        return free[int(self._counts[1]) % len(free)]

    def _move(self, climber: int) -> Tensor:
        here = self.history[int(self._at[climber])]
        slope = here.gradient * unit_scale(self.space)
        if bool(slope.isnan().any()):
            slope = torch.randn(self.space.size, generator=self.generator, dtype=torch.float64)
        norm = slope.norm()
        uphill = slope / torch.where(norm > 0, norm, 1.0)
        start, length = self.space.to_unit(here.psi), self._length[climber]

        def end(direction: Tensor) -> Tensor:
            return self.space.from_unit(project_unit(self.space, start + length * direction))[None]

        psi = end(uphill)
        if not self.expects_failure(psi[0]):
            return psi
        # along the border of what fails: the steepest way that seems sound
        others = torch.randn(NUM_WAYS, self.space.size, generator=self.generator, dtype=torch.float64)
        others = others / others.norm(dim=-1, keepdim=True)
        rise = (others @ uphill).abs()
        others = others * (others @ uphill).sign()[:, None]
        for way in others[rise.argsort(descending=True)]:
            if not self.expects_failure(end(way)[0]):
                return end(way)
        return psi

    def _learn(self, told: Observations, tags: Tensor) -> None:
        begin = len(self.history) - len(told)
        for i, tag in enumerate(tags.tolist()):
            if tag > 0:
                self._report(begin + i, tag)
            elif bool(told.known[i]):  # a screened start, or an observation from elsewhere
                self._starts = torch.cat([self._starts, torch.tensor([begin + i])])
        self._end_climbs()

    def _report(self, row: int, name: int) -> None:
        climber = int((self._names == name).nonzero()[0])
        self._busy[climber] = False
        if bool(self.history.gap[row] > self.history.gap[self._at[climber]]):  # nan is a failure
            self._at[climber] = row
            self._length[climber] = min(GROW * float(self._length[climber]), 1.0)
        else:
            self._length[climber] *= SHRINK

    def _end_climbs(self) -> None:
        if not len(self._at):
            return
        z, gap = self.space.embed(self.history.psi[self._at]), self.history.gap[self._at]
        distance = (z[:, None] - z).norm(dim=-1)
        higher = (gap[None] > gap[:, None]) | (
            (gap[None] == gap[:, None]) & (self._names[None] < self._names[:, None])
        )
        done = (self._length < self._smallest) | ((distance < self._merge) & higher).any(1)
        keep = ~done | self._busy  # one that waits for an answer ends when it comes
        self._at, self._busy = self._at[keep], self._busy[keep]
        self._length, self._names = self._length[keep], self._names[keep]
