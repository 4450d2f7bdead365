"""CMA-ES (Hansen 2016) by the optional package `cma`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.search.base import Observations, Search
from task_families.choices import whole_number
from task_families.task_space import TaskSpace


class CmaSearch(Search):
    """Generations of tasks around a moving mean, in unit coordinates; tasks outside the space are projected.

    Once converged, it starts again from a new uniform task. Its state is what it was told: a search that is loaded
    tells a new strategy the same generations again, which is exact because all its noise comes from one seed.
    Failed evaluations count as the worst of their generation.
    """

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        step_size: float = 0.6,
        population: int | None = None,
    ) -> None:
        """
        Args:
            step_size: initial standard deviation, in unit coordinates.
            population: tasks of a generation. Default: 4 + 3 log k, the package's.

        Raises:
            ImportError: `cma` is not installed; names the remedy.
            ValueError: see `Search`; a step size that is not positive, a population below 2, or k = 1.
        """
        super().__init__(space, generator, first)
        _import_cma()
        if not step_size > 0:
            raise ValueError(f"CmaSearch: expected step_size > 0, got {step_size}")
        population = None if population is None else whole_number("population", population, 2)
        if space.size < 2:
            raise ValueError("CmaSearch: expected 2 task parameters or more, got 1; use another search")
        self._step_size, self._population = step_size, population
        self._seed = int(torch.randint(1, 2**31, (1,), generator=generator))
        self._restarts = torch.zeros(0, dtype=torch.long)  # generation numbers at which it started again
        self._told = torch.zeros(0, 0, dtype=torch.float64)  # gaps of whole generations (g, population)
        self._start()

    def _start(self) -> None:
        """A new strategy and its first generation."""
        number = len(self._restarts)
        rng = np.random.default_rng([self._seed, number])
        center = self.space.from_cube(torch.from_numpy(rng.uniform(size=(1, self.space.size))))
        options: dict[str, Any] = {
            "seed": np.nan,  # its noise is ours
            "randn": _Normal(rng),
            "verbose": -9,
            "bounds": [-1, 1],
        }
        if self._population is not None:
            options["popsize"] = self._population
        start = self.space.to_unit(center)[0].clamp(-0.99, 0.99).numpy()
        self._strategy = _import_cma().CMAEvolutionStrategy(start, self._step_size, options)
        self._next_generation()

    def _next_generation(self) -> None:
        self._asked = [np.asarray(x) for x in self._strategy.ask()]
        self._gaps = torch.full((len(self._asked),), torch.inf, dtype=torch.float64)  # inf: not answered
        self._given = 0

    def _finish_generation(self) -> None:
        gaps = self._gaps.numpy()
        known = gaps[~np.isnan(gaps)]
        worst = known.min() if len(known) else 0.0
        self._strategy.tell(self._asked, list(-np.where(np.isnan(gaps), worst, gaps)))
        row = self._gaps[None]
        self._told = row if not len(self._told) else torch.cat([self._told, row])
        if self._strategy.stop():
            self._restarts = torch.cat([self._restarts, torch.tensor([len(self._told)])])
            self._start()
        else:
            self._next_generation()

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        rows = [(self._given + i) % len(self._asked) for i in range(n)]
        extra = [self._given + i >= len(self._asked) for i in range(n)]
        self._given = min(self._given + n, len(self._asked))
        unit = torch.from_numpy(np.stack([self._asked[row] for row in rows]))
        psi = self.space.from_unit(unit)
        for i, more in enumerate(extra):
            if more:  # the generation is out: further tasks are uniform, and only recorded
                psi[i] = self.space.sample(1, "uniform", self.generator)[0].to(psi)
        tags = [-1 if more else row for row, more in zip(rows, extra, strict=True)]
        return psi, torch.tensor(tags)

    def _learn(self, told: Observations, tags: Tensor) -> None:
        for tag, gap in zip(tags.tolist(), told.gap, strict=True):
            if tag >= 0:
                self._gaps[tag] = gap
        if not bool(self._gaps.isinf().any()):
            self._finish_generation()

    def _state(self) -> dict[str, Tensor]:
        counts = torch.tensor([self._seed, self._given])
        return {"told": self._told, "gaps": self._gaps, "counts": counts}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._seed = int(state["counts"][0])
        self._restarts, self._told = torch.zeros(0, dtype=torch.long), torch.zeros(0, 0).double()
        self._start()
        for gaps in state["told"]:
            self._gaps = gaps.clone()
            self._finish_generation()
        self._gaps, self._given = state["gaps"], int(state["counts"][1])


class _Normal:
    """Standard normal numbers from a generator of ours, called as numpy.random.randn is; a class, to be pickled."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def __call__(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)


def _import_cma() -> Any:
    try:
        import cma
    except ImportError as error:
        raise ImportError(
            'cmaes: the package cma is not installed; pip install "admrl[search]", or choose another search'
        ) from error
    return cma
