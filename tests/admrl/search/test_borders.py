"""Searches where the optimum lies on the border of what fails."""

import pytest
import torch
from search_tools import generator

from admrl.search import CrossEntropySearch, MultiStartAscent
from task_families import TaskBox

BOX = TaskBox(torch.zeros(2).double(), torch.ones(2).double(), ("x", "y"), ("1", "1"))
SLOPE = torch.tensor([[2.0, 1.0]]).double()
BORDER = 0.6  # evaluations with x > 0.6 fail: the feasible optimum of 2 x + y is 2.2 at (0.6, 1)


def explored(search, num):
    """The failures among num evaluations, in order."""
    failed = []
    for _ in range(num):
        psi = search.ask()
        gap = (psi * SLOPE).sum(-1)
        failed.append(bool(psi[0, 0] > BORDER))
        gap[psi[:, 0] > BORDER] = torch.nan
        search.tell(psi, gap, SLOPE if search.uses_gradient else None)
    return failed


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_does_not_spend_its_draws_on_what_fails(seed):
    """Its mean comes near the border, behind which are half of its draws."""
    search = CrossEntropySearch(BOX, generator(seed))
    failed = explored(search, 150)
    assert float(search.distribution.mean[0]) > 0.45
    assert sum(failed[50:]) < 25


def test_what_fails_is_expected_by_the_nearest_tasks():
    search = CrossEntropySearch(BOX, generator())
    assert not search.expects_failure(torch.tensor([0.5, 0.5]))  # nothing is known
    search.add(torch.tensor([[0.0, 0.0]]).double(), torch.nan)
    assert not search.expects_failure(torch.tensor([0.0, 0.0]))  # nothing is known to be better
    search.add(torch.tensor([[1.0, 0.0]]).double(), 1.0)
    assert search.expects_failure(torch.tensor([0.4, 0.5])) and not search.expects_failure(
        torch.tensor([0.6, 0.0])
    )


def test_climbers_follow_the_border_of_what_fails():
    """Uphill leads into what fails; stepping back alone stays near where the climb met the border."""
    found, failures = [], []
    for seed in range(10):
        first = torch.tensor([[0.58, 0.1]]).double()
        search = MultiStartAscent(BOX, generator(seed), first, num_starts=3, num_climbers=1)
        failures.append(sum(explored(search, 60)))
        found.append(search.best().gap > 2.19)  # of 2.2
    assert sum(found) >= 9  # one may climb into a corner of what it has seen
    assert max(failures) < 36  # by stepping back alone
