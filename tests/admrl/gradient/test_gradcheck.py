"""Checking the estimators of the task gradient, and what that rests on: control variates and random directions."""

import json

import numpy as np
import pytest
import torch
from exact_problem import affine_model, double, sample
from gradient_tools import draws

from admrl.config.presets import PRESETS
from admrl.config.training import ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient.check import CheckPlan, SolvedTask, Truth, check_gradient, solve_task
from admrl.gradient.control_variate import controlled_means, controlled_replicates, lane_statistics, replay
from admrl.gradient.resolve import _directions, resolve
from admrl.reports.gradient_checks import plot_gradient_checks, quantile
from admrl.solving.rollouts import virtual_rollout
from admrl.solving.solution import Solution, make_policy
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state
from dynamics import DynamicsConfig, DynamicsEnsemble
from task_families import make, spawn_generators

# -- control variates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worth", [0.98, 0.8, 0.0])
def test_controlled_mean_is_unbiased_and_as_good_as_its_model(worth):
    """X = 3 + e, Y = worth e + sqrt(1 - worth^2) e' + 1, so correlation `worth` and E Y = 1, known exactly."""
    generator = torch.Generator().manual_seed(0)
    e, other = torch.randn(2, 2000, 60, 1, generator=generator, dtype=double)
    x, y = 3 + e, 1 + worth * e + (1 - worth**2) ** 0.5 * other
    found = controlled_means(x, y, torch.ones(2000, 1, dtype=double))
    plain = controlled_means(x, None, None)
    spread = float(found.mean.std())
    assert float((found.mean.mean() - 3).abs()) < 4 * spread / 2000**0.5
    torch.testing.assert_close(plain.mean, x.mean(1))
    expected = max(1 - worth**2, 0.0) ** 0.5
    assert spread / float(plain.mean.std()) == pytest.approx(expected, abs=0.08)
    assert float(found.error.mean()) == pytest.approx(spread, rel=0.12)


def test_replicates_share_a_control_variate_and_their_halves_stay_unbiased():
    """One episode of each of 12 x 4 policies whose means differ, correlation 0.9, E Y known."""
    generator = torch.Generator().manual_seed(1)
    shape = (3000, 12, 4, 1)
    e, other, trained = (torch.randn(shape, generator=generator, dtype=double) for _ in range(3))
    columns = torch.tensor([1.0, -2.0, 5.0, 0.0], dtype=double)[:, None]
    x = columns + 0.3 * trained + 2 * e
    own = torch.randn(shape[:3], generator=generator, dtype=double)  # E Y of every policy
    y = own[..., None] + 2 * (0.9 * e + (1 - 0.9**2) ** 0.5 * other)
    found, plain = controlled_replicates(x, y, own), controlled_replicates(x, None, None)
    torch.testing.assert_close(plain, x[..., 0])
    for half in (found[:, 0::2], found[:, 1::2]):
        mean = half.mean(1)  # (G, P)
        error = mean.std(0) / len(mean) ** 0.5
        assert bool(((mean.mean(0) - columns[:, 0]).abs() < 4 * error).all())
    # variance of a policy's error: 4 (1 - 0.81) + 0.09, against 4 + 0.09
    ratio = float((found - columns[:, 0]).var() / (plain - columns[:, 0]).var())
    assert ratio == pytest.approx((4 * 0.19 + 0.09) / 4.09, rel=0.1)
    first, second = ((z[:, i::2] - columns[:, 0]).mean((1, 2)) for z, i in ((found, 0), (found, 1)))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.08


def test_two_replicates_of_one_episode_leave_the_plain_mean():
    """Nothing to estimate beta from: one replicate a half, one episode."""
    x, y = torch.randn(2, 1, 2, 4, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(controlled_replicates(x, y, torch.zeros(1, 2, 4)), x[..., 0])


def test_slopes_of_few_episodes_stay_sensible():
    """Two episodes a half would give any slope; it stays in [0, 1]."""
    x = torch.tensor([[[0.0], [0.0], [100.0], [100.0]]], dtype=double)
    y = torch.tensor([[[0.0], [0.0], [0.001], [0.001]]], dtype=double)
    found = controlled_means(x, y, torch.zeros(1, 1, dtype=double))
    torch.testing.assert_close(found.mean, torch.tensor([[50.0 - 0.0005]], dtype=double))


def test_replaying_in_the_truth_gives_the_real_returns(problem):
    """The control variate with a perfect model is the quantity itself, episode by episode."""
    family, _, psi, theta_hat, *_ = problem
    rollout = sample(family, None, theta_hat, 6, 0)
    again = replay(family, affine_model(family, family.dynamics), theta_hat, rollout, psi)
    torch.testing.assert_close(again, lane_statistics(family, psi, rollout))
    reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    returns = (reward * family.gamma ** torch.arange(20, dtype=double)).sum(-1) / 20
    torch.testing.assert_close(again[..., 0], returns)


def test_gaussian_members_take_their_mean_in_both_of_the_control_variates_rollouts(problem):
    """Replaying an episode of the mean model gives that episode again; of drawn steps, another one."""
    family, _, psi, theta_hat, *_ = problem
    config = DynamicsConfig(hidden_sizes=(), num_members=1, predicts="gaussian")
    model = DynamicsEnsemble(family, config, torch.Generator().manual_seed(0), dtype=double)

    def error(draws_steps):
        generators = [torch.Generator().manual_seed(m) for m in range(len(psi))]
        rollout = virtual_rollout(family, model, theta_hat, 4, generators, draws_steps=draws_steps)
        again = replay(family, model, theta_hat, rollout, psi)
        return float((again - lane_statistics(family, psi, rollout)).abs().max())

    assert error(draws_steps=False) < 1e-10 < 1e-4 < error(draws_steps=True)


# -- random directions -----------------------------------------------------------------------------------------


def test_random_directions_are_orthonormal_and_unbiased():
    """E[k / D sum_j u_j u_j'] = I, so any slope is found on average."""
    generator = torch.Generator().manual_seed(0)
    k, num = 6, 2
    u = torch.stack([_directions(k, num, generator) for _ in range(8000)])
    torch.testing.assert_close(u @ u.transpose(1, 2), torch.eye(num).expand(8000, -1, -1), rtol=0, atol=1e-5)
    mean = (k / num) * (u.transpose(1, 2) @ u).mean(0)
    torch.testing.assert_close(mean, torch.eye(k), rtol=0, atol=0.05)
    assert torch.equal(_directions(2, 2, generator), torch.eye(2)), "few parameters: the axes"


# -- the check --------------------------------------------------------------------------------------------------


def test_fidelity_by_hand():
    truth = Truth([0.0, 0.0], [1.0, 1.0], total=[3.0, 4.0], total_error=[1.0, 3.0])
    found = draws([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0], [3.0, -4.0]])
    np.testing.assert_allclose(found.cosine(truth), [1, -1, 0, -7 / 25], atol=1e-12)
    # the second coordinate is within two standard errors: its sign does not count
    np.testing.assert_array_equal(found.signs_right(truth), [True, False, True, True])


def test_check_compares_with_the_truth_and_is_data(problem, tmp_path):
    family, model, _, theta_hat, theta_star, exact = problem
    few = ResolveConfig(solver="pathwise", num_updates=15, radius=1.0, num_replicates=2, num_episodes=40)
    config = TaskGradientConfig(num_samples=60 * 20, num_extra_episodes=0, resolve=few)
    solved = SolvedTask(theta_hat, theta_star, model, affine_model(family, family.dynamics))
    plan = CheckPlan(
        estimators=("resolve", "fisher", "causal"),
        num_draws={"resolve": 2, "fisher": 1, "causal": 1},
        truth=ResolveConfig(
            solver="pathwise", num_updates=40, radius=1.0, num_replicates=4, num_episodes=100
        ),
        truth_lanes=200,
    )
    check = check_gradient(family, solved, plan, config, PRESETS["smoke"].virtual)
    scale = 20 * (family.box.high - family.box.low).numpy() / 2
    total = (exact["optimal"] - exact["adapted"] - exact["implicit"]).numpy() * scale
    found, error = np.array(check.truth.total), np.array(check.truth.total_error)
    assert (np.abs(found - total) < 5 * error + 0.02 * np.abs(total)).all()
    assert len(check.draws[0].total) == 2 and len(check.draws[1].total) == 1
    assert set(check.draws[2].implicit_at) == {"0.0001", "0.001", "0.01", "0.1", "1"}
    plain = json.loads(json.dumps(check.to_dict()))
    plot_gradient_checks([plain, plain], tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 20_000


@pytest.mark.parametrize("num_replicates", [3, 8])
@pytest.mark.parametrize("updated", [False, True])
def test_the_interval_of_the_truth_covers(problem, num_replicates, updated):
    """200 repetitions, as tasks of one batch that are the same: the bars of the figure hold their grand mean."""
    family, model, psi, theta_hat, *_ = problem
    num = 200
    same = [x.repeat_interleave(num, 0) for x in (psi, theta_hat.theta, theta_hat.weights)]
    found = resolve(
        family,
        Solution(same[0], theta_hat.policy, same[1], theta_hat.value, same[2]),
        ResolveConfig(num_updates=1, radius=1.0, num_replicates=num_replicates, num_episodes=4),
        VirtualTrainingConfig(num_model_steps=0, num_policy_updates=1, num_samples=100),
        spawn_generators(torch.Generator().manual_seed(0), num),
        model=model,
        updated_model=affine_model(family, family.dynamics) if updated else None,
    ).replicates
    value, error = found.mean(1), found.std(1) / num_replicates**0.5
    check = {"provenance": {"truth": {"num_replicates": num_replicates}}}
    covered = (value - value.mean(0)).abs() <= quantile(check) * error
    assert 0.90 <= float(covered.double().mean()) <= 0.98


def test_solving_a_task_leaves_the_run_as_it_is():
    family, config = make("linear_quadratic"), PRESETS["smoke"]
    state = new_state(family, "uniform", config, seed=0)
    before = [w.clone() for w in state.learner.model.parameters()]
    meta_train(family, state, config)
    after = [w.clone() for w in state.learner.model.parameters()]
    rows = len(state.learner.data[0])
    psi, policy = torch.tensor([[0.2, 0.1]]), make_policy(family, config)
    solved = solve_task(family, state.learner, psi, config, seed=0, policy=policy)
    hat, star, model, updated = vars(solved).values()
    assert hat.theta.shape == star.theta.shape == (1, hat.policy.num_params)
    assert all(torch.equal(a, b) for a, b in zip(after, state.learner.model.parameters(), strict=True))
    assert len(state.learner.data[0]) == rows
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), updated.parameters(), strict=True))
