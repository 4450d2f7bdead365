"""The default search: expected improvement over the whole space; where it stalls, climbs from tasks left aside.

1. Sobol tasks, then expected improvement of a Gaussian process with gradients (`GaussianProcessSearch`).
2. Once the best gap has not grown for `patience` evaluations, three turns of four go to a *climber*: it starts at the
   best task that is far from everything climbed before, and moves to the maximum of the model inside a trust region
   around it, a box in unit coordinates that grows after a success and shrinks after a failure.
3. A climber ends where its region is small or where it has reached an earlier summit; then the next one starts.

Where gaps are noisy there are no climbs: a climber takes luck for a summit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from admrl.search.base import Observations, project_unit
from admrl.search.bayesian import POLISH_STEPS, GaussianProcessSearch, climb
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

CLIMB = 1  # note about a climber's task
RADIUS, SMALLEST, GROW, SHRINK = 0.4, 0.03, 1.5, 0.4  # of the trust region, half-width in unit coordinates
FAR = 0.25  # embedded coordinates per sqrt(k): how far a new climber starts from every climbed task
MERGE = 0.05  # per sqrt(k): nearer than this is the same summit
NUM_INSIDE = 64  # candidates inside the trust region


class GuidedSearch(GaussianProcessSearch):
    """See the head of this page."""

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        num_initial: int | None = None,
        drift: float = 0.0,
        patience: int = 4,
    ) -> None:
        """
        Args:
            num_initial, drift: see `GaussianProcessSearch`.
            patience: evaluations without a larger gap until climbs begin.

        Raises:
            ValueError: see `GaussianProcessSearch`; a patience below 1.
        """
        super().__init__(space, generator, first, num_initial=num_initial, drift=drift)
        patience = whole_number("patience", patience)
        self._patience = patience
        self._since_best, self._turn = 0, 0
        self._top = -torch.inf
        self._at, self._busy, self._radius = -1, False, RADIUS  # observation where the climber stands, or -1
        self._climbed = torch.zeros(0, dtype=torch.long)  # observations that climbs went through

    def _state(self) -> dict[str, Tensor]:
        own = {
            "climber": torch.tensor([self._since_best, self._turn, self._at, int(self._busy)]),
            "radius": torch.tensor([self._radius, self._top], dtype=torch.float64),
            "climbed": self._climbed,
        }
        return {**super()._state(), **own}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        super()._load(state)
        self._since_best, self._turn, self._at, busy = state["climber"].tolist()
        self._busy, self._climbed = bool(busy), state["climbed"]
        self._radius, self._top = state["radius"].tolist()

    def _propose_one(self, waiting: Tensor) -> tuple[Tensor, int]:
        task = self._climb_on(waiting) if self._climb_is_due() else None
        return super()._propose_one(waiting) if task is None else (task, CLIMB)

    def _climb_is_due(self) -> bool:
        if self._since_best < self._patience or self._busy or self.is_noisy:
            return False
        self._turn += 1
        return self._turn % 4 != 0

    def _climb_on(self, waiting: Tensor) -> Tensor | None:
        """The climber's next task (1, k); None if there is nowhere to start."""
        known = self.history[self.history.known]
        if len(known) < 2 or len(self.history) < self._num_initial:
            return None
        if self._at < 0 and not self._start():
            return None
        self._busy = True
        posterior = self.posterior(waiting)
        center = self.space.to_unit(self.history.psi[self._at])
        low, high = center - self._radius, center + self._radius

        def inside(unit: Tensor) -> Tensor:
            return project_unit(self.space, unit.clamp(low, high))

        def mean(unit: Tensor) -> Tensor:
            return posterior(self.space.embed(self.space.from_unit(unit)))[0]

        noise = torch.rand(NUM_INSIDE, self.space.size, generator=self.generator, dtype=torch.float64)
        candidates = inside(torch.cat([center[None], center + self._radius * (2 * noise - 1)]))
        with torch.no_grad():
            order = mean(candidates).argsort(descending=True)
        unit = climb(mean, inside, candidates[order[:4]], POLISH_STEPS)
        with torch.no_grad():
            best = unit[mean(unit).argmax()]
        return self.space.from_unit(best)[None]

    def _start(self) -> bool:
        """Put the climber on the best task that is far from everything climbed, if there is one."""
        z, gap = self.space.embed(self.history.psi), self.history.gap.nan_to_num(nan=-torch.inf)
        touched = torch.cat([self._climbed, gap.argmax()[None]])
        far = torch.cdist(z, z[touched]).amin(1) > FAR * self.space.size**0.5
        gap = torch.where(far, gap, -torch.inf)
        if not bool(gap.isfinite().any()):
            return False
        self._at, self._radius = int(gap.argmax()), RADIUS
        self._climbed = torch.cat([self._climbed, torch.tensor([self._at])])
        return True

    def _learn(self, told: Observations, tags: Tensor) -> None:
        begin = len(self.history) - len(told)
        for i, tag in enumerate(tags.tolist()):
            known = self.history[: begin + i + 1][self.history.known[: begin + i + 1]]
            gap = float(told.gap[i])
            better = len(known) > 0 and gap > self._top + float(self._margin(known))
            self._since_best = 0 if better else self._since_best + 1
            if gap > self._top:
                self._top = gap
            if tag == CLIMB:
                self._report(begin + i)

    def _report(self, row: int) -> None:
        self._busy = False
        known = self.history[self.history.known]
        climbed = self.history.gap[row] - self.history.gap[self._at]
        self._climbed = torch.cat([self._climbed, torch.tensor([row])])
        if bool(climbed > self._margin(known)):
            self._at, self._radius = row, min(GROW * self._radius, 1.0)
        else:
            self._radius *= SHRINK
        others = self._climbed[self.history.gap[self._climbed] > self.history.gap[self._at]]
        z = self.space.embed(self.history.psi)
        met = (
            len(others) > 0
            and float((z[others] - z[self._at]).norm(dim=-1).min()) < MERGE * self.space.size**0.5
        )
        if self._radius < SMALLEST or met:
            self._at = -1
