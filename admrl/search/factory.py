"""make_search: a search by its name, with the settings that the trainer and the command line offer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from admrl.config.search import SEARCHES, SearchConfig
from admrl.search.base import Search
from admrl.search.bayesian import GaussianProcessSearch
from admrl.search.botorch_search import BotorchSearch
from admrl.search.cma_es import CmaSearch
from admrl.search.cross_entropy import CrossEntropySearch
from admrl.search.guided import GuidedSearch
from admrl.search.objective import Objective
from admrl.search.own import OwnSearch
from admrl.search.population import PopulationSearch
from admrl.search.projected_ascent import MultiStartAscent, ProjectedAscent
from admrl.search.replay import ArchiveReplay, MixtureSearch
from admrl.search.sampling import GridSearch, RandomSearch
from admrl.search.screened import ScreenedSearch
from task_families.choices import check_name
from task_families.task_space import TaskSpace


def make_search(
    name: str | OwnSearch,
    space: TaskSpace,
    first: Tensor | None = None,
    *,
    generator: torch.Generator,
    step_size: float = 2.0,
    config: SearchConfig | None = None,
    budget: int = 100,
) -> Search:
    """The search of that name (`admrl.config.search.SEARCHES`).

    Args:
        name: or one of the user's own, see `admrl.search.own.named_search`.
        first: (1, k) the first task; ascent from one task needs it, and is given a uniform one without.
        generator: of all random choices; components of one search share it.
        step_size: alpha of plain ascent and of momentum, unit coordinates per unit of the gap.
        config: everything else. Default: `SearchConfig` for gaps that stay as they are (no drift, and 2 k + 2 Sobol
            tasks before the first model).
        budget: evaluations that are planned; the grid is as fine as they allow.

    Raises:
        ValueError: unknown name, a first task outside the space, a setting outside its range.
        ImportError: the search's optional package is not installed; names the remedy.
    """
    c = config or SearchConfig(drift=0.0, num_initial=None)
    if isinstance(name, OwnSearch):
        return name(space, generator, first=first, config=c, step_size=step_size, budget=budget)
    check_name("selector", name, SEARCHES)
    return _makers(space, first, generator, step_size, c, budget)[name]()


def uses_gradient(name: str, space: TaskSpace, config: SearchConfig) -> bool:
    """Whether the search of that name is told gradients; one of the user's own, whose code is not run, may be."""
    if name not in SEARCHES:
        return True
    return make_search(name, space, generator=torch.Generator(), config=config).uses_gradient


def _makers(
    space: TaskSpace,
    first: Tensor | None,
    generator: torch.Generator,
    step_size: float,
    c: SearchConfig,
    budget: int,
) -> dict[str, Callable[[], Search]]:
    """What makes the search of each name; see `make_search`."""

    def ascent(rule: str, size: float) -> Callable[[], Search]:
        def made() -> Search:
            start = space.sample(1, "uniform", generator) if first is None else first
            return ProjectedAscent(space, start, size, generator, rule=rule)

        return made

    def nominal() -> Search:
        return RandomSearch(space, None, "uniform", generator)

    def mixture() -> Search:
        rest = GuidedSearch(space, generator, drift=c.drift, num_initial=c.num_initial)
        parts = ((c.nominal_share, nominal()), (1 - c.nominal_share, rest))
        return MixtureSearch(space, generator, parts, first)

    objective = Objective(c.objective, c.alpha, c.temperature)
    return {
        "adversarial": ascent("plain", step_size),
        "momentum": ascent("momentum", step_size),
        "normalised": ascent("normalised", c.step_length),
        "adam": ascent("adam", c.step_length),
        "multistart": lambda: MultiStartAscent(space, generator, first, step_size=c.step_length),
        "uniform": lambda: RandomSearch(space, first, "uniform", generator),
        "gaussian": lambda: RandomSearch(space, first, "gaussian", generator),
        "gaussian_task": lambda: RandomSearch(space, first, "gaussian_task", generator),
        "grid": lambda: GridSearch(space, generator, first, budget=budget),
        "cem": lambda: CrossEntropySearch(
            space, generator, first, alpha=c.alpha, nominal_share=min(c.nominal_share, 0.99)
        ),
        "cmaes": lambda: CmaSearch(space, generator, first),
        "gp": lambda: GaussianProcessSearch(
            space, generator, first, drift=c.drift, num_initial=c.num_initial
        ),
        "botorch": lambda: BotorchSearch(space, generator, first, num_initial=c.num_initial),
        "replay": lambda: ArchiveReplay(space, generator, nominal(), first, replay_share=c.replay_share),
        "mixture": mixture,
        "screened": lambda: _screened(space, generator, first, c, objective),
        "population": lambda: _population(space, generator, first, c),
        "default": lambda: GuidedSearch(space, generator, first, drift=c.drift, num_initial=c.num_initial),
    }


def _screened(
    space: TaskSpace, generator: torch.Generator, first: Tensor | None, c: SearchConfig, objective: Objective
) -> ScreenedSearch:
    return ScreenedSearch(
        space,
        generator,
        first,
        num_candidates=c.num_candidates,
        objective=objective,
        nominal_share=c.nominal_share,
    )


def _population(
    space: TaskSpace, generator: torch.Generator, first: Tensor | None, c: SearchConfig
) -> PopulationSearch:
    return PopulationSearch(
        space,
        generator,
        first,
        num_candidates=c.population_size,
        min_distance=c.population_distance,
        nominal_share=c.nominal_share,
        decay=c.archive_decay,
        polish_step=c.step_length if c.population_polish else None,
    )
