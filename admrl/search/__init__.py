"""Task searchers: where the next task comes from. Ask for tasks, tell what they were like."""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.search.base import TaskSearch
from admrl.search.projected_ascent import ProjectedAscent
from admrl.search.sampling import RandomSearch
from task_families.family import TaskFamily
from task_families.registry import check_name

__all__ = ["ProjectedAscent", "RandomSearch", "TaskSearch", "make_search"]


def make_search(
    selector: str, family: TaskFamily, *, step_size: float, generator: torch.Generator
) -> TaskSearch:
    """The searcher of that name (`admrl.config.SELECTORS`), starting from the family's first task.

    Raises:
        ValueError: unknown name.
    """
    from admrl.config import SELECTORS

    check_name("selector", selector, SELECTORS)
    first: Tensor = family.first_psi[None]
    if selector == "adversarial":
        return ProjectedAscent(family.box, first, step_size, generator)
    return RandomSearch(family.box, first, selector, generator)
