"""Transitions, what is held out of them, and the windows of consecutive ones, against brute force."""

import math

import pytest
import torch
from dynamics_tools import DOUBLE, random_data, random_rollout, seeded

from dynamics import TransitionData


def brute_force_windows(rollouts, num_horizon):
    """All (obs at start, obs at end) labels of windows inside one episode, of finite rows, per lane: a set."""
    windows = set()
    for rollout in rollouts:
        M, N, T = rollout.terminated.shape
        finite = (
            rollout.obs.isfinite().all(-1)
            & rollout.act.isfinite().all(-1)
            & rollout.next_obs.isfinite().all(-1)
        )
        for m in range(M):
            for n in range(N):
                for t in range(T - num_horizon + 1):
                    rows = range(t, t + num_horizon)
                    inside = not any(
                        rollout.terminated[m, n, u] or rollout.truncated[m, n, u] for u in rows[:-1]
                    )
                    if inside and all(finite[m, n, u] for u in rows):
                        windows.add(tuple(float(rollout.obs[m, n, u, 0]) for u in rows))
    return windows


@pytest.mark.parametrize("seed", range(8))
def test_windows_are_exactly_those_inside_an_episode(seed):
    """Never across an episode's end, a lane's end, a dropped row or the border between fit and held-out."""
    data, rollouts = TransitionData(4, 2, DOUBLE), []
    for part in range(2):
        rollout = random_rollout(2, 4, 12, seed=20 * seed + 10 * part, share_terminated=0.15)
        for values in (rollout.obs, rollout.act, rollout.next_obs):
            bad = torch.rand(values.shape[:-1], generator=seeded(seed + part)) < 0.03
            values[..., -1][bad] = (math.nan, math.inf)[part]
        rollout.truncated.zero_()  # a lane ends with its last row, whatever the flags say
        rollouts.append(rollout)
        data.add(rollout, 0.4, seeded(seed))
    assert int(data.is_held_out.sum()) > 0
    for num_horizon in (1, 2, 3, 5):
        fit, held = (data.starts(num_horizon, held_out=held) for held in (False, True))
        assert not bool(data.is_held_out[fit].any()) and bool(data.is_held_out[held].all())
        got = []
        for rows in (fit, held):
            obs, act, next_obs = data.windows(rows, num_horizon)
            assert obs.shape == (len(rows), num_horizon, 4) and act.shape == (len(rows), num_horizon, 2)
            assert all(bool(x.isfinite().all()) for x in (obs, act, next_obs))
            got += [tuple(labels) for labels in obs[..., 0].tolist()]
        assert len(got) == len(set(got)) and set(got) == brute_force_windows(rollouts, num_horizon)


def test_add_reports_its_rows_and_holds_out_whole_lanes():
    data = TransitionData(4, 2, DOUBLE)
    first = data.add(random_rollout(2, 5, 10), 0.3, seeded())
    assert len(data) == 100 and data.num_fit == 70 and int(first.sum()) == 70
    by_lane = data.is_held_out.view(10, 10)
    assert bool((by_lane.all(1) | ~by_lane.any(1)).all())
    second = data.add(random_rollout(1, 4, 10, seed=50), 0.25, seeded(1))
    assert len(data) == 140 and not bool(second[:100].any()) and int(second.sum()) == 30
    assert torch.equal(data.obs[:100], random_rollout(2, 5, 10).obs.view(100, 4))


def test_rows_keep_their_columns_together():
    rollout = random_rollout(2, 3, 5)
    rollout.next_obs[0, 1, 2] = math.nan
    data = TransitionData(4, 2, DOUBLE)
    data.add(rollout, 0.0, seeded())
    keep = torch.ones(30, dtype=torch.bool)
    keep[1 * 5 + 2] = False
    for name in ("obs", "act", "next_obs"):
        assert torch.equal(getattr(data, name), getattr(rollout, name).flatten(0, 2)[keep])


def test_windows_are_up_to_date_after_every_change():
    data = random_data()
    before = len(data.starts(2))
    data.add(random_rollout(seed=50), 0.0, seeded())
    after = len(data.starts(2))
    assert after > before
    data.extend(random_data(seed=70))
    assert len(data.starts(2)) == after + len(random_data(seed=70).starts(2))
    copy = data.clone()
    copy.add(random_rollout(seed=90), 0.0, seeded())
    assert len(data) < len(copy) and len(data.starts(1)) < len(copy.starts(1))
    restored = TransitionData(4, 2, DOUBLE)
    restored.load_state_dict(data.state_dict())
    assert torch.equal(restored.starts(3), data.starts(3))
