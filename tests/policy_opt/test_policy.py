"""Network, Gaussian policy, advantage and value function against torch's own functions and plain loops."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from policy_opt import GaussianPolicy, gae
from policy_opt.config import ValueConfig
from policy_opt.mlp import Mlp
from policy_opt.value import ValueFunction

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- Mlp ---------------------------------------------------------------------------------------------------


def test_layout_is_weights_row_major_then_biases():
    mlp = Mlp((2, 3, 1))
    assert mlp.num_params == 2 * 3 + 3 + 3 * 1 + 1
    theta = torch.arange(2 * 13, dtype=DOUBLE).view(2, 13)
    (W1, b1), (W2, b2) = mlp.layers(theta)
    assert W1[0].tolist() == [[0, 1, 2], [3, 4, 5]] and b1[0].tolist() == [[6, 7, 8]]
    assert W2[1].tolist() == [[22], [23], [24]] and b2[1].tolist() == [[25]]


@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (3, 5, 4, 2)])
def test_network_is_the_printed_recursion(sizes):
    mlp, M = Mlp(sizes), 2
    theta, x = randn(M, mlp.num_params), randn(M, 7, 3, seed=1)
    out = mlp(theta, x)
    for m in range(M):
        h, offset = x[m], 0
        for layer, (i, o) in enumerate(pairwise(sizes)):
            W = theta[m, offset : offset + i * o].view(i, o)
            b = theta[m, offset + i * o : offset + (i + 1) * o]
            offset += (i + 1) * o
            h = h @ W + b
            if layer < len(sizes) - 2:
                h = torch.tanh(h)
        torch.testing.assert_close(out[m], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (3, 5, 4, 2)])
def test_linearize_is_torchs_jvp_and_vjp(sizes):
    mlp, M = Mlp(sizes), 2
    theta, x = randn(M, mlp.num_params), randn(M, 7, 3, seed=1)
    v, u = randn(M, mlp.num_params, seed=2), randn(M, 7, 2, seed=3)
    jvp, vjp = mlp.linearize(theta, x)

    def f(t):
        return mlp(t, x)

    torch.testing.assert_close(jvp(v), torch.func.jvp(f, (theta,), (v,))[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(vjp(u), torch.func.vjp(f, theta)[1](u)[0], rtol=0, atol=1e-10)


def test_init_has_unit_columns_and_zero_biases():
    mlp = Mlp((6, 5, 4, 2))
    theta = mlp.init(generators(1, 2), output_scale=0.01, dtype=DOUBLE)
    assert theta.shape == (2, mlp.num_params) and theta.dtype == DOUBLE
    for layer, (W, b) in enumerate(mlp.layers(theta)):
        length = 0.01 if layer == 2 else 1.0
        torch.testing.assert_close(W.norm(dim=1), torch.full((2, W.shape[2]), length, dtype=DOUBLE))
        assert not bool(b.any())
    alone = mlp.init(generators(2), output_scale=0.01, dtype=DOUBLE)
    assert torch.equal(alone[0], theta[1])  # a network depends on its own generator alone
    assert not torch.equal(theta[0], theta[1])


# -- GaussianPolicy ----------------------------------------------------------------------------------------


@pytest.fixture(params=[None, -0.7], ids=["learned sigma", "fixed sigma"])
def policy(request):
    return GaussianPolicy(3, 2, hidden_sizes=(5,), fixed_log_std=request.param)


def distribution(policy, theta, obs):
    """The policy of every task in torch's words; obs (M, N, T, S)."""
    net = theta[:, : policy.mlp.num_params]
    mean = policy.mlp(net, policy.normalize(obs).flatten(1, 2)).view(*obs.shape[:-1], 2)
    log_std = theta[:, -2:] if policy.fixed_log_std is None else torch.full_like(theta[:, :2], -0.7)
    return Independent(Normal(mean, log_std.exp()[:, None, None].expand_as(mean)), 1)


@pytest.fixture
def batch(policy):
    """theta (2, p), obs (2, 3, 4, 3), act (2, 3, 4, 2)."""
    return randn(2, policy.num_params, seed=1), randn(2, 3, 4, 3, seed=2), randn(2, 3, 4, 2, seed=3)


def test_number_of_parameters(policy):
    assert policy.num_params == 3 * 5 + 5 + 5 * 2 + 2 + (2 if policy.fixed_log_std is None else 0)


def test_log_prob_kl_and_entropy_are_torchs(policy, batch):
    theta, obs, act = batch
    other = theta + 0.3 * randn(*theta.shape, seed=4)
    old, new = distribution(policy, theta, obs), distribution(policy, other, obs)
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(policy.mean(theta, obs), old.mean, **exact)
    torch.testing.assert_close(policy.log_prob(theta, obs, act), old.log_prob(act), **exact)
    torch.testing.assert_close(policy.kl(theta, other, obs), kl_divergence(old, new), **exact)
    assert float(policy.kl(theta, theta, obs).abs().max()) < 1e-12
    torch.testing.assert_close(policy.entropy(theta), old.entropy()[:, 0, 0], **exact)


def test_the_kl_of_policies_that_are_close_survives_single_precision(policy, batch):
    """Of 1e-7 nats: the terms of order d cancel, and their rounding must not stay."""
    theta, obs, _ = batch
    other = theta + 5e-5 * randn(*theta.shape, seed=4)
    exact = policy.kl(theta.float().double(), other.float().double(), obs.float().double())
    single = policy.kl(theta.float(), other.float(), obs.float())
    assert 1e-9 < float(exact.mean()) < 1e-6
    torch.testing.assert_close(single.double().mean(), exact.mean(), rtol=1e-2, atol=0)
    assert float(single.min()) > -1e-10


def test_sample_reports_its_own_log_prob(policy, batch):
    theta, obs, noise = batch
    act, log_prob = policy.sample(theta, obs, noise)
    assert act.shape == noise.shape and log_prob.shape == noise.shape[:-1]
    torch.testing.assert_close(log_prob, policy.log_prob(theta, obs, act), rtol=0, atol=1e-12)
    std = distribution(policy, theta, obs).base_dist.scale
    torch.testing.assert_close((act - policy.mean(theta, obs)) / std, noise, rtol=0, atol=1e-12)


def test_parameters_looked_up_once_give_the_same_actions(policy, batch):
    theta, obs, noise = batch
    act, log_prob = policy.sample(theta, obs, noise)
    mean = policy.mean_function(theta)
    deviation, ahead = policy.deviations(theta, noise.movedim(2, 0))  # (T, M, N, A)
    for t in range(obs.shape[2]):
        assert torch.equal(mean(obs[:, :, t]) + deviation[t], act[:, :, t])
        assert torch.equal(ahead[t], log_prob[:, :, t])


def test_every_number_of_sample_axes(policy, batch):
    theta, obs, act = batch
    flat = policy.log_prob(theta, obs.flatten(1, 2), act.flatten(1, 2))
    torch.testing.assert_close(flat, policy.log_prob(theta, obs, act).flatten(1), rtol=0, atol=1e-12)


def test_tasks_have_their_own_parameters(policy, batch):
    theta, obs, act = batch
    both = policy.log_prob(theta, obs, act)
    for m in range(2):
        one = slice(m, m + 1)
        alone = policy.log_prob(theta[one], obs[one], act[one])
        torch.testing.assert_close(alone[0], both[m], rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_task", [False, True])
def test_normalizer(policy, batch, per_task):
    """(S,) for all tasks or (M, S): the network sees (s - mean) / std."""
    theta, obs, act = batch
    shape = (2, 3) if per_task else (3,)
    mean, std = randn(*shape, seed=5), 0.5 + randn(*shape, seed=6).abs()
    normalized = policy.with_normalizer(mean, std)
    expected = torch.stack(
        [(obs[m] - (mean[m] if per_task else mean)) / (std[m] if per_task else std) for m in range(2)]
    )
    torch.testing.assert_close(normalized.normalize(obs), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        normalized.log_prob(theta, obs, act), policy.log_prob(theta, expected, act), rtol=0, atol=1e-12
    )
    assert normalized.num_params == policy.num_params and policy.obs_mean is None


def test_policy_init(policy):
    """Near-zero mean, sigma 1 (or the fixed one); one generator per task."""
    theta = policy.init(generators(1, 2), dtype=DOUBLE)
    assert theta.shape == (2, policy.num_params)
    assert float(policy.mean(theta, randn(2, 50, 3)).abs().max()) < 0.05
    expected = 0.0 if policy.fixed_log_std is None else policy.fixed_log_std
    assert torch.equal(policy.log_std(theta), torch.full((2, 2), expected, dtype=DOUBLE))
    assert torch.equal(policy.init(generators(2), dtype=DOUBLE)[0], theta[1])


def test_affine_policy_has_the_layout_of_the_closed_forms():
    """No hidden layer: theta = (weights (S, A) row-major, bias), as in LinearQuadratic."""
    policy = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=0.0)
    theta, obs = randn(1, 10), randn(1, 6, 4, seed=1)
    expected = obs @ theta[0, :8].view(4, 2) + theta[0, 8:]
    torch.testing.assert_close(policy.mean(theta, obs), expected, rtol=0, atol=1e-14)


# -- gae ---------------------------------------------------------------------------------------------------


def naive_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, up to the end of the episode; a double loop."""
    out = torch.zeros_like(reward)
    T = reward.shape[-1]
    for lane in range(reward.shape[0]):
        for t in range(T):
            weight = 1.0
            for u in range(t, T):
                bootstrap = 0.0 if terminated[lane, u] else gamma * float(next_value[lane, u])
                delta = float(reward[lane, u]) + bootstrap - float(value[lane, u])
                out[lane, t] += weight * delta
                if terminated[lane, u] or truncated[lane, u]:
                    break
                weight *= gamma * lam
    return out


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_the_double_loop(lam):
    reward, value, next_value = randn(6, 20), randn(6, 20, seed=1), randn(6, 20, seed=2)
    terminated, truncated = randn(6, 20, seed=3) > 1.3, randn(6, 20, seed=4) > 1.3
    truncated &= ~terminated
    assert int(terminated.sum()) > 5 and int(truncated.sum()) > 5
    expected = naive_gae(reward, value, next_value, terminated, truncated, 0.9, lam)
    inputs = (reward, value, next_value, terminated, truncated)
    copies = [x.clone() for x in inputs]
    got = gae(*inputs, gamma=0.9, gae_lambda=lam)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))
    batched = gae(*(x.view(2, 3, 20) for x in inputs), gamma=0.9, gae_lambda=lam)
    torch.testing.assert_close(batched.view(6, 20), expected, rtol=0, atol=1e-12)
    alone = gae(*(x[0] for x in inputs), gamma=0.9, gae_lambda=lam)
    torch.testing.assert_close(alone, expected[0], rtol=0, atol=1e-12)


def test_termination_and_time_limit_differ():
    """By hand: reward 1, V = 10, gamma 0.5. Termination: 1 - 10. Time limit: 1 + 0.5 * 10 - 10."""
    one, ten = torch.ones(1, dtype=DOUBLE), torch.full((1,), 10.0, dtype=DOUBLE)
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert float(gae(one, ten, ten, yes, no, gamma=0.5, gae_lambda=0.9)) == -9
    assert float(gae(one, ten, ten, no, yes, gamma=0.5, gae_lambda=0.9)) == -4


def test_value_beyond_a_termination_is_never_used():
    reward, value, next_value = randn(1, 5), randn(1, 5, seed=1), randn(1, 5, seed=2)
    terminated = torch.tensor([[False, False, True, False, False]])
    next_value[0, 2] = math.nan
    got = gae(reward, value, next_value, terminated, torch.zeros_like(terminated), gamma=0.9, gae_lambda=0.9)
    assert bool(got.isfinite().all())


# -- ValueFunction -----------------------------------------------------------------------------------------


@pytest.fixture
def value():
    return ValueFunction.make(randn(3, seed=1), 0.5 + randn(3, seed=2).abs(), ValueConfig(num_features=12))


def test_features(value):
    """(1, x, tanh(x G + h)) with x normalised and clipped to +-5."""
    obs = randn(2, 6, 3, seed=3)
    obs[0, 0] = 1e6
    x = ((obs - value.obs_mean) / value.obs_std).clamp(-5, 5)
    phi = value.features(obs)
    assert phi.shape == (2, 6, 1 + 3 + 12) and float(phi.abs().max()) <= 5
    assert bool((phi[..., 0] == 1).all())
    torch.testing.assert_close(phi[..., 1:4], x, rtol=0, atol=1e-14)
    hidden = torch.einsum("mrs,sf->mrf", x, value.directions) + value.offsets
    torch.testing.assert_close(phi[..., 4:], hidden.tanh(), rtol=0, atol=1e-12)


def test_features_are_the_same_in_every_run(value):
    again = ValueFunction.make(value.obs_mean, value.obs_std, ValueConfig(num_features=12))
    assert torch.equal(value.directions, again.directions) and torch.equal(value.offsets, again.offsets)


def test_initial_value_is_zero(value):
    obs = randn(2, 6, 4, 3)
    assert torch.equal(value(value.init(2), obs), torch.zeros(2, 6, 4, dtype=DOUBLE))


@pytest.mark.parametrize("ridge", [1e-6, 1e-1])
def test_fit_is_the_least_squares_solution(ridge):
    """The same minimum from a QR solve of the augmented system [phi; sqrt(penalty)] w = [y; 0]."""
    mean, std = torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    value = ValueFunction.make(mean, std, ValueConfig(num_features=12, ridge=ridge))
    obs, target = randn(2, 8, 10, 3, seed=3), 5 + randn(2, 8, 10, seed=4)
    phi = value.features(obs)
    weights = value.fit(phi, target)
    assert weights.shape == (2, 16)
    for m in range(2):
        rows, y = phi[m].flatten(0, 1), target[m].flatten()
        penalty = torch.full((16,), float(ridge * rows.square().mean() * len(rows)), dtype=DOUBLE)
        penalty[0] *= 1e-3  # the constant is (nearly) free
        augmented = torch.cat([rows, penalty.sqrt().diag()])
        exact = torch.linalg.lstsq(
            augmented, torch.cat([y, torch.zeros(16).double()]), driver="gelsd"
        ).solution
        torch.testing.assert_close(weights[m], exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(value(weights, obs), value.predict(weights, phi), rtol=0, atol=1e-12)
    by_hand = (phi * weights[:, None, None]).sum(-1)
    torch.testing.assert_close(value(weights, obs), by_hand, rtol=0, atol=1e-12)


def test_fit_of_a_batch_equals_one_by_one(value):
    obs, target = randn(3, 40, 3, seed=3), randn(3, 40, seed=4)
    phi = value.features(obs)
    weights = value.fit(phi, target)
    for m in range(3):
        alone = value.fit(phi[m : m + 1], target[m : m + 1])
        torch.testing.assert_close(alone[0], weights[m], rtol=0, atol=1e-10)


def test_a_diverged_task_does_not_disturb_the_fit_of_its_neighbours(value):
    obs, target = randn(3, 40, 3, seed=3), randn(3, 40, seed=4)
    phi = value.features(obs)
    clean = value.fit(phi, target)
    phi[1, 5], target[1, 7] = math.nan, math.nan
    dirty = value.fit(phi, target)
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]]) and not bool(dirty[1].isfinite().any())


def test_fit_learns_a_value_that_the_features_can_express():
    value = ValueFunction.make(torch.zeros(3).double(), torch.ones(3).double(), ValueConfig(ridge=1e-10))
    obs = randn(1, 500, 3)
    target = 2 + obs[..., 0] - 3 * obs[..., 2]
    weights = value.fit(value.features(obs), target)
    fresh = randn(1, 50, 3, seed=9)
    expected = 2 + fresh[..., 0] - 3 * fresh[..., 2]
    torch.testing.assert_close(value(weights, fresh), expected, rtol=0, atol=1e-4)


def test_value_normalizer_per_task():
    mean, std = randn(2, 3, seed=1), 0.5 + randn(2, 3, seed=2).abs()
    both = ValueFunction.make(mean, std, ValueConfig(num_features=12))
    obs = randn(2, 6, 4, 3, seed=3)
    for m in range(2):
        single = ValueFunction.make(mean[m], std[m], ValueConfig(num_features=12))
        torch.testing.assert_close(
            both.features(obs)[m], single.features(obs[m : m + 1])[0], rtol=0, atol=1e-12
        )
