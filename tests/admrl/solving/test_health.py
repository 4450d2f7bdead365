"""`admrl.solving.health`: every fault is seen, reported, confined; what is not affected stays bit-identical."""

import json
import math
from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, small_run

from admrl.gradient import task_gradient
from admrl.jobs.reporter import Silent
from admrl.solving.health import DIVERGED, fit_or_restore
from admrl.solving.solution import new_solution
from admrl.solving.virtual_training import virtual_training
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, train_run
from admrl.training.state import new_state
from dynamics import DynamicsConfig, FitConfig, ModelLearner, fit
from dynamics.ensemble import STATE_LIMIT
from dynamics.virtual_env import VirtualEnv
from policy_opt import GaussianPolicy
from policy_opt.value import ValueFunction
from task_families import make, spawn_generators
from task_families.linear_quadratic import LinearQuadratic

VIRTUAL = replace(SMALL.virtual, num_model_steps=0, num_samples=800)  # 8 lanes of 100 steps


def full(*cases):
    """Parameters that run with -m faults alone."""
    return [pytest.param(case, marks=pytest.mark.faults) for case in cases]


class Events(Silent):
    def __init__(self):
        self.events, self.metrics = [], []

    def event(self, message):
        self.events.append(message)

    def advance(self, **metrics):
        self.metrics.append(metrics)


def learner_of(family, held_out=0.25, **fit_config):
    generator = torch.Generator().manual_seed(0)
    config = FitConfig(batch_size=32, held_out=held_out, **fit_config)
    learner = ModelLearner.make(family, DynamicsConfig((16,), 2), config, generator)
    from admrl.solving.rollouts import real_rollout

    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))
    start = new_solution(learner.model, family.first_psi[None].float(), policy, VIRTUAL, [generator])
    learner.add(real_rollout(family, start, 8, [generator]))
    learner.fit(20)
    return learner


def solve(family, learner, reporter):
    """Three tasks in one batch, two updates."""
    psi = family.box.sample(3, "uniform", torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(m) for m in range(3)]
    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))
    start = new_solution(learner.model, psi.float(), policy, VIRTUAL, generators)
    end = virtual_training(family, learner.model, start, 1, VIRTUAL, generators, reporter=reporter)
    return start, end


def assert_only_task_1_differs(clean, faulty):
    for name in ("theta", "weights"):
        one, other = getattr(clean, name), getattr(faulty, name)
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2]), "a neighbour changed"
        assert not torch.equal(one[1], other[1])
        assert bool(other.isfinite().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, "limit"])
@pytest.mark.parametrize("at", [50, *full(1, 2, 99, 100)])
def test_a_broken_prediction_shortens_its_lane_and_nothing_else(monkeypatch, value, at):
    """Lane 3 of task 1 breaks down at one step of 100; the rest of the task still improves its policy."""
    family = make("linear_quadratic")
    learner = learner_of(family)
    start, clean = solve(family, learner, Events())
    step, clock = VirtualEnv.step, {}

    def broken_step(env, act):
        obs = step(env, act).clone()
        t = clock[env] = clock.get(env, 0) + 1
        if t == at:
            mean, std = (getattr(env._model.obs_normalizer, n)[0] for n in ("mean", "std"))
            obs[1, 3] = mean + STATE_LIMIT * std if value == "limit" else value
        env._obs = obs
        return obs

    monkeypatch.setattr(VirtualEnv, "step", broken_step)
    reporter = Events()
    _, faulty = solve(family, learner, reporter)
    assert_only_task_1_differs(clean, faulty)
    assert not torch.equal(faulty.theta[1], start.theta[1]), "the update was made"
    assert "1 lanes broke down and were cut short" in reporter.events[0]
    assert all(math.isfinite(m["return_model"]) for m in reporter.metrics)


class PoisonedRewards(LinearQuadratic):
    """Rewards of one task are not finite."""

    poisoned, poison = None, math.nan

    def reward(self, psi, obs, act, next_obs):
        reward = super().reward(psi, obs, act, next_obs)
        if self.poisoned is None:
            return reward
        mine = (psi == self.poisoned.to(psi)).all(-1).expand_as(reward)
        return torch.where(mine, self.poison, reward)


@pytest.mark.parametrize("poison", [math.nan, *full(math.inf, -math.inf)])
def test_rewards_of_one_task_skip_its_updates_and_nothing_else(poison):
    family = PoisonedRewards()
    learner = learner_of(family)
    start, clean = solve(family, learner, Events())
    family.poisoned, family.poison, reporter = start.psi[1], poison, Events()
    _, faulty = solve(family, learner, reporter)
    assert_only_task_1_differs(clean, faulty)
    assert torch.equal(faulty.theta[1], start.theta[1]) and torch.equal(faulty.weights[1], start.weights[1])
    assert "1 updates skipped" in reporter.events[0]
    assert reporter.metrics[0]["rejected"] == 1 and math.isfinite(reporter.metrics[0]["return_model"])


def test_a_value_function_that_is_not_finite_stays_as_it_was(monkeypatch):
    family = make("linear_quadratic")
    learner = learner_of(family)
    start, clean = solve(family, learner, Events())
    original = ValueFunction.fit

    def broken_fit(self, features, target):
        weights = original(self, features, target)
        weights[1] = torch.nan
        return weights

    monkeypatch.setattr(ValueFunction, "fit", broken_fit)
    reporter = Events()
    _, faulty = solve(family, learner, reporter)
    assert_only_task_1_differs(clean, faulty)
    assert torch.equal(faulty.weights[1], start.weights[1])
    assert "1 value functions were not finite" in reporter.events[0]


@pytest.mark.parametrize("steps", [(1, 3), *full((0,), (4,), (0, 1, 2, 3))])
def test_one_members_gradient_leaves_its_step_out_and_nothing_else(monkeypatch, steps):
    """Member 1's loss is not finite in some steps of 5; member 0 is bit-identical."""
    family = make("linear_quadratic")
    results = []
    for poisoned in ((), steps):
        learner, calls = learner_of(family), []
        loss = fit.multi_step_loss

        def faulty_loss(*arguments, calls=calls, poisoned=poisoned, loss=loss):
            calls.append(1)
            value = loss(*arguments)
            factor = torch.ones_like(value)
            factor[0, 1] = torch.nan if len(calls) - 1 in poisoned else 1.0
            return value * factor

        with monkeypatch.context() as patch:
            patch.setattr(fit, "multi_step_loss", faulty_loss)
            report = learner.fit(5)
        assert report.num_skipped.tolist() == [[0, len(poisoned)]]
        assert bool(report.loss.isfinite())
        results.append(learner)
    clean, faulty = (list(learner.model.parameters()) for learner in results)
    assert all(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(clean, faulty, strict=True))
    assert not all(torch.equal(a[:, 1], b[:, 1]) for a, b in zip(clean, faulty, strict=True))
    assert all(bool(p.isfinite().all()) for p in faulty)


def test_a_fit_that_diverges_is_undone_for_the_members_that_did(monkeypatch):
    """Member 0 is thrown far away after the fit: it is restored, member 1 keeps its fit."""
    family = make("linear_quadratic")
    learner, honest = learner_of(family), learner_of(family)
    before = [p.detach().clone() for p in learner.model.parameters()]
    honest.fit(5)
    original = ModelLearner.fit

    def explode(self, num_steps):
        report = original(self, num_steps)
        with torch.no_grad():
            self.model.weights[-1][:, 0] += 1e4
        return report

    monkeypatch.setattr(ModelLearner, "fit", explode)
    reporter = Events()
    fit_or_restore(learner, 5, reporter)
    assert "the fit diverged in 1 of 2 members" in reporter.events[0]
    for old, new, good in zip(before, learner.model.parameters(), honest.model.parameters(), strict=True):
        assert torch.equal(new[:, 0], old[:, 0]) and torch.equal(new[:, 1], good[:, 1])
    assert bool((learner.held_out_loss() < DIVERGED).all())


def test_a_sound_fit_is_what_it_was_without_the_check():
    family = make("linear_quadratic")
    checked, plain, reporter = learner_of(family), learner_of(family), Events()
    loss = fit_or_restore(checked, 5, reporter)
    assert loss == float(plain.fit(5).loss.mean()) and reporter.events == []
    for a, b in zip(checked.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["optimal", "implicit", *full("adapted")])
def test_a_task_gradient_that_is_not_finite_is_left_out_and_recorded(tmp_path, part):
    def broken(*arguments, **keywords):
        gradient = task_gradient(*arguments, **keywords)
        return replace(gradient, **{part: getattr(gradient, part) * math.nan})

    family = make("linear_quadratic")
    config = replace(SMALL, num_tasks=2)
    state = new_state(family, "adversarial", config, seed=3)
    reporter = Events()
    meta_train(family, state, config, reporter=reporter, estimate_gradient=broken)
    family.box.check(state.search.ask())
    assert any("task gradient is not finite; its implicit part is ignored" in e for e in reporter.events)
    drawn = any("the next task is drawn at random" in e for e in reporter.events)
    assert drawn == (part != "implicit"), "without the implicit part there is a direction"
    record = state.records[1].to_dict()
    assert record["gradient"][part] == [None, None]
    json.dumps(record, allow_nan=False)


def test_a_parameter_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=1))
    train_run(Run.resume(path), Silent())
    run = Run.open(path)
    with torch.no_grad():
        run.state.learner.model.weights[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"model\.weights\.0 is not finite"):
        run.save()
    assert Run.open(path).notes == []


def test_real_simulations_that_break_down_are_left_out_and_counted(tmp_path, monkeypatch):
    """A lane of the real simulator observes nan: the run goes on, returns average the other lanes."""
    from admrl.solving import rollouts

    family, config = make("linear_quadratic"), replace(SMALL, num_tasks=2)
    collect = rollouts.collect

    def unstable(simulator, *arguments):
        rollout = collect(simulator, *arguments)
        if isinstance(simulator, VirtualEnv):
            return rollout
        rollout.next_obs[0, 0, 30] = math.nan
        return rollout

    monkeypatch.setattr(rollouts, "collect", unstable)
    state, reporter = new_state(family, "adversarial", config, seed=3), Events()
    meta_train(family, state, config, reporter=reporter)
    assert sum("1 simulations became unstable" in e for e in reporter.events) >= 4
    assert all(math.isfinite(r.return_star) for r in state.records)
    assert all(bool(p.isfinite().all()) for p in state.learner.model.parameters())
    assert bool(state.learner.data[0].next_obs.isfinite().all())


def test_spawned_generators_are_what_the_batch_needs():
    """The neighbours above really draw from generators of their own."""
    a, b = spawn_generators(torch.Generator().manual_seed(0), 2)
    assert not torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
