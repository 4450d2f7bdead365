"""Baseline, advantages and what is left out, against numbers by hand."""

import pytest
import torch

from admrl.inner_loop.advantages import (
    advantages,
    baseline_features,
    episode_times,
    fit_baseline,
    make_batch,
    normalized,
)
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.rollout import Rollout

POLICY = GaussianPolicy(obs_size=1, act_size=1, hidden_sizes=())


def rollout_of(num_steps, terminated=(), broken=()):
    """One task, two lanes; the second is never cut short."""
    generator = torch.Generator().manual_seed(0)
    obs, act, next_obs = torch.randn(3, 1, 2, num_steps, 1, generator=generator, dtype=torch.float64)
    ends = torch.zeros(1, 2, num_steps, dtype=torch.bool)
    for t in (*terminated, *broken):
        ends[0, 0, t] = True
    for t in broken:
        next_obs[0, 0, t] = torch.nan
    truncated = torch.zeros_like(ends)
    truncated[..., -1] = ~ends[..., -1]
    return Rollout(obs, act, next_obs, torch.full((1, 2, num_steps), torch.nan), ends, truncated)


def test_time_begins_anew_with_every_episode():
    ended = torch.tensor([[False, True, False, False, True, True, False], [False] * 6 + [True]])
    assert episode_times(ended).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5, 6]]


def test_features_by_hand():
    obs, time = torch.tensor([[3.0, -20.0]]), torch.tensor([50])
    expected = [3, -10, 9, 100, 0.5, 0.25, 0.125, 1]
    assert baseline_features(obs, time)[0].tolist() == expected


def test_a_target_that_is_linear_in_the_features_is_fitted_and_the_ridge_grows_where_it_must():
    features = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.tensor([[1.0, -2, 0.5, 3], [0, 1, 1, -1]], dtype=torch.float64)
    target = torch.einsum("mrf,mf->mr", features, w)
    torch.testing.assert_close(fit_baseline(features, target, 1e-12), w, rtol=0, atol=1e-10)
    twice = torch.cat([features, features], dim=-1)  # singular without a ridge
    fitted = fit_baseline(twice, target, 1e-5)
    torch.testing.assert_close(torch.einsum("mrf,mf->mr", twice, fitted), target, rtol=0, atol=1e-5)
    with pytest.raises(FloatingPointError, match=r"baseline of task 1 of the batch has no finite fit"):
        target[1, 3] = torch.inf
        fit_baseline(features, target, 1e-5)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_advantages_by_the_definition(gae_lambda):
    """V is 0 beyond the time limit and beyond a termination."""
    rollout, gamma, T = rollout_of(6, terminated=(2,)), 0.9, 6
    reward = torch.randn(1, 2, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta = torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64)
    batch = make_batch(
        POLICY, theta, rollout.obs, rollout, reward, gamma=gamma, gae_lambda=gae_lambda, ridge=1e-3
    )
    ends = {0: (2, 5), 1: (5,)}  # last steps of the episodes by lane
    to_go = [[0.0] * T for _ in range(2)]
    for lane, lasts in ends.items():
        for t in reversed(range(T)):
            to_go[lane][t] = float(reward[0, lane, t]) + (0 if t in lasts else gamma * to_go[lane][t + 1])
    times = torch.tensor([[[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]])
    f = baseline_features(rollout.obs, times)[0].flatten(0, 1)
    y = torch.tensor(to_go, dtype=torch.float64).flatten()
    w = torch.linalg.solve(f.T @ f + 1e-3 * torch.eye(f.shape[1], dtype=f.dtype), f.T @ y)
    value = (f @ w).view(2, T)
    expected = torch.zeros(2, T, dtype=torch.float64)
    for lane, lasts in ends.items():
        for t in reversed(range(T)):
            last = t in lasts
            ahead = 0 if last else gamma * value[lane, t + 1]
            expected[lane, t] = reward[0, lane, t] + ahead - value[lane, t]
            expected[lane, t] += 0 if last else gamma * gae_lambda * expected[lane, t + 1]
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(batch.advantage[0], expected.flatten(), rtol=0, atol=1e-6)
    assert batch.weight.tolist() == [[pytest.approx(1 / 12)] * 12]
    torch.testing.assert_close(
        batch.log_prob, POLICY.log_prob(theta, rollout.obs, rollout.act).flatten(1), rtol=0, atol=1e-12
    )


def test_a_simulation_that_broke_down_ends_a_step_earlier():
    """Its last step is neither seen by the baseline's target nor learned from."""
    rollout = rollout_of(5, broken=(3,))
    reward = torch.ones(1, 2, 5, dtype=torch.float64)
    theta = torch.zeros(1, 3, dtype=torch.float64)
    settings = {"gamma": 1.0, "gae_lambda": 1.0, "ridge": 1e-5}
    reward[0, 0, 3] = torch.nan
    batch = make_batch(POLICY, theta, rollout.obs, rollout, reward, **settings)
    assert bool(batch.advantage.isfinite().all())
    assert batch.weight[0].tolist() == [pytest.approx(1 / 9)] * 3 + [0] + [pytest.approx(1 / 9)] * 6
    mean = float((batch.weight * batch.advantage).sum())
    square = float((batch.weight * batch.advantage.square()).sum())
    assert (mean, square) == (pytest.approx(0, abs=1e-12), pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_what_broke_down_says_nothing_about_the_steps_before(gae_lambda):
    """Every lane breaks down in its last step: the same as data without that step, for baseline and advantages."""
    whole, T = rollout_of(8), 7
    whole.terminated[..., -1], whole.next_obs[..., -1, :] = True, torch.nan
    short = Rollout(*(x[:, :, :T].clone() for x in vars(whole).values()))
    short.terminated[..., -1] = True
    reward = 5 + torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {"gamma": 0.9, "gae_lambda": gae_lambda, "ridge": 1e-5}
    found, weight = advantages(whole.obs, whole, reward, **settings)
    expected, _ = advantages(short.obs, short, reward[..., :T], **settings)
    torch.testing.assert_close(found.view(2, 8)[:, :T], expected.view(2, T), rtol=0, atol=1e-12)
    assert weight.view(2, 8)[:, T].tolist() == [0, 0]


def test_equal_advantages_are_no_division_by_zero():
    flat = normalized(torch.full((1, 4), 3.0), torch.full((1, 4), 0.25))
    assert flat.tolist() == [[0, 0, 0, 0]]
