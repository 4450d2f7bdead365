"""TRPO against dense matrices, exact expectations and the closed forms of the linear-quadratic family."""

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.func import hessian, jacrev

from policy_opt import GaussianPolicy, gae, trpo, trpo_step
from policy_opt.config import TrpoConfig, ValueConfig
from policy_opt.trpo import fisher_product
from policy_opt.value import ValueFunction
from task_families import collect, make, spawn_generators

DOUBLE = torch.float64
CONFIG = TrpoConfig()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.fixture(params=[None, -0.5], ids=["learned sigma", "fixed sigma"])
def policy(request):
    return GaussianPolicy(3, 2, hidden_sizes=(4,), fixed_log_std=request.param)


def problem(policy, num_tasks, num_states, seed=0):
    """theta (M, p), obs (M, R, 3), act (M, R, 2) sampled from the policies, advantage (M, R)."""
    theta = 0.5 * randn(num_tasks, policy.num_params, seed=seed)
    obs = randn(num_tasks, num_states, 3, seed=seed + 1)
    act, _ = policy.sample(theta, obs, randn(num_tasks, num_states, 2, seed=seed + 2))
    advantage = act[..., 0] - act[..., 1].square() + obs[..., 0] * act[..., 1]
    return theta, obs, act, 3 + 10 * advantage


def task(policy, inputs, m):
    """One task's inputs, as a batch of one."""
    return tuple(x[m : m + 1] for x in inputs)


def assert_same_reports(one, other, rows_one, rows_other, atol):
    for field in fields(one):
        x, y = getattr(one, field.name)[rows_one], getattr(other, field.name)[rows_other]
        torch.testing.assert_close(x, y, rtol=0, atol=atol, msg=field.name)


# -- the Fisher matrix -------------------------------------------------------------------------------------


def dense(product, num_params, num_tasks):
    """(M, p, p) from products with the unit vectors."""
    columns = [product(e.expand(num_tasks, -1)) for e in torch.eye(num_params, dtype=DOUBLE)]
    return torch.stack(columns, dim=-1)


def test_fisher_product_is_the_hessian_of_the_kl(policy):
    theta, obs, _, _ = problem(policy, 2, 6)
    F = dense(fisher_product(policy, theta, obs), policy.num_params, 2)
    for m in range(2):
        old, x = theta[m : m + 1], obs[m : m + 1]
        H = hessian(lambda t, old=old, x=x: policy.kl(old, t[None], x).mean())(theta[m])
        torch.testing.assert_close(F[m], H, rtol=0, atol=1e-8)
    assert float(F.diagonal(dim1=1, dim2=2).max()) > 0.1


def test_fisher_product_is_the_second_moment_of_the_score(policy):
    """E[grad log pi grad log pi'] by Gauss-Hermite over the two actions: exact, the integrand is a polynomial."""
    theta, obs, _, _ = problem(policy, 1, 6)
    F = dense(fisher_product(policy, theta, obs), policy.num_params, 1)[0]
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(5))
    expected = torch.zeros_like(F)
    for (x, u), (y, v) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        noise = torch.stack([x, y]).expand(1, 6, 2)
        act, _ = policy.sample(theta, obs, noise)
        score = jacrev(lambda t, act=act: policy.log_prob(t[None], obs, act)[0])(theta[0])  # (6, p)
        expected += u * v / (2 * math.pi) * score.T @ score / 6
    torch.testing.assert_close(F, expected, rtol=0, atol=1e-8)


def test_fisher_fraction_uses_evenly_spaced_states(policy):
    theta, obs, _, _ = problem(policy, 2, 12)
    some = dense(fisher_product(policy, theta, obs, 0.25), policy.num_params, 2)
    expected = dense(fisher_product(policy, theta, obs[:, [0, 4, 8]]), policy.num_params, 2)
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-14)


# -- one update --------------------------------------------------------------------------------------------


def objective(policy, old, new, obs, act, advantage, config):
    """L and the mean KL of one task, written out: E[ratio A] + beta entropy, A normalised."""
    a = (advantage - advantage.mean()) / advantage.std()
    ratio = torch.exp(policy.log_prob(new, obs, act) - policy.log_prob(old, obs, act))
    surrogate = (ratio * a).mean() + config.entropy_bonus * policy.entropy(new)[0]
    return surrogate, policy.kl(old, new, obs).mean()


def dense_step(policy, theta, obs, act, advantage, config):
    """The full natural-gradient step of one task by a dense solve."""
    g = jacrev(lambda t: objective(policy, theta, t[None], obs, act, advantage, config)[0])(theta[0])
    F = dense(fisher_product(policy, theta, obs), policy.num_params, 1)[0]
    damped = F + config.cg_damping * torch.eye(len(F), dtype=DOUBLE)
    x = torch.linalg.solve(damped, g)
    return x * torch.sqrt(2 * config.max_kl / (x @ damped @ x))


def test_update_is_the_damped_natural_gradient_step(policy):
    config = TrpoConfig(cg_steps=200)
    inputs = problem(policy, 3, 80)
    new, report = trpo_step(policy, *inputs, config)
    for m in range(3):
        step = dense_step(policy, *task(policy, inputs, m), config)
        expected = inputs[0][m] + report.step_fraction[m] * step
        torch.testing.assert_close(new[m], expected, rtol=0, atol=1e-8)
    assert bool(report.accepted.all())


def test_line_search_takes_the_largest_step_that_passes(policy):
    """A trust region so wide that steps must be halved: every longer step fails one of the two conditions."""
    config = TrpoConfig(cg_steps=200, max_kl=3.0, kl_slack=1.2)
    M = 12
    inputs = problem(policy, M, 30)
    _, report = trpo_step(policy, *inputs, config)
    for m in range(M):
        theta, *data = task(policy, inputs, m)
        step = dense_step(policy, theta, *data, config)
        before, _ = objective(policy, theta, theta, *data, config)
        for halvings in range(11):
            surrogate, kl = objective(policy, theta, theta + 0.5**halvings * step, *data, config)
            passes = bool(surrogate >= before) and float(kl) <= 1.2 * 3.0
            if passes:
                break
        assert float(report.step_fraction[m]) == 0.5**halvings
    assert len(set(report.step_fraction.tolist())) > 1


def test_bound_holds_and_the_objective_does_not_decrease(policy):
    M = 8
    inputs = problem(policy, M, 60)
    for config in (CONFIG, TrpoConfig(max_kl=1.0)):
        new, report = trpo_step(policy, *inputs, config)
        for m in range(M):
            theta, *data = task(policy, inputs, m)
            before, _ = objective(policy, theta, theta, *data, config)
            after, kl = objective(policy, theta, new[m : m + 1], *data, config)
            assert abs(float(kl - report.kl[m])) < 1e-10
            assert abs(float(after - before - report.improvement[m])) < 1e-10
        assert bool((report.kl <= 1.5 * config.max_kl).all()) and bool((report.improvement >= 0).all())
        assert bool((report.kl[report.accepted] > 0).all()) and int(report.accepted.sum()) >= M - 1


def test_rejected_task_keeps_its_parameters(policy):
    config = TrpoConfig(max_kl=10.0, kl_slack=1.0, max_backtracks=0)
    inputs = problem(policy, 8, 20)
    new, report = trpo_step(policy, *inputs, config)
    rejected = ~report.accepted
    assert bool(rejected.any())
    assert torch.equal(new[rejected], inputs[0][rejected])
    for values in (report.kl, report.improvement, report.step_fraction):
        assert not bool(values[rejected].any())


def test_inputs_of_any_rank_and_advantages_of_any_scale(policy):
    config = TrpoConfig(cg_steps=5)  # few: conjugate gradients amplify rounding once they lose orthogonality
    inputs = problem(policy, 2, 24)
    theta, obs, act, advantage = inputs
    new, _ = trpo_step(policy, *inputs, config)
    reshaped, _ = trpo_step(
        policy, theta, obs.view(2, 4, 6, 3), act.view(2, 4, 6, 2), 7 * advantage.view(2, 4, 6) - 100, config
    )
    torch.testing.assert_close(reshaped, new, rtol=0, atol=1e-12)
    assert torch.equal(theta, problem(policy, 2, 24)[0])  # not in place


# -- tasks in a batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("states_per_block", [20_000, 100])
@pytest.mark.parametrize(("cg_steps", "tolerance"), [(5, 1e-12), (10, 1e-6)])
def test_tasks_in_a_batch_equal_one_by_one(policy, monkeypatch, states_per_block, cg_steps, tolerance):
    """Whether they are updated together or in blocks (of two tasks here), with a normaliser per task.

    Conjugate gradients lose orthogonality once they have found the largest eigenvalues, and then amplify the
    rounding of a batched product: a relative 1e-15 in the gradient becomes 1e-8 or more after ten steps.
    """
    config = TrpoConfig(cg_steps=cg_steps)
    monkeypatch.setattr(trpo, "STATES_PER_BLOCK", states_per_block)
    M = 5
    inputs = problem(policy, M, 50)
    mean, std = randn(M, 3, seed=7), 0.5 + randn(M, 3, seed=8).abs()
    new, report = trpo_step(policy.with_normalizer(mean, std), *inputs, config)
    for m in range(M):
        one = slice(m, m + 1)
        alone = policy.with_normalizer(mean[one], std[one])
        got, its_report = trpo_step(alone, *task(policy, inputs, m), config)
        torch.testing.assert_close(got[0], new[m], rtol=0, atol=tolerance)
        assert_same_reports(its_report, report, 0, m, tolerance)


@pytest.mark.parametrize(
    ("argument", "poison"), [(3, math.nan), (3, math.inf), (1, math.nan), (2, math.inf), (0, math.nan)]
)
def test_a_task_that_is_not_finite_is_rejected_and_disturbs_nobody(policy, argument, poison):
    inputs = problem(policy, 3, 50)
    clean, clean_report = trpo_step(policy, *inputs, CONFIG)
    dirty_inputs = [x.clone() for x in inputs]
    dirty_inputs[argument][1].view(-1)[4] = poison
    dirty, report = trpo_step(policy, *dirty_inputs, CONFIG)
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]])
    assert_same_reports(report, clean_report, [0, 2], [0, 2], 0)
    assert report.accepted.tolist() == [True, False, True]
    assert torch.equal(dirty[1].nan_to_num(), dirty_inputs[0][1].nan_to_num())


def test_constant_advantage_moves_only_the_entropy(policy):
    """No preference between actions: the gradient is the entropy bonus, or nothing if sigma is fixed."""
    theta, obs, act, advantage = problem(policy, 2, 50)
    new, report = trpo_step(policy, theta, obs, act, torch.full_like(advantage, 5.0), CONFIG)
    num_net = policy.mlp.num_params
    torch.testing.assert_close(new[:, :num_net], theta[:, :num_net], rtol=0, atol=1e-12)
    if policy.fixed_log_std is None:
        assert bool(report.accepted.all()) and bool((new[:, num_net:] > theta[:, num_net:]).all())
    else:
        assert not bool(report.accepted.any())


# -- the linear-quadratic family ---------------------------------------------------------------------------

SIGMA = 0.3
AFFINE = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=math.log(SIGMA))


def test_updates_improve_the_exact_return():
    """TRPO on sampled real episodes closes 90 % of the exact gap to theta*, for two tasks at once."""
    family = make("linear_quadratic")
    psi = torch.tensor([[0.8, -0.5], [-0.6, 0.9]], dtype=DOUBLE)
    shape, T = (2, 20), 50
    theta = torch.zeros(2, 10, dtype=DOUBLE)
    value = ValueFunction.make(torch.zeros(4).double(), torch.ones(4).double(), ValueConfig(num_features=32))
    weights = value.init(2)

    def returns(theta):
        return torch.stack([family.eta(theta[m], psi[m], sigma=SIGMA) for m in range(2)])

    best = torch.stack([family.eta(family.theta_star(p), p, sigma=SIGMA) for p in psi])
    history = [returns(theta)]
    generators = spawn_generators(torch.Generator().manual_seed(0), 2)
    for update in range(30):
        noise = randn(T, *shape, 2, seed=update)
        rollout = collect(
            family.make_simulator(shape, dtype=DOUBLE),
            family,
            lambda t, obs, theta=theta, noise=noise: AFFINE.sample(theta, obs, noise[t]),
            T,
            generators,
        )
        reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
        v, next_v = value(weights, rollout.obs), value(weights, rollout.next_obs)
        advantage = gae(
            reward, v, next_v, rollout.terminated, rollout.truncated, gamma=family.gamma, gae_lambda=0.95
        )
        theta, _ = trpo_step(AFFINE, theta, rollout.obs, rollout.act, advantage, TrpoConfig(max_kl=0.05))
        weights = value.fit(value.features(rollout.obs), advantage + v)
        history.append(returns(theta))
    gap = best - torch.stack(history)  # (31, 2)
    assert bool((gap > 0).all())
    assert bool((gap[1:7] < gap[:6]).all())  # every early update helps
    assert bool((gap[-1] < 0.1 * gap[0]).all())


def test_hessian_of_the_surrogate_is_not_the_hessian_of_the_return():
    """Negative control. The surrogate E_old[ratio A] has the gradient of the return and another Hessian.

    Exact, without sampling. With Q_old(z, a) = -((F0 z + B a)' S (F0 z + B a) + rho |a|^2) + const and the
    discounted state moments M_old = E sum_t gamma^t z z' under the old policy,
    E_old[ratio Q] = -tr(M_old (F' S F + rho K'K)) + const,  F = F0 + B K,  K = (W, b).
    """
    family = make("linear_quadratic")
    psi = torch.tensor([0.8, -0.5], dtype=DOUBLE)
    old = family.theta_star(psi) + 0.3 * randn(10)
    F0, B = family.dynamics.augmented()
    gamma, rho = family.gamma, family.action_cost
    row = torch.cat([torch.eye(2, 4, dtype=DOUBLE), -psi[:, None]], dim=1)

    def gain(theta):
        return torch.cat([theta[:8].view(4, 2).T, theta[8:, None]], dim=1)

    F = F0 + B @ gain(old)
    start = torch.cat([family.start_mean, torch.ones(1, dtype=DOUBLE)])
    second = torch.outer(start, start)
    second[:4, :4] += family.start_std**2 * torch.eye(4, dtype=DOUBLE)
    moments, P = torch.zeros(5, 5, dtype=DOUBLE), torch.zeros(5, 5, dtype=DOUBLE)
    for t in range(400):
        moments = moments + gamma**t * second
        second = F @ second @ F.T + SIGMA**2 * B @ B.T
        P = F.T @ (row.T @ row + gamma * P) @ F + rho * gain(old).T @ gain(old)
    S = row.T @ row + gamma * P

    def q_value(z, a):
        x = z @ F0.T + a @ B.T
        return -((x @ S) * x).sum(-1) - rho * a.square().sum(-1)

    def surrogate(theta):
        K = gain(theta)
        F = F0 + B @ K
        return -torch.trace(moments @ (F.T @ S @ F + rho * K.T @ K))

    # the closed form is that of the importance ratio: Gauss-Hermite over the action in some states; the second
    # derivatives at theta_old are polynomials of the noise, so few nodes are exact
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(6))
    noise = torch.cartesian_prod(nodes, nodes)
    weight = torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)
    for state in randn(3, 4, seed=5):
        obs = state.expand(1, 36, 4)
        z = torch.cat([state, torch.ones(1, dtype=DOUBLE)])
        act, log_prob = AFFINE.sample(old[None], obs, noise[None])

        def by_ratio(theta, obs=obs, act=act, log_prob=log_prob, z=z):
            ratio = torch.exp(AFFINE.log_prob(theta[None], obs, act) - log_prob)
            return (weight * ratio * q_value(z, act)).sum()

        def by_mean(theta, z=z):
            return q_value(z, gain(theta) @ z)

        torch.testing.assert_close(jacrev(by_ratio)(old), jacrev(by_mean)(old), rtol=0, atol=1e-9)
        torch.testing.assert_close(hessian(by_ratio)(old), hessian(by_mean)(old), rtol=0, atol=1e-8)

    def eta(theta):
        return family.eta(theta, psi, sigma=SIGMA)

    gradient = jacrev(eta)(old)
    torch.testing.assert_close(jacrev(surrogate)(old), gradient, rtol=0, atol=1e-9)
    assert float(gradient.norm()) > 1e-2
    difference = (hessian(surrogate)(old) - hessian(eta)(old)).norm() / hessian(eta)(old).norm()
    assert float(difference) > 0.2
