"""Screening: many candidates are scored without evaluating them, one of the best is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from admrl.search.base import Observations, Search, no_tags
from admrl.search.objective import Objective
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

Scorer = Callable[[Tensor], Tensor]
"""Candidates (C, k) -> expected gaps (C,), in any unit; nan: not known."""
Polisher = Callable[[Tensor], Tensor]
"""A chosen candidate (1, k) -> a better one (1, k) near it."""


class ScreenedSearch(Search):
    """Candidates of an inner source are scored; an objective turns the scores into a choice (see `Objective`).

    Half of the candidates are uniform, half perturb the hardest tasks that were told (once there are any). `scorer`,
    and optionally `polisher`, must be set before the first choice; they are no part of the state. A share of nominal
    (uniform) tasks is evaluated without screening.
    """

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        num_candidates: int = 64,
        objective: Objective | None = None,
        nominal_share: float = 0.0,
        scorer: Scorer | None = None,
        polisher: Polisher | None = None,
    ) -> None:
        """
        Raises:
            ValueError: see `Search`; fewer than 2 candidates, a share outside [0, 1].
        """
        super().__init__(space, generator, first)
        num_candidates = whole_number("num_candidates", num_candidates, 2)
        if not 0 <= nominal_share <= 1:
            raise ValueError(f"ScreenedSearch: expected nominal_share in [0, 1], got {nominal_share}")
        self.scorer, self.polisher = scorer, polisher
        self._num_candidates, self._nominal_share = num_candidates, nominal_share
        self._objective = objective or Objective()
        self.last_screen: tuple[Tensor, Tensor] | None = None
        """Candidates (C, k) and scores (C,) of the latest choice; for display, no part of the state."""

    def candidates(self) -> Tensor:
        """(C, k): uniform tasks, and perturbations of the five hardest so far."""
        known = self.history[self.history.known]
        num_local = self._num_candidates // 2 if len(known) else 0
        psi = self.space.sample(self._num_candidates - num_local, "uniform", self.generator)
        if not num_local:
            return psi
        hardest = self.space.to_unit(known.psi[known.gap.argsort(descending=True)[:5]])
        rows = torch.randint(len(hardest), (num_local,), generator=self.generator)
        noise = torch.randn(num_local, self.space.size, generator=self.generator, dtype=torch.float64)
        near = self.space.project(self.space.from_unit(hardest[rows] + 0.2 * noise))
        return torch.cat([psi, near.to(psi)])

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        nominal = torch.rand(n, generator=self.generator) < self._nominal_share
        num_nominal = int(nominal.sum())
        tasks = [self.space.sample(num_nominal, "uniform", self.generator)] if num_nominal else []
        if num_nominal < n:
            tasks.append(self._choose(n - num_nominal))
        return torch.cat(tasks), no_tags(n)

    def _choose(self, n: int) -> Tensor:
        """n different candidates of one screening."""
        if self.scorer is None:
            raise ValueError(
                "ScreenedSearch: scorer is not set; pass scorer=, a function of candidates (C, k) that returns (C,)"
            )
        psi = self.candidates()
        score = torch.as_tensor(self.scorer(psi)).detach().double()
        if score.shape != (len(psi),):
            raise ValueError(f"scorer: expected ({len(psi)},) scores, got {tuple(score.shape)}")
        self.last_screen = (psi, score)
        known = score.isfinite()
        if int(known.sum()) < n:
            raise ValueError(
                f"scorer: {int((~known).sum())} of {len(psi)} scores are nan or infinite; expected {n} finite ones"
            )
        psi, score = psi[known], score[known]
        chosen = []
        for _ in range(n):
            row = int(torch.multinomial(self._objective.weights(score), 1, generator=self.generator))
            chosen.append(psi[row : row + 1])
            left = torch.arange(len(psi)) != row
            psi, score = psi[left], score[left]
        return torch.cat([self.polisher(task) for task in chosen] if self.polisher else chosen)

    def _learn(self, told: Observations, tags: Tensor) -> None:
        """The history is all that it remembers."""

    def _state(self) -> dict[str, Tensor]:
        return {}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing of its own."""
