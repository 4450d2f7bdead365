"""An archive of hard tasks that are visited again (prioritised level replay, Jiang et al. 2021), and mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from admrl.search.base import Observations, Search
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

NEW = 1_000_000  # tag of a task that the inner search proposed
MERGE = 0.02  # embedded coordinates: tasks nearer than this are one entry of the archive


class ArchiveReplay(Search):
    """With probability `replay_share` a task of the archive, otherwise a new one of the inner search.

    An entry's score is its last gap. Archived tasks are drawn from

        (1 - rho) P_score + rho P_stale,   P_score ~ rank^(-1/temperature),   P_stale ~ time since its last visit

    where rank 1 is the largest gap. Failed tasks do not enter the archive.
    """

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        inner: Search,
        first: Tensor | None = None,
        *,
        replay_share: float = 0.5,
        temperature: float = 0.3,
        staleness: float = 0.2,
        capacity: int = 200,
    ) -> None:
        """
        Args:
            inner: proposes new tasks; it is told of all.
            staleness: rho.
            capacity: entries; the smallest gap leaves first.

        Raises:
            ValueError: a share outside [0, 1], a temperature that is not positive, a capacity below 1.
        """
        super().__init__(space, generator, first)
        for name, value in (("replay_share", replay_share), ("staleness", staleness)):
            if not 0 <= value <= 1:
                raise ValueError(f"ArchiveReplay: expected {name} in [0, 1], got {value}")
        capacity = whole_number("capacity", capacity)
        if not temperature > 0:
            raise ValueError(f"ArchiveReplay: expected temperature > 0, got {temperature}")
        self.inner, self.uses_gradient = inner, inner.uses_gradient
        self._share, self._temperature, self._staleness = replay_share, temperature, staleness
        self._capacity = capacity
        self._archive = torch.zeros(0, space.size, dtype=torch.float64)  # (A, k)
        self._score = torch.zeros(0, dtype=torch.float64)
        self._visited = torch.zeros(0, dtype=torch.long)  # number of observations at the last visit

    def _state(self) -> dict[str, Tensor]:
        inner = {f"inner.{name}": value for name, value in self.inner.state_dict().items()}
        return {"archive": self._archive, "score": self._score, "visited": self._visited, **inner}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._archive, self._score, self._visited = state["archive"], state["score"], state["visited"]
        _load_inner(self.inner, "inner.", state)

    def probabilities(self) -> Tensor:
        """(A,) of the archived tasks."""
        rank = torch.empty(len(self._score), dtype=torch.float64)
        order = self._score.argsort(descending=True, stable=True)
        rank[order] = torch.arange(1, len(rank) + 1).double()
        by_score = rank ** (-1 / self._temperature)
        age = (len(self.history) - self._visited).double()
        by_age = age / age.sum() if float(age.sum()) > 0 else torch.full_like(age, 1 / max(1, len(age)))
        return (1 - self._staleness) * by_score / by_score.sum() + self._staleness * by_age

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        tasks, tags = [], []
        for _ in range(n):
            replay = bool(torch.rand((), generator=self.generator) < self._share)
            if replay and len(self._archive):
                row = int(torch.multinomial(self.probabilities(), 1, generator=self.generator))
                tasks.append(self._archive[row : row + 1])
                tags.append(row)
            else:
                tasks.append(self.inner.ask(len(self.inner.waiting) + 1)[-1:].double())
                tags.append(NEW)
        return torch.cat(tasks), torch.tensor(tags)

    def _learn(self, told: Observations, tags: Tensor) -> None:
        for i, tag in enumerate(tags.tolist()):
            one = told[i : i + 1]
            _pass_on(self.inner, one, asked=tag == NEW)
            if bool(one.known):
                self._store(one)

    def _store(self, one: Observations) -> None:
        z = self.space.embed(one.psi)
        near = (
            (self.space.embed(self._archive) - z).norm(dim=-1) <= MERGE
            if len(self._archive)
            else torch.zeros(0, dtype=torch.bool)
        )
        keep, now = ~near, torch.tensor([len(self.history)])
        self._archive = torch.cat([self._archive[keep], one.psi])
        self._score = torch.cat([self._score[keep], one.gap])
        self._visited = torch.cat([self._visited[keep], now])
        if len(self._score) > self._capacity:
            stay = torch.ones(len(self._score), dtype=torch.bool)
            stay[self._score.argmin()] = False
            self._archive, self._score = self._archive[stay], self._score[stay]
            self._visited = self._visited[stay]


class MixtureSearch(Search):
    """Each task from one of several searches, drawn with fixed probabilities, e.g. a share of nominal tasks.

    Every component is told of all observations.
    """

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        components: Sequence[tuple[float, Search]],
        first: Tensor | None = None,
    ) -> None:
        """
        Args:
            components: (probability, search).

        Raises:
            ValueError: no component, or probabilities that are negative or do not add up to 1.
        """
        super().__init__(space, generator, first)
        shares = [share for share, _ in components]
        if not components or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"MixtureSearch: expected probabilities that add up to 1, got {shares}")
        self._shares = torch.tensor(shares, dtype=torch.float64)
        self.components = tuple(search for _, search in components)
        self.uses_gradient = any(search.uses_gradient for search in self.components)

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": value
            for i, search in enumerate(self.components)
            for name, value in search.state_dict().items()
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        for i, search in enumerate(self.components):
            _load_inner(search, f"{i}.", state)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        tasks, tags = [], []
        for _ in range(n):
            i = int(torch.multinomial(self._shares, 1, generator=self.generator))
            tasks.append(self.components[i].ask(len(self.components[i].waiting) + 1)[-1:].double())
            tags.append(i)
        return torch.cat(tasks), torch.tensor(tags)

    def _learn(self, told: Observations, tags: Tensor) -> None:
        for row, tag in enumerate(tags.tolist()):
            for i, search in enumerate(self.components):
                _pass_on(search, told[row : row + 1], asked=tag == i)


def _pass_on(search: Search, one: Observations, *, asked: bool) -> None:
    """Tell a search of one observation of the outer one."""
    gradient = None if bool(one.gradient.isnan().any()) else one.gradient
    info = {"standard_error": one.standard_error}
    if asked:
        search.tell(one.psi, one.gap, gradient, info)
    else:
        search.add(one.psi, one.gap, gradient, info)


def _load_inner(search: Search, prefix: str, state: Mapping[str, Tensor]) -> None:
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    search.load_state_dict(inner)
