"""Task searchers: where the next task comes from. Ask for tasks, tell what they were like.

Usable with any black-box gap; nothing here knows of trainers or simulators.
"""

from __future__ import annotations

from admrl.search.base import Best, Observations, Search, TaskSearch
from admrl.search.bayesian import GaussianProcessSearch
from admrl.search.botorch_search import BotorchSearch
from admrl.search.cma_es import CmaSearch
from admrl.search.cross_entropy import CrossEntropySearch
from admrl.search.factory import make_search
from admrl.search.guided import GuidedSearch
from admrl.search.objective import Objective, scaled_gap, scaled_gradient
from admrl.search.projected_ascent import MultiStartAscent, ProjectedAscent
from admrl.search.replay import ArchiveReplay, MixtureSearch
from admrl.search.sampling import GridSearch, RandomSearch
from admrl.search.screened import ScreenedSearch
from admrl.search.storage import load_search, save_search
from admrl.search.worst import MassBound, WorstReport, WorstTask, find_worst, mass_bound
from admrl.search_config import SEARCHES, SearchConfig

__all__ = [
    "ArchiveReplay",
    "Best",
    "BotorchSearch",
    "CmaSearch",
    "CrossEntropySearch",
    "GaussianProcessSearch",
    "GridSearch",
    "GuidedSearch",
    "MassBound",
    "MixtureSearch",
    "MultiStartAscent",
    "Objective",
    "Observations",
    "ProjectedAscent",
    "RandomSearch",
    "ScreenedSearch",
    "SEARCHES",
    "Search",
    "SearchConfig",
    "TaskSearch",
    "WorstReport",
    "WorstTask",
    "find_worst",
    "load_search",
    "make_search",
    "mass_bound",
    "save_search",
    "scaled_gap",
    "scaled_gradient",
]
