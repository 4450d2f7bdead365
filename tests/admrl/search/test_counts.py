"""Every count that a caller gives may be numpy's; what is no count is refused by its name, before any work."""

import numpy as np
import pytest
import torch
from search_tools import BOX, generator

from admrl.config.search import SEARCHES
from admrl.search import (
    ArchiveReplay,
    CrossEntropySearch,
    GaussianProcessSearch,
    GridSearch,
    GuidedSearch,
    MultiStartAscent,
    PopulationSearch,
    RandomSearch,
    ScreenedSearch,
    check_search,
    find_worst,
    make_search,
)
from admrl.search.botorch_search import BotorchSearch
from admrl.search.cma_es import CmaSearch
from policy_opt import conjugate_gradient, extreme_eigenvalues, lanczos_solve, minres
from policy_opt.linear_operator import check_symmetric, hutchinson_diagonal


def random_search():
    return RandomSearch(BOX, None, "uniform", generator(1))


def worst(**counts):
    """`find_worst` of a gap that must not be asked."""

    def gap(psi):
        raise AssertionError("work has begun")

    settings = {"budget": 4, "batch": 2, "num_probes": 2, "top": 1} | counts
    return find_worst(gap, BOX, random_search(), generator=generator(), **settings)


DIAGONAL, B = torch.arange(1.0, 6.0).double(), torch.ones(5).double()


def apply(v):
    return DIAGONAL * v


COUNTS = {  # name of the argument, how it is given, the least
    "grid budget": ("budget", lambda n: GridSearch(BOX, generator(), budget=n), 1),
    "gp num_initial": ("num_initial", lambda n: GaussianProcessSearch(BOX, generator(), num_initial=n), 1),
    "botorch num_initial": ("num_initial", lambda n: BotorchSearch(BOX, generator(), num_initial=n), 2),
    "guided num_initial": ("num_initial", lambda n: GuidedSearch(BOX, generator(), num_initial=n), 1),
    "guided patience": ("patience", lambda n: GuidedSearch(BOX, generator(), patience=n), 1),
    "cem batch_size": ("batch_size", lambda n: CrossEntropySearch(BOX, generator(), batch_size=n), 2),
    "cmaes population": ("population", lambda n: CmaSearch(BOX, generator(), population=n), 2),
    "multistart num_starts": ("num_starts", lambda n: MultiStartAscent(BOX, generator(), num_starts=n), 1),
    "multistart num_climbers": ("num_climbers", lambda n: MultiStartAscent(BOX, generator(), num_climbers=n), 1),
    "population": ("num_candidates", lambda n: PopulationSearch(BOX, generator(), num_candidates=n), 3),
    "screened": ("num_candidates", lambda n: ScreenedSearch(BOX, generator(), num_candidates=n), 2),
    "replay": ("capacity", lambda n: ArchiveReplay(BOX, generator(), random_search(), capacity=n), 1),
    "sample": ("n", lambda n: BOX.sample(n, "uniform", generator()), 0),
    "grid": ("grid", lambda n: BOX.grid((n, 2)), 1),
    "check_symmetric": ("num_probes", lambda n: check_symmetric(apply, B, num_probes=n), 1),
    "hutchinson": ("num_probes", lambda n: hutchinson_diagonal(apply, B, num_probes=n), 1),
    "extreme": ("num_steps", lambda n: extreme_eigenvalues(apply, B, num_steps=n), 1),
    "cg": ("max_steps", lambda n: conjugate_gradient(apply, B, max_steps=n), 0),
    "minres": ("max_steps", lambda n: minres(apply, B, max_steps=n), 0),
    "lanczos": ("max_steps", lambda n: lanczos_solve(apply, B, max_steps=n), 0),
    "restrict": ("n", lambda n: BOX.restrict(lambda psi: psi[:, 0] > 0.5).sample(n, "uniform", generator()), 0),
} | {name: ("n", lambda n, name=name: make_search(name, BOX, generator=generator(), step_size=0.1).ask(n), 1)
     for name in SEARCHES if name not in ("screened", "population")}  # fmt: skip
NONE = [True, False, 2.0, 2.5, float("nan"), "2", None, np.float64(3), np.bool_(True), [2], -1, np.int64(-7)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", COUNTS)
def test_counts(case):
    name, give, least = COUNTS[case]
    if case.startswith(("botorch", "cmaes")):
        pytest.importorskip("botorch" if case.startswith("botorch") else "cma")
    for n in (max(1, least), np.int64(max(1, least)), np.uint8(max(1, least)), np.int32(max(1, least))):
        give(n)
    optional = ("max_steps", "num_initial", "population")
    for n in [*NONE, *range(least)]:
        if n is None and name in optional:
            give(n)
            continue
        with pytest.raises(ValueError, match=rf"^{name}: expected .*(>= {least}|{least} or more|positive)"):
            give(n)


@pytest.mark.parametrize("name", ["budget", "batch", "num_probes", "top"])
def test_find_worst_refuses_before_any_work(name):
    for n in (True, 2.0, "2", -1, np.float32(1), *([] if name == "num_probes" else [0])):
        with pytest.raises(ValueError, match=rf"^{name}: expected a whole number, [01] or more, got"):
            worst(**{name: n})
    with pytest.raises(ValueError, match="num_probes: expected at most 4, the budget, got 5"):
        worst(num_probes=5)


def test_check_search_counts_its_steps():
    for n in (5, True, 6.0):
        with pytest.raises(ValueError, match="num_steps: expected a whole number, 6 or more"):
            check_search(lambda space, g: RandomSearch(space, None, "uniform", g), num_steps=n)
