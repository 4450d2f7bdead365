"""check_search: every search of ours passes, and searches that break one promise each are caught by that check."""

import pytest
import torch

from admrl.search import (
    SEARCHES,
    PopulationSearch,
    RandomSearch,
    ScreenedSearch,
    SearchConfig,
    check_search,
    make_search,
)
from admrl.search.conformance import CHECKS, SPACES, hidden_gap
from task_families.conformance_tools import ConformanceError

SLOW = ("gp", "botorch", "mixture", "default")  # a model is fitted for every task
OPTIONAL = {"cmaes": "cma", "botorch": "botorch"}


def maker(name):
    def make(space, generator):
        config = SearchConfig(drift=0.0, num_initial=3, num_candidates=16)
        search = make_search(name, space, generator=generator, step_size=0.2, config=config)
        if isinstance(search, ScreenedSearch):
            search.scorer = lambda psi: hidden_gap(space, psi)[0]
        if isinstance(search, PopulationSearch):
            search.prober = lambda psi: hidden_gap(space, psi)[0]
        return search

    return make


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_of_ours_passes(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    spaces = {k: SPACES[k] for k in ("box", "simplex")} if name in SLOW else SPACES
    passed = check_search(maker(name), spaces=spaces, num_steps=6 if name in SLOW else 10, name=name)
    assert passed == tuple(CHECKS)


class Outside(RandomSearch):
    def ask(self, n=1):
        return super().ask(n) + 10.0


class Fickle(RandomSearch):
    def ask(self, n=1):
        self._waiting = self._waiting[:0]
        self._tags = self._tags[:0]
        return super().ask(n)


class Forgetful(RandomSearch):
    def load_state_dict(self, state):
        generator = self.generator.get_state()
        super().load_state_dict(state)
        self.generator.set_state(generator)


class Trusting(RandomSearch):
    def best(self):
        index = int(self.history.gap.nan_to_num(nan=1e9).argmax())
        best = super().best() if self.history.known.any() else None
        return best if best is None else type(best)(best.psi, best.gap, index)


class Lenient(RandomSearch):
    def tell(self, psi, gap, gradient=None, info=None):
        if bool(torch.as_tensor(gap).isinf().any()):
            return
        super().tell(psi, gap, gradient, info)


class Greedy(RandomSearch):
    def ask(self, n=1):
        return super().ask(n).flip(0)


class Meddling(RandomSearch):
    def estimates(self):
        torch.rand(1, generator=self.generator)
        return super().estimates()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Outside, "feasible"),
        (Fickle, "repeatable"),
        (Forgetful, "resumable"),
        (Trusting, "failures"),
        (Lenient, "refusals"),
        (Greedy, "batches"),
        (Meddling, "estimates"),
    ],
)
def test_a_broken_promise_is_found(broken, check):
    with pytest.raises(ConformanceError, match=check):
        check_search(
            lambda space, generator: broken(space, None, "uniform", generator), spaces={"box": SPACES["box"]}
        )
