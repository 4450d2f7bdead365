"""Task searchers: where the next task comes from. Ask for tasks, tell what they were like."""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.config import SELECTORS
from admrl.search.base import TaskSearch
from admrl.search.projected_ascent import ProjectedAscent
from admrl.search.sampling import RandomSearch
from task_families.family import TaskBox
from task_families.registry import check_name

__all__ = ["ProjectedAscent", "RandomSearch", "TaskSearch", "make_search"]


def make_search(
    selector: str, box: TaskBox, first: Tensor, *, step_size: float, generator: torch.Generator
) -> TaskSearch:
    """The searcher of that name (`admrl.config.SELECTORS`), starting from the task first (1, k).

    Raises:
        ValueError: unknown name.
    """
    check_name("selector", selector, SELECTORS)
    if selector == "adversarial":
        return ProjectedAscent(box, first, step_size, generator)
    return RandomSearch(box, first, selector, generator)
