"""The replay of several tasks: which rows are drawn, for gradient steps and for contexts."""

import pytest
import torch

from admrl.baselines.replay import MultiTaskReplay

S, A = 4, 2


def filled_replay(num_tasks=3, capacity=100):
    """Task k has rows of observation k, reward 10 k + i."""
    replay = MultiTaskReplay(num_tasks, capacity, S, A)
    for k, n in enumerate((4, 7, 1)):
        fill = torch.full((n, 1), float(k))
        number = 10.0 * k + torch.arange(n)
        replay.add(
            k,
            fill.expand(n, S),
            fill.expand(n, A),
            fill.expand(n, S),
            number,
            -number,
            torch.zeros(n),
            to_context=True,
        )
    return replay


def test_replay_samples_each_task_from_all_of_its_rows_and_no_other(generator):
    replay, tasks = filled_replay(), torch.tensor([1, 0, 2, 1])
    batch = replay.sample(tasks, 500, generator)
    assert torch.equal(batch.obs, tasks[:, None, None].float().expand(-1, 500, S))
    for b, (task, n) in enumerate(((1, 7), (0, 4), (2, 1), (1, 7))):
        assert sorted(set(batch.reward[b, :, 0].tolist())) == [10.0 * task + i for i in range(n)]
    rows = replay.sample_context(tasks, 5, generator, has_next_obs=False)
    assert rows.shape == (4, 5, S + A + 1)
    assert bool((rows[1, :, -1] <= 0).all()), "contexts show the context's reward"


def test_a_cleared_context_holds_only_what_came_since(generator):
    replay = filled_replay()
    replay.context.clear(1)
    one = torch.ones(2)
    obs = torch.ones(2, S)
    replay.add(1, obs, obs[:, :A], obs, one, 55 * one, one, to_context=True)
    replay.add(1, obs, obs[:, :A], obs, one, 66 * one, one, to_context=False)
    rows = replay.sample_context(torch.tensor([1]), 50, generator, has_next_obs=True)
    assert rows.shape == (1, 50, 2 * S + A + 1)
    assert set(rows[0, :, S + A].tolist()) == {55.0}
    assert int(replay.all.size[1]) == 11


def test_context_windows_are_whole_episodes_of_all_contexts(generator):
    """Episodes of two: a window of two of them is rows 0-3, 2-5 or 4-7, each a third of the time; cleared rows count,
    rows that never were in a context do not; a task with fewer rows shows all it has."""
    replay = MultiTaskReplay(2, 100, S, A)

    def add(task, rewards, to_context):
        n = len(rewards)
        number = torch.tensor(rewards)
        replay.add(task, torch.zeros(n, S), torch.zeros(n, A), torch.zeros(n, S), number, number, torch.zeros(n),
                   to_context=to_context)  # fmt: skip

    add(0, [0.0, 1, 2, 3], True)
    add(0, [77.0], False)
    replay.context.clear(0)
    add(0, [4.0, 5, 6, 7], True)
    add(1, [50.0, 51], True)
    tasks = torch.tensor([0, 1]).repeat(600)
    rows = replay.sample_context(tasks, 40, generator, has_next_obs=False, window=(4, 2))
    shown = [tuple(sorted(set(row.tolist()))) for row in rows[..., -1]]
    windows = {(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)}
    assert set(shown[::2]) == windows and set(shown[1::2]) == {(50.0, 51.0)}
    for window in windows:
        assert shown[::2].count(window) / 600 == pytest.approx(1 / 3, abs=0.06)  # three standard errors
    present = replay.sample_context(torch.tensor([0]), 40, generator, has_next_obs=False)
    assert set(present[0, :, -1].tolist()) == {4.0, 5.0, 6.0, 7.0}


def test_replay_from_a_checkpoint_draws_the_same(generator):
    replay, other = filled_replay(), MultiTaskReplay(3, 100, S, A)
    replay.context.clear(0)
    none = torch.zeros(2, 1)
    replay.add(0, none.expand(2, S), none.expand(2, A), none.expand(2, S), none[:, 0], none[:, 0], none[:, 0],
               to_context=False)  # fmt: skip
    other.load(replay.columns(), replay.state_dict())
    state = generator.get_state()
    first = replay.sample(torch.tensor([0, 1]), 9, generator)
    one = replay.sample_context(torch.tensor([0, 1]), 9, generator, has_next_obs=True, window=(2, 1))
    generator.set_state(state)
    second = other.sample(torch.tensor([0, 1]), 9, generator)
    two = other.sample_context(torch.tensor([0, 1]), 9, generator, has_next_obs=True, window=(2, 1))
    assert torch.equal(first.reward, second.reward) and torch.equal(one, two)
    assert torch.equal(replay.context.size, other.context.size)
    with pytest.raises(ValueError, match="made for 14 rows, got 16"):
        small = MultiTaskReplay(3, 14, S, A)
        small.load(replay.columns(), replay.state_dict())
        obs = torch.ones(2, S)
        small.add(0, obs, obs[:, :A], obs, obs[:, 0], obs[:, 0], obs[:, 0], to_context=False)
    hostile = replay.state_dict() | {"context.index": torch.full((3, 8), 99)}
    with pytest.raises(ValueError, match="rows that are not there"):
        other.load(replay.columns(), hostile)


def test_an_offset_of_observations_is_told_once():
    """Before: stored in float32 without a word."""
    replay, one = MultiTaskReplay(2, 100, S, A), torch.ones(20)
    obs = torch.linspace(-1, 1, 20)[:, None].expand(-1, S)
    columns = obs[:, :A], obs, one, one, 0 * one
    replay.add(0, obs, *columns, to_context=True)
    far = obs + torch.tensor([0.0, 0.0, 1e6, 0.0])
    with pytest.warns(UserWarning, match=r"coordinate 2 has the offset 1e\+06 and the spread 0.6") as told:
        replay.add(0, far, *columns, to_context=True)
        replay.add(1, far, *columns, to_context=True)
    assert len(told) == 1
