"""`steps_per_lane`: lanes that go on from update to update, against a count lane by lane; what must not change."""

from dataclasses import replace

import pytest
import torch
from fault_tools import SMALL, SignalAt, assert_same_run, fingerprint, small_run, train

from admrl.config.checks import check_steps_per_lane, nearest_divisor
from admrl.config.presets import PRESETS, fitted
from admrl.config.training import VirtualTrainingConfig, check_sample_counts
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.solving.lanes import Lanes
from admrl.solving.rollouts import real_rollout, virtual_continuation
from admrl.solving.solution import new_solution
from admrl.solving.solution_file import dump_solution, load_solution
from admrl.solving.virtual_training import new_lanes, virtual_training, virtual_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from dynamics.virtual_env import VirtualEnv
from policy_opt import GaussianPolicy
from task_families import make, spawn_generators
from task_families.rollout import Rollout, collect

CONFIG = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=5, num_samples=800)


def fitted_learner(family, dtype=torch.float64):
    """A small model fitted to one random-policy rollout."""
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(
        family, DynamicsConfig((16,), 2), FitConfig(batch_size=32), generator, dtype=dtype
    )
    learner.add(real_rollout(family, start(family, learner, 1), 6, spawn_generators(generator, 1)))
    learner.fit(5)
    return learner


def generators(num_tasks):
    return [torch.Generator().manual_seed(100 + m) for m in range(num_tasks)]


def start(family, learner, num_tasks):
    psi = family.box.sample(num_tasks, "uniform", torch.Generator().manual_seed(1)).double()
    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))
    return new_solution(learner.model, psi, policy, CONFIG, generators(num_tasks))


# --- where lanes stand --------------------------------------------------------------------------------------


def counted(lanes, rewards, ends, usable, horizon):
    """One lane at a time, one step at a time: ages, totals, starts, whole, and the returns of every task."""
    num_tasks, num_lanes, num_steps = rewards.shape
    returns = [[] for _ in range(num_tasks)]
    stand = {}
    for m in range(num_tasks):
        for n in range(num_lanes):
            sound = bool(usable[m, n].all())
            age, total = int(lanes.age[m, n]), float(lanes.total[m, n])
            whole = bool(lanes.is_whole[m, n])
            fresh = False
            for t in range(num_steps):
                age, total, fresh = age + 1, total + float(rewards[m, n, t]), False
                if ends[m, n, t]:
                    if whole and sound:
                        returns[m].append(total)
                    age, total, whole, fresh = 0, 0.0, True, True
            if not fresh and age + num_steps > horizon:
                if whole and sound:
                    returns[m].append(total * horizon / age)
                fresh = True
            if fresh or not usable[m, n, -1]:
                age, total, whole, fresh = 0, 0.0, True, True
            stand[m, n] = (age, total, whole and (sound or fresh), fresh)
    means = [sum(r) / len(r) if r else float("nan") for r in returns]
    return stand, means


@pytest.mark.parametrize("seed", range(6))
def test_ages_and_returns_are_those_of_a_count_lane_by_lane(seed):
    generator = torch.Generator().manual_seed(seed)
    num_tasks, num_lanes, num_steps, horizon = 3, 8, 5, 20
    lanes = Lanes.new(torch.zeros(num_tasks, num_lanes, 2), 2, num_steps, horizon)
    assert lanes.age[0].tolist() == [0, 5, 10, 15] * 2 and bool(lanes.starts.all())
    assert lanes.is_whole[0].tolist() == [True, False, False, False] * 2
    num_known = 0
    for _ in range(12):
        rewards = torch.randn(num_tasks, num_lanes, num_steps, generator=generator, dtype=torch.float64)
        ends = torch.rand(rewards.shape, generator=generator) < (0.1 if seed % 2 else 0.0)
        usable = torch.rand(rewards.shape, generator=generator) > (0.02 if seed > 3 else -1)
        usable = usable.cummin(-1).values  # what broke down stays so until an end; here until the last step
        obs = torch.randn(*rewards.shape, 2, generator=generator)
        rollout = Rollout(obs, obs, obs, rewards, ends, torch.zeros_like(ends))
        stand, means = counted(lanes, rewards, ends, usable, horizon)
        lanes, returns = lanes.after(rollout, rewards, usable, horizon)
        num_known += int(returns.isfinite().sum())
        torch.testing.assert_close(returns, torch.tensor(means).double(), equal_nan=True)
        for (m, n), (age, total, whole, fresh) in stand.items():
            assert int(lanes.age[m, n]) == age and bool(lanes.starts[m, n]) is fresh
            assert bool(lanes.is_whole[m, n]) is whole
            if usable[m, n].all():
                assert float(lanes.total[m, n]) == pytest.approx(total)
            expected = torch.zeros(2) if fresh else obs[m, n, -1]
            assert torch.equal(lanes.obs[m, n], expected)
    assert num_known > 10


def test_what_is_not_finite_stays_in_its_lane():
    lanes = Lanes.new(torch.zeros(1, 2, 1), 1, 2, 4)
    obs = torch.zeros(1, 2, 2, 1)
    obs[0, 1] = torch.nan
    reward = torch.ones(1, 2, 2) + obs[..., 0]
    none = torch.zeros(1, 2, 2, dtype=torch.bool)
    for known in (None, 4.0):
        lanes, returns = lanes.after(
            Rollout(obs, obs, obs, reward, none, none), reward, obs[..., 0].isfinite(), 4
        )
        assert float(returns) == known if known else bool(returns.isnan())
        assert all(bool(x.isfinite().all()) for x in vars(lanes).values()) and bool(lanes.starts[0, 1])


def test_steps_of_several_updates_are_one_long_rollout():
    """Of lanes that all begin at 0, with one deterministic policy."""
    family = make("linear_quadratic")
    model = fitted_learner(family).model
    shape, parts = (2, 4), []

    def act(t, obs):
        return torch.tanh(obs[..., : family.act_size]), obs[..., 0]

    whole = collect(VirtualEnv(model, family, shape), family, act, 20, generators(2))
    lanes, obs = None, None
    for _ in range(4):
        env = VirtualEnv(model, family, shape)
        if lanes is not None:
            env.reset(torch.ones(shape, dtype=torch.bool), obs.flatten(0, 1))
        goes_on = None if lanes is None else (torch.zeros(shape, dtype=torch.bool), obs)
        part = collect(env, family, act, 5, generators(2), goes_on=goes_on)
        parts.append(part)
        lanes, obs = part, part.next_obs[:, :, -1]
        assert bool(part.truncated[..., -1].all()) and not bool(part.truncated[..., :-1].any())
    assert torch.equal(torch.cat([p.obs for p in parts], 2), whole.obs)
    assert torch.equal(torch.cat([p.next_obs for p in parts], 2), whole.next_obs)


def test_lanes_that_start_take_start_states_and_the_others_go_on():
    family = make("hopper2d")
    learner = fitted_learner(family)
    solution = start(family, learner, 2)
    lanes = new_lanes(solution, family, 2, replace(CONFIG, steps_per_lane=20))
    obs = 10 + torch.rand(lanes.obs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    starts = torch.rand(obs.shape[:2], generator=torch.Generator().manual_seed(4)) < 0.5
    part = virtual_continuation(
        family, learner.model, solution, replace(lanes, obs=obs, starts=starts), 20, generators(2)
    )
    assert torch.equal(part.obs[:, :, 0][~starts], obs[~starts])
    assert bool((part.obs[:, :, 0][starts] < 5).all()) and 0 < int(starts.sum()) < starts.numel()


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_quadratic", "hopper2d"])
def test_as_many_steps_as_the_horizon_are_whole_episodes_bit_by_bit(name):
    family = make(name)
    learner = fitted_learner(family)
    num_samples = 4 * family.horizon
    ends = [
        virtual_training(
            family, learner.model, start(family, learner, 2), 1,
            replace(CONFIG, num_samples=num_samples, steps_per_lane=steps), generators(2),
        )
        for steps in (None, family.horizon)
    ]  # fmt: skip
    assert torch.equal(ends[0].theta, ends[1].theta) and torch.equal(ends[0].weights, ends[1].weights)


@pytest.mark.parametrize("patience", [None, 6])
def test_a_batch_of_tasks_is_the_tasks_one_by_one(patience):
    """Also where some have ended before the others."""
    family = make("linear_quadratic")
    learner = fitted_learner(family)
    config = replace(CONFIG, steps_per_lane=family.horizon // 5, patience=patience)
    first = start(family, learner, 3)
    together = virtual_training(family, learner.model, first, 4, config, generators(3))
    assert together.lanes is None
    for m in range(3):
        one = first.tasks(slice(m, m + 1))
        alone = virtual_training(family, learner.model, one, 4, config, generators(3)[m : m + 1])
        torch.testing.assert_close(together.theta[m], alone.theta[0], rtol=0, atol=1e-8)


def test_a_single_update_starts_lanes_or_goes_on_with_them():
    family = make("linear_quadratic")
    learner = fitted_learner(family)
    config, noise = replace(CONFIG, steps_per_lane=family.horizon // 2), generators(2)
    first, _ = virtual_update(family, learner.model, start(family, learner, 2), 4, config, noise)
    assert bool((first.lanes.age[~first.lanes.starts] == family.horizon // 2).all())
    second, report = virtual_update(family, learner.model, first, 4, config, noise)
    assert bool((second.lanes.age[~second.lanes.starts] == family.horizon // 2).all())
    assert bool(second.lanes.starts.ne(first.lanes.starts).all()) and bool(report.returns.isfinite().all())


def test_the_return_in_the_model_grows():
    family = make("hopper2d")
    learner = fitted_learner(family, dtype=torch.float32)
    learner.fit(300)
    config = replace(CONFIG, num_policy_updates=20, num_samples=2000, steps_per_lane=40)
    returns = []

    class Listener(SignalAt):
        def advance(self, **metrics):
            returns.append(metrics["return_model"])

    first = start(family, learner, 1)
    first = replace(first, psi=first.psi.float(), theta=first.theta.float(), weights=first.weights.float())
    virtual_training(family, learner.model, first, 1, config, generators(1), reporter=Listener(0))
    known = [r for r in returns if r == r]
    assert len(known) > 10 and known[-1] > 1.2 * known[0]


LANES = replace(SMALL, num_tasks=2, num_zero_shot=4, virtual=replace(SMALL.virtual, steps_per_lane=5))


def test_a_training_that_is_interrupted_goes_on_bit_by_bit(tmp_path):
    family = make("linear_quadratic")
    config = replace(LANES, virtual=replace(LANES.virtual, steps_per_lane=family.horizon // 4))
    whole = small_run(tmp_path / "whole", config=config)
    train(whole, every=1e6)
    expected = fingerprint(whole)
    for step in range(1, len(expected["metrics"][1:]), 2):
        path = small_run(tmp_path / f"run-{step}", config=config)
        with pytest.raises(Interrupted), deferred_signals():
            train(path, every=1e6, reporter=SignalAt(step))
        train(path, every=1e6)
        assert_same_run(expected, fingerprint(path))


def test_files_keep_them_and_refuse_others():
    family = make("linear_quadratic")
    learner = fitted_learner(family)
    solution = start(family, learner, 2)
    config = replace(CONFIG, steps_per_lane=family.horizon // 2)
    solution = replace(solution, lanes=new_lanes(solution, family, 2, config))
    tensors = dump_solution("s", solution)
    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))

    def load(**changed):
        return load_solution("s", {**tensors, **changed}, family, policy, config.value, 2, torch.float64)

    again = load().lanes
    assert all(torch.equal(v, vars(again)[k]) for k, v in vars(solution.lanes).items())
    for name, bad in (("age", solution.lanes.age + family.horizon), ("starts", solution.lanes.starts[:, :1])):
        with pytest.raises(ValueError, match=name):
            load(**{f"s.lanes.{name}": bad})
    other = replace(solution, lanes=new_lanes(solution, family, 2, replace(config, num_samples=400)))
    for wrong in (other, replace(solution, lanes=None)):
        with pytest.raises(ValueError, match="where its lanes stand after 3 updates"):
            virtual_training(family, learner.model, wrong, 1, config, generators(2), num_done=3)


# --- settings -----------------------------------------------------------------------------------------------


def test_only_divisors_of_the_horizon_and_a_patience_that_sees_a_return():
    assert check_steps_per_lane(None, 200) == 200 and check_steps_per_lane(40, 200) == 40
    with pytest.raises(ValueError, match=r"divisor of the horizon \(200\), got 30; nearest: 25"):
        check_steps_per_lane(30, 200)
    assert [nearest_divisor(n, 150) for n in (40, 1, 150, 1000)] == [50, 1, 150, 150]
    laptop = PRESETS["laptop"]
    with pytest.raises(ValueError, match="more than 5, because"):
        check_sample_counts(
            replace(laptop, virtual=replace(laptop.virtual, steps_per_lane=40, patience=5)), 200
        )
    check_sample_counts(replace(laptop, virtual=replace(laptop.virtual, steps_per_lane=40, patience=6)), 200)
    check_sample_counts(replace(laptop, virtual=replace(laptop.virtual, patience=1)), 200)


def test_the_defaults_steps_are_fitted_to_the_horizon():
    own = replace(PRESETS["laptop"], virtual=replace(PRESETS["laptop"].virtual, steps_per_lane=40))
    config, notes = fitted(own, own, 150, "laptop")
    assert config.virtual.steps_per_lane == 50
    assert any("`config.virtual.steps_per_lane` 40 -> 50" in note for note in notes)
    mine = replace(own, virtual=replace(own.virtual, steps_per_lane=30))
    assert fitted(mine, own, 150, "laptop")[0].virtual.steps_per_lane == 30
