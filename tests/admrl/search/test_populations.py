"""Populations, replay, mixtures and grids against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from search_tools import BOX, generator

from admrl.search import (
    ArchiveReplay,
    CrossEntropySearch,
    GridSearch,
    MixtureSearch,
    RandomSearch,
    make_search,
)
from task_families import TaskBox


def test_cross_entropy_aims_at_the_tail():
    """Gap = a uniform coordinate. Its 20 % tail is [0.8, 1] with mean 0.9, its 1 % tail has mean 0.995."""
    for alpha, low, high in ((0.2, 0.85, 0.95), (0.01, 0.95, 1.0)):
        search = CrossEntropySearch(BOX, generator(2), alpha=alpha, batch_size=60)
        for _ in range(20):
            psi = search.ask(60)
            search.tell(psi, psi[:, 0])
        mean = search.distribution.mean
        assert low < float(mean[0]) < high
        assert abs(float(mean[1]) - 0.5) < 0.25  # the other coordinate does not matter


def test_cross_entropy_draws_its_own_distribution():
    search = CrossEntropySearch(BOX, generator(4), nominal_share=0.0)
    search._mean, search._variance = torch.tensor([0.3, 0.7]).double(), torch.tensor([0.01, 0.04]).double()
    cube = (search.ask(4000) / torch.tensor([1.0, 4.0])).double()
    # standard errors of 4000 draws: 0.003 of the mean, 3 % of the variance
    torch.testing.assert_close(cube.mean(0), search._mean, atol=0.012, rtol=0)
    torch.testing.assert_close(cube.var(0), search._variance, atol=0, rtol=0.15)


def unit_box(size):
    low, high = torch.zeros(size).double(), torch.ones(size).double()
    return TaskBox(low, high, tuple(f"x{i}" for i in range(size)), ("1",) * size)


@pytest.mark.parametrize(("size", "reached"), [(6, 0.02), (65, 0.1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_cross_entropy_approaches_an_optimum_in_many_dimensions(size, reached, seed):
    """A quadratic whose optimum is 0.17 off in every coordinate, 1000 evaluations. The best of as many uniform tasks
    is 0.09 off (k = 6; root mean square over coordinates) or 0.26 (k = 65)."""
    optimum = 0.5 + 0.17 * torch.randn(size, generator=generator(1000 + seed)).sign().double()
    search = CrossEntropySearch(unit_box(size), generator(seed))
    for _ in range(84):
        psi = search.ask(12)
        search.tell(psi, -(psi - optimum).square().sum(1))
    offset = float((search.distribution.mean - optimum).square().mean().sqrt())
    assert offset < reached
    assert float((search.best().psi - optimum).square().mean().sqrt()) < reached
    assert float(search.distribution.variance.mean().sqrt()) > 0.3 * offset, "it has not collapsed on its way"


def test_an_update_in_many_dimensions_by_hand():
    """Four tasks, the better two of weight log 2.5 and log 1.25; with k = 4 the mean's rate is 1/2 x 0.7 mu / 2."""
    search = CrossEntropySearch(unit_box(4), generator(), soft_update=0.5, batch_size=4)
    cube = torch.full((4, 4), 0.5).double()
    cube[0, 0], cube[1, 1] = 0.9, 0.1
    search._climb(cube, 4)
    a, b = (x / (math.log(2.5) + math.log(1.25)) for x in (math.log(2.5), math.log(1.25)))
    rate = 0.5 * min(1, 0.7 / (a * a + b * b) / 2)
    expected = torch.tensor([0.5 + rate * a * 0.4, 0.5 - rate * b * 0.4, 0.5, 0.5]).double()
    torch.testing.assert_close(search._mean, expected)
    ratio = 12 * torch.tensor([a * 0.16, b * 0.16, 0, 0]).double()
    common, own = 1 + 0.5 * (ratio.mean() - 1), 0.5 / 4
    torch.testing.assert_close(search._variance, ((1 - own) * common + own * ratio) / 12)
    before = search._mean.clone()
    search._climb(cube.flip(0), 1)  # all but one failed: it counts alone
    assert bool((search._mean - 0.5).abs().sum() < (before - 0.5).abs().sum())


def test_cross_entropy_in_very_many_dimensions_stays_finite():
    search = CrossEntropySearch(unit_box(300), generator())
    for step in range(20):
        psi = search.ask(12)
        gap = -(psi - 1).square().sum(1)  # the optimum is a corner
        gap[:6] = torch.nan if step % 2 else gap[:6]
        search.tell(psi, gap)
    assert bool(psi.isfinite().all()) and float(search.distribution.mean.mean()) > 0.51


def test_replay_probabilities_by_hand():
    search = ArchiveReplay(
        BOX, generator(), RandomSearch(BOX, None, "uniform", generator(1)), temperature=0.5, staleness=0.25
    )
    tasks = torch.tensor([[0.1, 1.0], [0.5, 2.0], [0.9, 3.0]]).double()
    for task, gap in zip(tasks, (2.0, 5.0, 1.0), strict=True):
        search.add(task[None], gap)
    # ranks 2, 1, 3 with exponent -2: 1/4, 1, 1/9; ages 2, 1, 0
    score = np.array([1 / 4, 1, 1 / 9])
    expected = 0.75 * score / score.sum() + 0.25 * np.array([2, 1, 0]) / 3
    np.testing.assert_allclose(search.probabilities().numpy(), expected, rtol=1e-12)
    search.add(tasks[1:2], -3.0)  # visited again: its score is the last gap
    assert len(search.probabilities()) == 3 and float(search._score[-1]) == -3.0
    search.add(tasks[:1], math.nan)
    assert len(search.probabilities()) == 3


def test_replay_share_and_capacity():
    inner = RandomSearch(BOX, None, "uniform", generator(1))
    search = ArchiveReplay(BOX, generator(), inner, replay_share=0.3, capacity=20)
    num_again = 0
    for _ in range(600):
        psi = search.ask()
        again = len(search.history) and bool((search.history.psi - psi).abs().amax(1).min() < 1e-12)
        num_again += bool(again)
        search.tell(psi, float(psi[0, 0]))
    assert abs(num_again / 600 - 0.3) < 0.06  # three standard errors
    assert len(search._score) == 20 and float(search._score.min()) > 0.8


def test_mixture_has_its_shares_and_tells_everybody():
    parts = (
        (0.25, RandomSearch(BOX, None, "uniform", generator(1))),
        (0.75, GridSearch(BOX, generator(2), shape=(2, 2))),
    )
    search = MixtureSearch(BOX, generator(), parts)
    for _ in range(400):
        psi = search.ask()
        search.tell(psi, 0.0)
    corners = ((search.history.psi == BOX.low) | (search.history.psi == BOX.high)).all(1)
    assert abs(float(corners.double().mean()) - 0.75) < 0.07  # three standard errors
    assert all(len(component.history) == 400 for component in search.components)


@pytest.mark.parametrize("name", ["mixture", "replay"])
def test_inner_searches_are_told_how_noisy_every_gap_is(name):
    """Also of the tasks that another one proposed: a gap without an error counts as exact."""
    search = make_search(name, BOX, generator=generator())
    for i in range(8):
        search.tell(search.ask(), float(i), None, {"standard_error": [0.1 * (1 + i)]})
    for inner in search.components if isinstance(search, MixtureSearch) else (search.inner,):
        assert torch.equal(inner.history.standard_error, search.history.standard_error)


def test_grid_covers_before_it_repeats():
    search = GridSearch(BOX, generator(), shape=(3, 4))
    first, again = search.ask(12), search.ask(24)[12:]
    assert len(torch.unique(first, dim=0)) == 12
    assert torch.equal(first, again)


def test_grid_by_name_is_as_fine_as_the_budget_allows():
    """12 x 12 for 144 to 168 evaluations of two parameters."""
    for budget, points in ((144, 144), (168, 144), (169, 169)):
        search = make_search("grid", BOX, generator=generator(), budget=budget)
        assert len(torch.unique(search.ask(budget), dim=0)) == points
