"""Samples are counted by the code that draws them: whoever listens, the numbers are the same."""

from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL

from admrl import meta_train, new_state, slbo_adapt, zero_shot
from admrl.jobs.reporter import Silent
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import make_policy
from task_families import make

FAMILY = make("linear_quadratic")


class Deaf(Silent):
    """Loses everything that it is told."""

    def advance(self, **metrics):
        metrics.clear()


class Keeps(Silent):
    """The last of every metric."""

    def __init__(self):
        self.last = {}

    def advance(self, **metrics):
        self.last |= metrics


@pytest.mark.parametrize("selector", ["adversarial", "uniform", "screened", "population"])
def test_a_reporter_that_does_nothing_changes_no_number(selector):
    config, states, keeps = replace(SMALL, num_tasks=2), [], Keeps()
    for reporter in (Deaf(), keeps, None):
        state = new_state(FAMILY, selector, config, seed=0)
        meta_train(FAMILY, state, config, reporter=reporter)
        states.append(state)
    assert len({(s.samples.real, s.samples.virtual) for s in states}) == 1
    first = states[0]
    assert first.samples.real == len(first.learner.data[0]), "no simulation broke down here"
    assert [s.records for s in states[1:]] == [first.records] * 2
    # what a listener is told are the totals, as far as they had come
    assert 0 < keeps.last["virtual_samples"] <= first.samples.virtual
    assert 0 < keeps.last["real_samples"] <= first.samples.real


def test_counts_by_hand():
    state = new_state(FAMILY, "uniform", SMALL, seed=0)
    meta_train(FAMILY, state, replace(SMALL, num_tasks=1))
    policy, psi, counts = make_policy(FAMILY, SMALL), FAMILY.box.grid((2, 2)), SampleCounts()
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    virtual = SMALL.virtual  # two updates of 400 samples an iteration
    learner = state.learner
    solution = zero_shot(FAMILY, learner.model, psi, policy, 3, virtual, generators, samples=counts)
    assert counts == SampleCounts(real=0, virtual=4 * 3 * 2 * 400)
    slbo_adapt(FAMILY, learner, solution, SMALL.slbo, virtual, generators, samples=counts)
    # two stages of 200 real samples a task, each followed by two iterations
    assert counts == SampleCounts(real=4 * 2 * 200, virtual=4 * (3 + 2 * 2) * 2 * 400)
