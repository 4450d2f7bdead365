"""Hindsight: stored returns are those of the rollouts, and the best of them is not too large on average."""

import math

import numpy as np
import pytest
import torch
from dynamics_tools import DOUBLE, seeded

from admrl.evaluation.scoring import best_known
from admrl.solving.hindsight import (
    Stored,
    StoredCandidate,
    hindsight_bound,
    stored_candidate,
    stored_returns,
)
from admrl.solving.rollouts import episode_returns
from dynamics import TransitionData
from task_families import collect, make


def rollout(family, num_tasks, num_lanes, gain, seed):
    """Policies that pull the hand with some gain."""
    noise = torch.randn(family.horizon, num_tasks, num_lanes, family.act_size, generator=seeded(seed))
    simulator = family.make_simulator((num_tasks, num_lanes), dtype=DOUBLE)
    zero = torch.zeros(num_tasks, num_lanes, dtype=DOUBLE)
    generators = [seeded(seed + i) for i in range(num_tasks)]

    def act(t, obs):
        return 0.1 * noise[t].double() - gain * obs[..., : family.act_size], zero

    return collect(simulator, family, act, family.horizon, generators)


def test_stored_returns_are_those_of_the_rollouts_under_any_task():
    family, data = make("linear_quadratic"), TransitionData(4, 2, DOUBLE)
    rollouts = [rollout(family, 2, 3, gain, seed) for seed, gain in ((0, 0.1), (10, 0.5))]
    for r in rollouts:
        data.add(r, 0.25, seeded())
    psi = family.box.grid((2, 2))
    stored = stored_returns(family, data, psi)
    assert stored.policy.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 and data.num_policies == 4
    expected = [
        episode_returns(family, p.expand(2, 2), r).flatten() for p in psi for r in rollouts
    ]  # psi-major
    torch.testing.assert_close(stored.returns, torch.stack(expected).view(4, 12))
    assert len(data) == 12 * family.horizon and torch.equal(data.clone().episodes, data.episodes)


def test_only_whole_first_episodes_are_stored():
    """A lane that fell starts again, and its second episode is cut. A policy that broke down in one of its first
    episodes is left out, since those that are left would flatter it."""
    family = make("linear_quadratic")
    r = rollout(family, 2, 4, 0.1, 0)
    r.terminated[0, 0, 9] = True  # falls after ten steps
    r.next_obs[1, 1, 50] = math.nan
    r.terminated[1, 1, 50] = True
    r.terminated[0, 2, 20] = True
    r.next_obs[0, 2, 60] = math.nan  # after its first episode
    data = TransitionData(4, 2, DOUBLE)
    data.add(r, 0.0, seeded())
    horizon = family.horizon
    assert data.episodes.tolist() == [
        [0, 0, 10],
        [0, horizon, horizon],
        [0, 2 * horizon, 21],
        [0, 3 * horizon - 1, horizon],
    ]
    psi = family.box.grid((2, 2))
    mine = stored_returns(family, data, psi).returns
    expected = torch.stack([episode_returns(family, p.expand(2, -1), r)[0] for p in psi])
    torch.testing.assert_close(mine, expected)


def test_data_that_joins_keeps_its_episodes_and_policies():
    family = make("linear_quadratic")
    one, two = TransitionData(4, 2, DOUBLE), TransitionData(4, 2, DOUBLE)
    for seed, data in ((0, one), (5, two)):
        data.add(rollout(family, 1, 2, 0.1, seed), 0.0, seeded())
    psi = family.box.grid((2, 2))
    expected = torch.cat([stored_returns(family, d, psi).returns for d in (one, two)], dim=1)
    one.extend(two)
    stored = stored_returns(family, one, psi)
    torch.testing.assert_close(stored.returns, expected)
    assert stored.number.tolist() == [0, 1]


def simulated(means, num_episodes, num_tasks, seed):
    """Noisy returns of policies with known means, the same for each of many tasks: noise of standard deviation 1."""
    means = torch.as_tensor(means, dtype=DOUBLE)
    policy = torch.arange(len(means)).repeat_interleave(num_episodes)
    noise = torch.randn(num_tasks, len(policy), generator=seeded(seed), dtype=DOUBLE)
    return Stored(means[policy] + noise, policy, torch.arange(len(means)))


@pytest.mark.parametrize("num_episodes", [2, 5])
@pytest.mark.parametrize("num_policies", [1, 30])
def test_the_luckiest_of_equal_policies_is_not_taken_for_better(num_policies, num_episodes):
    """All means are 3: the plain maximum is far above it, the bound is not; its standard error is its spread."""
    stored = simulated([3.0] * num_policies, num_episodes, 4000, seed=1)
    bound = hindsight_bound(stored)
    mean, spread = float(bound.value.mean()), float(bound.value.std())
    assert abs(mean - 3) < 4 * spread / 4000**0.5
    assert spread == pytest.approx(float(bound.standard_error.square().mean().sqrt()), rel=0.1)
    if num_policies > 1:
        assert float(stored.means()[0].amax(1).mean()) > 3.8


def test_a_better_policy_is_found_and_the_bound_stays_below_its_mean():
    stored = simulated([0.0] * 20 + [2.0], 6, 4000, seed=2)
    bound = hindsight_bound(stored)
    assert 1.6 < float(bound.value.mean()) < 2 + 4 * float(bound.value.std()) / 4000**0.5
    assert float((bound.policy == 20).double().mean()) > 0.8


def test_policies_with_one_episode_do_not_count():
    stored = simulated([5.0, 5.0], 1, 3, seed=0)
    bound = hindsight_bound(stored)
    assert bool(bound.value.isnan().all()) and bound.policy.tolist() == [[-1, -1]] * 3
    empty = Stored(torch.zeros(3, 0, dtype=DOUBLE), torch.zeros(0).long(), torch.zeros(0).long())
    assert bool(hindsight_bound(empty).standard_error.isnan().all())


@pytest.mark.parametrize("num_episodes", [4, 8])
@pytest.mark.parametrize(("stored_mean", "expected"), [(0.0, 1.0), (6.0, 6.0)])
def test_a_star_is_not_raised_by_the_luck_of_stored_episodes(stored_mean, expected, num_episodes):
    """30 stored policies against one method of mean 1, whose noise is as large."""
    num = 2000
    candidate = stored_candidate("stored", simulated([stored_mean] * 30, num_episodes, num, seed=3))
    assert isinstance(candidate, StoredCandidate)
    own = 1 + np.random.default_rng(0).standard_normal((3, num, 8))
    known = best_known({}, {"method": own}, 3, stored=[candidate])
    spread = known.returns.std() / num**0.5
    assert known.returns.mean() < expected + 4 * spread
    assert known.returns.mean() > expected - 0.1
    by_seed = known.by_seed.std(0, ddof=1) / 3**0.5  # what tables take for the noise of A*
    assert known.returns.std() == pytest.approx((by_seed**2).mean() ** 0.5, rel=0.25)
    won = [source == "stored" for source in known.source]
    assert np.mean(won) == (1.0 if stored_mean else pytest.approx(0, abs=0.02))


def test_without_stored_episodes_a_star_is_what_it_was():
    own = np.random.default_rng(0).standard_normal((2, 5, 8))
    other = own + 0.1
    plain = best_known({"a": own}, {"b": other}, 2)
    again = best_known({"a": own}, {"b": other}, 2, stored=[])
    np.testing.assert_array_equal(plain.by_seed, again.by_seed)
    empty = Stored(torch.zeros(5, 0, dtype=DOUBLE), torch.zeros(0).long(), torch.zeros(0).long())
    assert stored_candidate("x", empty) is None


@pytest.mark.parametrize("num_episodes", [1, 2, 3])
def test_policies_with_few_episodes_are_no_candidates_of_a_star(num_episodes):
    """One episode in a half has no spread: the standard error of A* would be too small (0 with two episodes)."""
    candidate = stored_candidate("stored", simulated([6.0] * 30, num_episodes, 50, seed=3))
    own = np.random.default_rng(0).standard_normal((3, 50, 8))
    known = best_known({}, {"method": own}, 3, stored=[candidate])
    assert set(known.source) == {"method"} and np.isfinite(known.by_seed).all()
