"""Evaluations that fail, gradients beyond all bounds, many dimensions: no search is trapped or proposes nonsense."""

import math
import pickle

import numpy as np
import pytest
import torch

from admrl.search import (
    SEARCHES,
    CrossEntropySearch,
    GridSearch,
    PopulationSearch,
    ScreenedSearch,
    SearchConfig,
    make_search,
)
from admrl.search.conformance import SPACES
from admrl.search.cross_entropy import LEAST_SHARE, _balanced
from admrl.search.synthetic import bumps
from task_families import TaskBox

OPTIONAL = {"cmaes": "cma", "botorch": "botorch"}


def first_coordinate(psi):
    return psi[:, 0]


def made(name, space, seed=0, **settings):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    config = SearchConfig(drift=0.0, num_initial=4, num_candidates=8, **settings)
    search = make_search(name, space, generator=torch.Generator().manual_seed(seed), config=config)
    if isinstance(search, ScreenedSearch):
        search.scorer = first_coordinate
    if isinstance(search, PopulationSearch):
        search.prober = first_coordinate
    return search


def halved(gap, psi):
    """The gap where the first coordinate has the optimum's sign; nan in the other half of the box."""
    grid = gap.space.grid((40, 40))
    sign = grid[gap(grid).argmax(), 0].sign()
    return torch.where(psi[:, 0] * sign < 0, torch.nan, gap(psi))


@pytest.mark.parametrize(("name", "num"), [("gp", 24), ("default", 24), ("mixture", 16), ("botorch", 14)])
def test_model_based_searches_leave_what_failed_alone_and_find_the_optimum(name, num):
    """`gp` put 34 of 40 evaluations within 0.02 of one failing point."""
    gap = bumps(2, 3)
    search, failed, repeated = made(name, gap.space), [], 0
    for _ in range(num):
        psi = search.ask()
        unit = gap.space.to_unit(psi.double())
        repeated += any(float((unit - f).norm()) < 0.02 for f in failed)
        value, slope = halved(gap, psi), gap.with_gradient(psi)[1]
        search.tell(psi, value, slope)
        if bool(value.isnan()):
            failed.append(unit)
    assert repeated == 0 and len(failed) < 0.7 * num
    assert gap.share(search.best().gap) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", [s for s in SEARCHES if s not in ("botorch", "screened", "population")])
def test_half_of_the_box_failing_costs_at_most_15_points(name):
    hits = {False: 0, True: 0}
    for failing in hits:
        for seed in range(20):
            gap = bumps(2, seed)
            search = made(name, gap.space, seed)
            for _ in range(100):
                psi = search.ask()
                value = halved(gap, psi) if failing else gap(psi)
                search.tell(psi, value, gap.with_gradient(psi)[1] if search.uses_gradient else None)
                if search.history.known.any() and gap.share(search.best().gap) >= 0.99:
                    hits[failing] += 1
                    break
    assert hits[True] >= hits[False] - 3, hits


@pytest.mark.slow
def test_multistart_finds_the_best_task_at_the_border_of_what_fails():
    """The half with the optimum fails: the best task left is often at the border, where the gap is steep. With climbs
    that ended at steps of 0.01, 31 of these 40 runs found it to 1 %; with 0.0025, 35."""
    hits = 0
    for seed in range(40, 80):
        gap = bumps(2, seed)
        search, grid = made("multistart", gap.space, seed), gap.space.grid((400, 401))
        sound = halved(gap, grid).isnan()
        best = gap(grid)[sound].max() - gap.floor
        for _ in range(100):
            psi = search.ask()
            value, slope = gap.with_gradient(psi)
            search.tell(psi, torch.where(halved(gap, psi).isnan(), value, torch.nan), slope)
            if search.history.known.any() and search.best().gap - gap.floor >= 0.99 * best:
                hits += 1
                break
    assert hits >= 34, hits


def test_a_grid_does_not_ask_again_for_what_failed():
    space = SPACES["box"]
    search = GridSearch(space, torch.Generator().manual_seed(0), shape=(2, 2))
    for _ in range(4):
        psi = search.ask()
        search.tell(psi, math.nan if float(psi[0, 0]) < 0 else 1.0)
    again = torch.cat([search.ask(4)])
    assert bool((again[:, 0] > 0).all())
    everything = GridSearch(space, torch.Generator().manual_seed(0), shape=(2, 1))
    for _ in range(4):  # all failed: there is nothing else to ask for
        everything.tell(everything.ask(), math.nan)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("space_name", ["box", "simplex", "ball"])
def test_gradients_beyond_all_bounds_give_feasible_tasks(name, space_name):
    """A told gradient of 1e20 made `adversarial` ask for a nan task of the simplex."""
    space = SPACES[space_name]
    for size in (1e20, 1e300):
        if name in ("gp", "botorch", "mixture", "default") and size > 1e20:
            continue  # a model of gaps cannot hold both 1 and 1e300
        search = made(name, space)
        for i in range(4):
            psi = search.ask()
            assert torch.equal(space.check(psi), psi)
            direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[: space.size]
            search.tell(psi, float(i), (size * direction)[None])


@pytest.mark.parametrize("name", SEARCHES)
def test_numpy_counts_are_numbers_and_every_search_pickles(name):
    search = made(name, SPACES["box"])
    psi = search.ask(np.int64(1))
    search.tell(psi, 0.5)
    copy = pickle.loads(pickle.dumps(search))
    assert torch.equal(copy.ask(), search.ask())
    with pytest.raises(ValueError, match="1 or more, got 0"):
        search.ask(np.int64(0))
    with pytest.raises(ValueError, match="got True"):
        search.ask(True)


def test_weights_are_flattened_until_half_of_them_count():
    for spread in (0.0, 1.0, 30.0, 3000.0):
        weight = _balanced(spread * torch.arange(6).double())
        effective = 1 / float(weight.square().sum())
        assert effective >= LEAST_SHARE * 6 - 1e-6 and math.isclose(float(weight.sum()), 1.0)
    even = torch.tensor([0.0, 0.3, 0.1]).double()
    torch.testing.assert_close(_balanced(even), torch.softmax(even, 0))  # weights that are fine stay


@pytest.mark.parametrize("size", [6, 65, 300])
def test_cross_entropy_keeps_its_deviation_while_its_mean_is_off(size):
    """With one task left by the weights the deviation fell to its floor of 0.02; k = 300 crashed at task 144."""
    zeros = torch.zeros(size, dtype=torch.float64)
    box = TaskBox(zeros, zeros + 1, tuple(f"x{i}" for i in range(size)), ("1",) * size)
    target = 0.2 + 0.6 * torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    search = CrossEntropySearch(box, torch.Generator().manual_seed(0))
    for _ in range(400):
        psi = search.ask()
        search.tell(psi, -(psi - target).square().mean(-1))
    off = float((search._mean - target).square().mean().sqrt())
    assert float(search._variance.sqrt().mean()) > 0.3 * off
