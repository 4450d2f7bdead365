"""Task parameters that are whole numbers or kinds, beside real ones: every search takes them as what they are."""

from functools import cache

import pytest
import torch

from admrl.config.search import SEARCHES, SearchConfig
from admrl.search import make_search
from admrl.search.conformance import go_on
from task_families import TaskBox, TaskChoice, TaskProduct
from task_families.conformance_tools import seeded

KINDS = TaskChoice(torch.eye(3), ("wood", "ice", "sand"), ("1",) * 3)  # one of three, no order among them
COUNT = TaskChoice(torch.arange(1.0, 6.0)[:, None], ("number of legs",), ("1",))
REAL = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("speed",), ("m/s",))
SPACE = TaskProduct((KINDS, COUNT, REAL))


@cache
def told(name):
    num_tasks = 8 if name == "botorch" else 16  # it is slow
    config = SearchConfig(num_candidates=8)
    first = SPACE.project(torch.tensor([[1.0, 0.0, 0.0, 3.0, 0.2]]))
    search = make_search(name, SPACE, first, generator=seeded(0), config=config, budget=num_tasks)
    # screened alone looks at the one, population alone at the other
    search.scorer = search.prober = lambda candidates: -SPACE.to_unit(candidates).sum(-1)
    return go_on(search, SPACE, num_tasks)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_proposal_is_a_kind_and_a_whole_number(name):
    tasks = told(name)
    kinds, count, real = tasks.split([3, 1, 1], dim=-1)
    assert bool(((kinds == 0) | (kinds == 1)).all()) and bool((kinds.sum(-1) == 1).all())
    assert bool((count == count.round()).all()) and count.min() >= 1 and count.max() <= 5
    assert bool((real.abs() <= 1).all())
    torch.testing.assert_close(SPACE.project(tasks), tasks)


@pytest.mark.parametrize(
    "name", [n for n in SEARCHES if n not in ("adversarial", "momentum", "normalised", "adam")]
)
def test_searches_of_the_whole_space_see_several_kinds(name):
    """All but the ascents from one task, which follow a gradient where there is one."""
    tasks = told(name)
    assert len(torch.unique(tasks[:, :3], dim=0)) >= 2 and len(torch.unique(tasks[:, 3])) >= 2
