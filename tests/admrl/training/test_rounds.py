"""Rounds of B tasks: one model and one set of data, B policies."""

from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, SignalAt, assert_same_run, fingerprint, small_run, train

from admrl.config.training import num_gradient_episodes, per_task
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.training.meta_training import meta_train
from admrl.training.run import Run
from admrl.training.state import new_state
from task_families import make

PAIRS = replace(SMALL, num_tasks=4, tasks_per_round=2)


@pytest.mark.parametrize("selector", ["adversarial", "uniform"])
def test_a_round_costs_as_many_real_samples_as_a_task(selector):
    family = make("linear_quadratic")
    one = replace(PAIRS, num_tasks=2, tasks_per_round=1)
    states = [meta_train(family, new_state(family, selector, c, seed=0), c) for c in (one, PAIRS)]
    # but for what `resolve` scores, or is drawn in its place: that is each task's own
    resolve = num_gradient_episodes(one.gradient, 2) - 2 * one.gradient.num_extra_episodes
    more = states[1].samples.real - states[0].samples.real
    assert more == resolve * family.horizon
    assert states[1].samples.real == len(states[1].learner.data[0])


def test_a_screened_round_trains_on_different_tasks():
    state = new_state(make("linear_quadratic"), "screened", PAIRS, seed=0)
    meta_train(make("linear_quadratic"), state, PAIRS)
    assert len(state.search.history.psi.unique(dim=0)) == 4


def test_each_task_of_a_round_is_recorded():
    family = make("linear_quadratic")
    told = []
    state = new_state(family, "adversarial", PAIRS, seed=0)
    meta_train(family, state, PAIRS, on_task=lambda s: told.append(len(s.search.history)))
    assert told == [2, 4]  # once a round
    assert [record.index for record in state.records] == [0, 1, 2, 3]
    assert [record.return_hat is None for record in state.records] == [True, True, False, False]
    psi = torch.tensor([record.psi for record in state.records])
    torch.testing.assert_close(state.search.history.psi.float(), psi, atol=1e-6, rtol=0)
    assert len(psi.unique(dim=0)) == 4
    assert bool(state.search.history.known[2:].all()) and not bool(state.search.history.known[:2].any())
    gradients = [torch.tensor(record.gradient["total"]) for record in state.records[2:]]
    assert not torch.equal(*gradients)


@pytest.mark.parametrize("step", [1, 6, 10, 18, 19])
def test_stopping_within_a_round_and_going_on_gives_the_same(tmp_path, whole, step):
    path = small_run(tmp_path / "run", config=PAIRS)
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(step))
    assert Run.open(path).checkpoint.meta["log"]["num_rows"] == step
    train(path, every=1e6)
    assert_same_run(whole, fingerprint(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, told by its fingerprint."""
    path = small_run(tmp_path_factory.mktemp("whole") / "run", config=PAIRS)
    train(path)
    return fingerprint(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(PAIRS, num_tasks=5), "config.num_tasks: expected a multiple of .* nearest: 4"),
        (replace(PAIRS, slbo=replace(SMALL.slbo, num_samples=100)), "config.slbo.num_samples"),
        (replace(PAIRS, slbo=replace(SMALL.slbo, num_samples=201)), "config.slbo.num_samples: .*nearest"),
        (replace(PAIRS, gradient=replace(SMALL.gradient, num_samples=400)), "at least 800"),
        (
            replace(
                PAIRS,
                tasks_per_round=4,
                slbo=replace(SMALL.slbo, num_samples=400),
                gradient=replace(SMALL.gradient, num_samples=1600, num_extra_episodes=4),
                search=replace(SMALL.search, num_candidates=3),
            ),
            "num_candidates: expected at least `config.tasks_per_round`",
        ),
    ],
)
def test_rounds_that_cannot_be_shared_are_refused_before_any_work(config, message):
    selector = "screened" if "candidates" in message else "uniform"
    with pytest.raises(ValueError, match=message):
        new_state(make("linear_quadratic"), selector, config, seed=0)


def test_one_task_a_round_is_the_configuration_itself():
    assert per_task(SMALL) == SMALL
