"""Histories by row number are those that stepping builds; replay and checkpoint columns."""

import pytest
import torch

from admrl.evaluation.scoring import action_noise, simulate
from admrl.mql.config import Td3Config
from admrl.mql.networks import Agent
from admrl.mql.policy import policy_of
from admrl.mql.replay import Episodes, PooledReplay, rows_of
from task_families import make
from task_families.rollout import Rollout
from task_families.simulator import ActionBounds

LENGTH = 4


def rollout(ends, broken=None):
    """(M, N, T) of numbered transitions that end where `ends` says; S = 2, A = 1."""
    ends = torch.tensor(ends, dtype=torch.bool)
    number = torch.arange(ends.numel(), dtype=torch.float32).view(ends.shape)
    obs, act = torch.stack([number, -number], -1), number[..., None] / 1000
    next_obs = obs + 0.5
    if broken is not None:
        next_obs[broken] = torch.nan
    nothing = torch.zeros(ends.shape)
    return Rollout(obs, act, next_obs, nothing, ends, torch.zeros_like(ends)), number + 0.25


def stepped(data, reward, length):
    """Histories (M, N T, L + 1, W) as whoever steps through the lanes builds them: before and after every step."""
    m, n, t = reward.shape
    before, after = [], []
    for task in range(m):
        for lane in range(n):
            memory = []
            for step in range(t):
                before.append(memory[-length:])
                at = task, lane, step
                memory = [*memory, torch.cat([data.act[at], reward[at][None], data.obs[at]])]
                after.append(memory[-length:])
                if data.terminated[at]:
                    memory = []
    zero = torch.zeros(4)

    def padded(lists):
        rows = [torch.stack([zero] * (length - len(x)) + x) for x in lists]
        return torch.stack(rows).view(m, n * t, length, 4)

    return padded(before), padded(after)


def test_histories_by_index_are_those_of_stepping_across_episodes_lanes_and_tasks():
    data, reward = rollout([[[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1, 1]], [[0] * 7, [0, 1] * 3 + [0]]])
    rows, position, is_sound = rows_of(data, reward, ActionBounds.make(1, -1, 1))
    assert bool(is_sound.all())
    assert position[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0]
    episodes = Episodes(rows.flatten(0, 1), position.flatten(), 2)
    index = torch.arange(28).view(2, 14)
    before, after = stepped(data, reward, LENGTH)
    batch = episodes.batch(index, LENGTH)
    assert torch.equal(batch.history, before) and torch.equal(batch.next_history, after)
    assert torch.equal(batch.obs, data.obs.flatten(1, 2)) and torch.equal(
        batch.next_obs, data.next_obs.flatten(1, 2)
    )
    assert torch.equal(batch.act, data.act.flatten(1, 2))
    assert torch.equal(batch.reward[..., 0], reward.flatten(1))
    assert torch.equal(batch.terminated[..., 0], data.terminated.flatten(1).float())
    # any order, any number
    shuffled = torch.randint(28, (3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(episodes.batch(shuffled, LENGTH).history, before.flatten(0, 1)[shuffled])


def test_a_broken_row_ends_its_episode_and_can_be_left_out():
    data, reward = rollout([[[0, 0, 1, 0, 0]]], broken=(0, 0, 2))
    rows, position, is_sound = rows_of(data, reward, ActionBounds.make(1, -1, 1))
    assert is_sound[0].tolist() == [True, True, False, True, True]
    replay = PooledReplay(1, 10, 2, 1)
    replay.add(0, rows[0, is_sound[0]], position[0, is_sound[0]])
    history = replay.episodes.batch(torch.arange(4)[None], LENGTH).history
    assert bool(history.isfinite().all())
    assert history[0, 2].abs().sum() == 0  # the first of the next episode
    assert history[0, 3, -1, 2:].tolist() == [3.0, -3.0]


@torch.no_grad()
def test_the_acting_policy_sees_what_the_replay_says():
    """An actor that acts by the histories of the replay chooses what it chose when it acted."""
    family = make("point_robot")
    agent = Agent(
        family,
        Td3Config(hidden_sizes=(8,), context_size=4, history_length=6),
        torch.Generator().manual_seed(0),
    )
    psi, shape = torch.tensor([[0.3, 0.3], [-0.5, 0.8]]), (2, 3)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    act = policy_of(agent).actor(action_noise(family, shape, generators), generators)
    data = simulate(family, psi, shape, act, generators, sees=frozenset({"rewards"}))
    reward = family.reward(psi[:, None, None], data.obs, data.act, data.next_obs)
    rows, position, _ = rows_of(data, reward, family.action_bounds)
    batch = Episodes(rows.flatten(0, 1), position.flatten(), 2).batch(torch.arange(120).view(2, 60), 6)
    torch.testing.assert_close(agent.actor(batch.obs, batch.history), batch.act, rtol=0, atol=1e-6)
    # the context did something: an empty one gives other actions
    empty = agent.actor(batch.obs, torch.zeros_like(batch.history))
    assert float((empty - batch.act).abs().max()) > 1e-4


def filled():
    replay = PooledReplay(2, 100, 2, 1)
    for task, ends in ((1, [0, 0, 0, 0]), (0, [0, 1, 0, 0]), (1, [0, 0, 0, 0])):
        data, reward = rollout([[ends]])
        rows, position, _ = rows_of(data, reward, ActionBounds.make(1, -1, 1))
        replay.add(task, rows[0], position[0])
    return replay


def test_draws_and_snapshots_are_of_the_newest_rows():
    replay = filled()
    assert replay.snapshot(3).tolist() == [5, 6, 7, 9, 10, 11]
    assert replay.snapshot(100).tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]
    drawn = replay.draw(2000, 5, torch.Generator().manual_seed(0))
    assert sorted(set(drawn.tolist())) == [7, 8, 9, 10, 11]
    assert set(replay.draw(2000, 10**6, torch.Generator().manual_seed(0)).tolist()) == set(range(12))


def test_columns_come_back_and_what_does_not_fit_is_named():
    replay, again = filled(), PooledReplay(2, 100, 2, 1)
    again.load(replay.columns())
    assert all(
        torch.equal(a, b) for a, b in zip(replay.columns().values(), again.columns().values(), strict=True)
    )
    index = torch.arange(12)[None]
    assert torch.equal(replay.episodes.batch(index, 3).history, again.episodes.batch(index, 3).history)
    bad = replay.columns() | {"task": replay.columns()["task"] + 1}
    with pytest.raises(ValueError, match="task: expected numbers from 0 to 1"):
        PooledReplay(2, 100, 2, 1).load(bad)
    with pytest.raises(ValueError, match="position: names rows"):
        PooledReplay(2, 100, 2, 1).load(replay.columns() | {"position": replay.columns()["position"] + 1})
    with pytest.raises(ValueError, match="expected at most 5, got 12"):
        PooledReplay(2, 5, 2, 1).load(replay.columns())
    with pytest.raises(ValueError, match="made for 100 rows, got 112"):
        replay.add(0, torch.zeros(100, 7), torch.zeros(100, dtype=torch.int64))
