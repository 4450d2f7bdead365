"""Task searchers: where the next task comes from. Ask for tasks, tell what they were like.

Usable with any black-box gap; nothing here knows of trainers or simulators.

Everything is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admrl.config.search import SEARCHES, SearchConfig
    from admrl.search.base import Best, Observations, Search, TaskSearch
    from admrl.search.bayesian import GaussianProcessSearch
    from admrl.search.botorch_search import BotorchSearch
    from admrl.search.cma_es import CmaSearch
    from admrl.search.conformance import check_search
    from admrl.search.cross_entropy import CrossEntropySearch
    from admrl.search.factory import make_search
    from admrl.search.guided import GuidedSearch
    from admrl.search.objective import Objective, scaled_gap, scaled_gradient
    from admrl.search.population import PopulationSearch
    from admrl.search.projected_ascent import MultiStartAscent, ProjectedAscent
    from admrl.search.replay import ArchiveReplay, MixtureSearch
    from admrl.search.sampling import GridSearch, RandomSearch
    from admrl.search.screened import ScreenedSearch
    from admrl.search.storage import load_search, save_search
    from admrl.search.worst import MassBound, WorstReport, WorstTask, find_worst, mass_bound

_EXPORTS = {
    "ArchiveReplay": "admrl.search.replay",
    "Best": "admrl.search.base",
    "BotorchSearch": "admrl.search.botorch_search",
    "CmaSearch": "admrl.search.cma_es",
    "CrossEntropySearch": "admrl.search.cross_entropy",
    "GaussianProcessSearch": "admrl.search.bayesian",
    "GridSearch": "admrl.search.sampling",
    "GuidedSearch": "admrl.search.guided",
    "MassBound": "admrl.search.worst",
    "MixtureSearch": "admrl.search.replay",
    "MultiStartAscent": "admrl.search.projected_ascent",
    "Objective": "admrl.search.objective",
    "Observations": "admrl.search.base",
    "PopulationSearch": "admrl.search.population",
    "ProjectedAscent": "admrl.search.projected_ascent",
    "RandomSearch": "admrl.search.sampling",
    "ScreenedSearch": "admrl.search.screened",
    "SEARCHES": "admrl.config.search",
    "Search": "admrl.search.base",
    "SearchConfig": "admrl.config.search",
    "TaskSearch": "admrl.search.base",
    "WorstReport": "admrl.search.worst",
    "WorstTask": "admrl.search.worst",
    "find_worst": "admrl.search.worst",
    "load_search": "admrl.search.storage",
    "make_search": "admrl.search.factory",
    "check_search": "admrl.search.conformance",
    "mass_bound": "admrl.search.worst",
    "save_search": "admrl.search.storage",
    "scaled_gap": "admrl.search.objective",
    "scaled_gradient": "admrl.search.objective",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
