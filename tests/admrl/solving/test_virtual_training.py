"""Virtual training and adaptation: batches, budgets, copies."""

from dataclasses import replace

import pytest
import torch

from admrl.config.training import SlboConfig, VirtualTrainingConfig
from admrl.solving.adaptation import slbo_adapt, zero_shot
from admrl.solving.rollouts import episode_returns, real_rollout, virtual_rollout
from admrl.solving.solution import new_solution
from admrl.solving.virtual_training import virtual_training, virtual_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy
from task_families import make, spawn_generators

CONFIG = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=2, num_samples=400)


def learner_with_data(family, *, num_members=2, dtype=torch.float64):
    """A small model fitted to one random-policy rollout."""
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(
        family, DynamicsConfig((16,), num_members), FitConfig(batch_size=32), generator, dtype=dtype
    )
    policy = GaussianPolicy(family.obs_size, family.act_size, (8,))
    generators = spawn_generators(generator, 1)
    start = new_solution(learner.model, family.first_psi[None], policy, CONFIG, generators)
    learner.add(real_rollout(family, start, 6, generators))
    learner.fit(5)
    return learner, policy


def generators_for(num_tasks):
    return [torch.Generator().manual_seed(100 + m) for m in range(num_tasks)]


@pytest.mark.parametrize("name", ["linear_quadratic", "hopper2d"])
def test_a_batch_of_tasks_equals_the_tasks_one_by_one(name):
    family = make(name)
    learner, policy = learner_with_data(family)
    psi = family.box.sample(5, "uniform", torch.Generator().manual_seed(1)).double()
    config = replace(CONFIG, num_samples=2 * family.horizon)
    together = zero_shot(family, learner.model, psi, policy, 2, config, generators_for(5))
    for m, generator in enumerate(generators_for(5)):
        alone = zero_shot(family, learner.model, psi[m : m + 1], policy, 2, config, [generator])
        torch.testing.assert_close(together.theta[m], alone.theta[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.weights[m], alone.weights[0], rtol=1e-6, atol=1e-6)


def test_a_task_that_fails_does_not_disturb_its_neighbours():
    """One policy starts from parameters that are not finite; the others are bit-identical to a clean batch."""
    family = make("hopper2d")
    learner, policy = learner_with_data(family)
    psi = family.box.sample(3, "uniform", torch.Generator().manual_seed(1)).double()
    clean = new_solution(learner.model, psi, policy, CONFIG, generators_for(3))
    theta = clean.theta.clone()
    theta[1] = torch.nan
    broken = replace(clean, theta=theta)
    results = [
        virtual_training(family, learner.model, s, 1, CONFIG, generators_for(3)) for s in (clean, broken)
    ]
    assert bool(results[1].theta[1].isnan().all()), "never replaced by something that looks right"
    for m in (0, 2):
        assert torch.equal(results[0].theta[m], results[1].theta[m])
        assert torch.equal(results[0].weights[m], results[1].weights[m])


def test_zero_shot_leaves_the_model_alone_and_draws_no_real_samples():
    family = make("linear_quadratic")
    learner, policy = learner_with_data(family)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    num_rows = len(learner.data[0])
    zero_shot(family, learner.model, family.first_psi[None], policy, 1, CONFIG, generators_for(1))
    assert len(learner.data[0]) == num_rows
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_zero_shot_refuses_tasks_outside_the_box():
    family = make("hopper2d")
    learner, policy = learner_with_data(family)
    with pytest.raises(ValueError, match=r"target velocity = 3 m/s of task 0 is outside \[-2, 2\]"):
        zero_shot(family, learner.model, torch.tensor([[3.0, 1.5]]), policy, 1, CONFIG, generators_for(1))
    with pytest.raises(ValueError, match="expected 2 numbers a task"):
        zero_shot(family, learner.model, torch.zeros(1, 3), policy, 1, CONFIG, generators_for(1))


def test_slbo_with_one_model_per_task_keeps_tasks_independent():
    """Two tasks with forked models equal each of them alone, data and policies."""
    family = make("linear_quadratic")
    base, policy = learner_with_data(family, num_members=1)
    psi = torch.tensor([[0.5, 0.5], [-1.0, 0.2]], dtype=torch.float64)
    slbo = SlboConfig(num_stages=1, num_iterations=1, num_samples=300)
    config = replace(CONFIG, num_model_steps=10)

    def adapt(rows):
        generators = [generators_for(2)[m] for m in rows]
        learner = base.fork([torch.Generator().manual_seed(m) for m in rows])
        start = new_solution(learner.model, psi[rows], policy, config, generators)
        return slbo_adapt(family, learner, start, slbo, config, generators), learner

    both, both_learner = adapt([0, 1])
    for m in (0, 1):
        alone, learner = adapt([m])
        assert len(both_learner.data[m]) == len(base.data[0]) + 300 == len(learner.data[0])
        torch.testing.assert_close(both_learner.data[m].obs, learner.data[0].obs, rtol=0, atol=1e-12)
        torch.testing.assert_close(both.theta[m], alone.theta[0], rtol=0, atol=1e-6)
        weights = both_learner.model.weights[0][m], learner.model.weights[0][0]
        torch.testing.assert_close(*weights, rtol=0, atol=1e-9)
    assert not torch.equal(both_learner.data[0].obs, both_learner.data[1].obs)


def test_exploration_noise_moves_the_actions_and_has_no_log_probability():
    family = make("hopper2d")
    learner, policy = learner_with_data(family)
    solution = new_solution(learner.model, family.first_psi[None], policy, CONFIG, generators_for(1))
    quiet = real_rollout(family, solution, 4, generators_for(1))
    noisy = real_rollout(family, solution, 4, generators_for(1), noise=SlboConfig(noise_scale=0.3))
    assert bool(noisy.log_prob.isnan().all()) and bool(quiet.log_prob.isfinite().all())
    assert not torch.equal(noisy.act, quiet.act)


def test_episode_returns_count_the_first_episode_alone():
    family = make("hopper2d")
    learner, policy = learner_with_data(family)
    solution = new_solution(learner.model, family.first_psi[None], policy, CONFIG, generators_for(1))
    rollout = real_rollout(family, solution, 8, generators_for(1))
    returns = episode_returns(family, solution.psi, rollout)
    psi = solution.psi[0].to(rollout.obs)
    for n in range(8):
        total = 0.0
        for t in range(family.horizon):
            step = (rollout.obs, rollout.act, rollout.next_obs)
            total += float(family.reward(psi, *(x[0, n, t] for x in step)))
            if rollout.terminated[0, n, t]:
                break
        assert float(returns[0, n]) == pytest.approx(total, rel=1e-5)


def test_bfloat16_rollouts_are_used_where_asked_for():
    """The first actions are equal, states differ in the third digit of their change."""
    family = make("hopper2d")
    learner, policy = learner_with_data(family, dtype=torch.float32)
    solution = new_solution(learner.model, family.first_psi[None], policy, CONFIG, generators_for(1))
    full, rounded = (
        virtual_rollout(family, learner.model, solution, 2, generators_for(1), precision=p)
        for p in ("full", "bfloat16")
    )
    assert torch.equal(full.act[:, :, 0], rounded.act[:, :, 0])
    error = (rounded.next_obs - full.next_obs)[:, :, 0].norm() / (full.next_obs - full.obs)[:, :, 0].norm()
    assert 0 < error < 0.02
    updates = [
        virtual_update(
            family, learner.model, solution, 2, replace(CONFIG, rollout_precision=p), generators_for(1)
        )
        for p in ("full", "bfloat16")
    ]
    assert not torch.equal(updates[0][0].theta, updates[1][0].theta)


def test_trpo_improves_the_virtual_return():
    family = make("hopper2d")
    learner, policy = learner_with_data(family, dtype=torch.float32)
    learner.fit(300)
    config = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=15, num_samples=2000)
    start = new_solution(learner.model, family.first_psi[None], policy, config, generators_for(1))
    end = virtual_training(family, learner.model, start, 1, config, generators_for(1))
    before, after = (
        virtual_update(family, learner.model, s, 10, config, generators_for(1))[1].mean_return
        for s in (start, end)
    )
    assert after > 1.2 * before
