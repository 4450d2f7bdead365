"""`patience`: virtual trainings that end where the return in the model no longer grows, task by task."""

from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, SignalAt, assert_same_run, fingerprint, small_run, train

from admrl.config.training import VirtualTrainingConfig
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.solving import virtual_training as module
from admrl.solving.health import UpdateReport
from admrl.solving.rollouts import real_rollout
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import new_solution
from admrl.solving.virtual_training import virtual_training
from admrl.training.run import Run
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy
from task_families import make, spawn_generators

CONFIG = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=5, num_samples=400)
FAMILY = make("linear_quadratic")


@pytest.fixture(scope="module")
def learner():
    """A small model fitted to one random-policy rollout."""
    generator = torch.Generator().manual_seed(0)
    fit = FitConfig(batch_size=32)
    learner = ModelLearner.make(FAMILY, DynamicsConfig((16,), 2), fit, generator, dtype=torch.float64)
    learner.add(real_rollout(FAMILY, start(learner, 1), 6, spawn_generators(generator, 1)))
    learner.fit(5)
    return learner


def generators(num_tasks):
    return [torch.Generator().manual_seed(100 + m) for m in range(num_tasks)]


def start(learner, num_tasks):
    psi = FAMILY.box.sample(num_tasks, "uniform", torch.Generator().manual_seed(1)).double()
    policy = GaussianPolicy(FAMILY.obs_size, FAMILY.act_size, (8,))
    return new_solution(learner.model, psi, policy, CONFIG, generators(num_tasks))


def scripted(monkeypatch, script):
    """Updates whose returns are told: script[m] of task m, one after the other, the last one again and again."""
    count = [0] * len(script)

    def update(family, model, solution, num_lanes, config, gens):
        rows = [solution.psi[i].tolist() for i in range(len(solution.psi))]
        returns = []
        for row in rows:
            m = names.index(row)
            returns.append(script[m][min(count[m], len(script[m]) - 1)])
            count[m] += 1
        yes = torch.ones(len(rows), dtype=torch.bool)
        none = torch.zeros(len(rows), dtype=torch.long)
        report = UpdateReport(torch.tensor(returns), yes, none, ~yes, ~yes)
        return replace(solution, theta=solution.theta + 1), report

    names = []
    monkeypatch.setattr(module, "virtual_update", update)
    return names, count


def ran(learner, monkeypatch, script, patience, num_iterations=4):
    """Updates of every task, the counts, the solution and the steps that were reported."""
    names, count = scripted(monkeypatch, script)
    first, samples, steps = start(learner, len(script)), SampleCounts(), []
    names += first.psi.tolist()
    solution = virtual_training(
        FAMILY, learner.model, first, num_iterations, replace(CONFIG, patience=patience),
        generators(len(script)), samples=samples, on_step=lambda n, s: steps.append(n),
    )  # fmt: skip
    moved = (solution.theta - first.theta).mean(1).round().int().tolist()
    assert moved == count  # a task that has ended keeps its policy
    assert solution.patience is None
    return count, samples, steps


@pytest.mark.parametrize("patience", [1, 3, 7])
def test_a_flat_return_ends_after_exactly_so_many_updates_since_the_first(learner, monkeypatch, patience):
    count, samples, steps = ran(learner, monkeypatch, [[-2.0]], patience)
    assert count == [1 + patience] and steps == list(range(1, 2 + patience))
    assert samples.virtual == (1 + patience) * 400 and samples.saved == (20 - 1 - patience) * 400


def test_a_return_that_grows_goes_on_to_the_end(learner, monkeypatch):
    count, samples, _ = ran(learner, monkeypatch, [[float(i) for i in range(30)]], 1)
    assert count == [20] and samples == SampleCounts(0, 20 * 400, 0)


def test_the_last_growth_counts_and_what_is_not_known_is_none(learner, monkeypatch):
    nan = float("nan")
    assert ran(learner, monkeypatch, [[1.0, 3.0, 2.0, 3.0, 4.0, nan, 4.0]], 3)[0] == [8]  # best: the fifth
    assert ran(learner, monkeypatch, [[nan, nan, -5.0, -5.0]], 2)[0] == [2]


def test_tasks_end_one_by_one_and_only_what_was_drawn_is_counted(learner, monkeypatch):
    growing = [float(i) for i in range(30)]
    count, samples, steps = ran(learner, monkeypatch, [[0.0], growing, [0.0, 1.0, 0.0]], 2)
    assert count == [3, 20, 4] and len(steps) == 20
    assert samples.virtual == 27 * 400 and samples.saved == 33 * 400


def test_without_patience_the_numbers_are_those_of_a_patience_that_never_ends_it(learner):
    answers = []
    for patience in (None, 1000):
        samples = SampleCounts()
        config = replace(CONFIG, patience=patience)
        answers.append(
            virtual_training(
                FAMILY, learner.model, start(learner, 2), 2, config, generators(2), samples=samples
            )
        )
        assert samples == SampleCounts(0, 2 * 10 * 400, 0)
    assert torch.equal(answers[0].theta, answers[1].theta)
    assert torch.equal(answers[0].weights, answers[1].weights)


def test_a_task_that_goes_on_has_the_numbers_that_it_has_alone(learner):
    config = replace(CONFIG, patience=1)
    whole, first = SampleCounts(), start(learner, 4)
    together = virtual_training(FAMILY, learner.model, first, 4, config, generators(4), samples=whole)
    assert whole.saved > 0 and whole.virtual + whole.saved == 4 * 20 * 400
    drawn = 0
    for m in range(4):
        alone = SampleCounts()
        one = virtual_training(
            FAMILY, learner.model, first.tasks(slice(m, m + 1)), 4, config, generators(4)[m : m + 1],
            samples=alone,
        )  # fmt: skip
        torch.testing.assert_close(together.theta[m], one.theta[0], rtol=0, atol=1e-9)
        drawn += alone.virtual
    assert drawn == whole.virtual


def test_a_model_for_each_task_is_refused(learner):
    forked = learner.fork(generators(2))
    with pytest.raises(ValueError, match=r"virtual\.patience: expected None where each of several tasks"):
        virtual_training(
            FAMILY, forked.model, start(forked, 2), 1, replace(CONFIG, patience=2), generators(2)
        )


PATIENT = replace(SMALL, num_tasks=2, num_zero_shot=4, virtual=replace(SMALL.virtual, patience=1))


def test_a_training_that_is_interrupted_goes_on_bit_by_bit(tmp_path):
    whole = small_run(tmp_path / "whole", config=PATIENT)
    train(whole, every=1e6)
    expected, state = fingerprint(whole), Run.open(whole).state
    assert state.samples.saved > 0 and expected["meta"]["saved_samples"] == state.samples.saved
    rows = expected["metrics"][1:]
    for step in range(1, len(rows), 2):
        path = small_run(tmp_path / f"run-{step}", config=PATIENT)
        with pytest.raises(Interrupted), deferred_signals():
            train(path, every=1e6, reporter=SignalAt(step))
        train(path, every=1e6)
        assert_same_run(expected, fingerprint(path))


def test_whoever_uses_the_model_does_all_updates_that_were_asked_for(tmp_path):
    path = small_run(tmp_path / "run", config=PATIENT)
    train(path, every=1e6)
    run = Run.open(path)
    assert run.info.config.virtual.patience == 1 and run.virtual.patience is None
    assert run.virtual == replace(PATIENT.virtual, patience=None)
