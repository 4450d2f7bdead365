"""Buffers: returns, batches, rollouts; who records them; files: replays, Minari data sets, and what is refused."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from admrl.baselines.config import preset_config as baseline_preset
from admrl.baselines.run import BaselineRun
from admrl.baselines.training import task_sets
from admrl.datasets.minari_files import Episode, write_minari
from admrl.inner_loop.config import preset_config as inner_loop_preset
from admrl.inner_loop.run import InnerLoopRun
from admrl.jobs.reporter import Silent
from admrl.offline.behaviour import EpsilonGreedy, Recorder
from admrl.offline.buffers import ActionUnits, Buffers, OfflineData
from admrl.offline.config import preset_config
from admrl.offline.data_files import checksum, episode_ends, read_all, read_data, with_checksums
from admrl.offline.recording import record, training_tasks
from task_families import make
from task_families.rollout import Rollout

POINT, BANDIT = make("point_robot"), make("bernoulli_bandit_5")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(lengths, tasks, terminated=()):
    """Data whose observations are the numbers of their rows, and rewards 1, 2, 3, ...; episodes of these lengths."""
    num = sum(lengths)
    ends = torch.zeros(num, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    obs = torch.arange(num, dtype=torch.float32)[:, None]
    flags = torch.zeros(num, dtype=torch.bool)
    flags[list(terminated)] = True
    task = torch.tensor(tasks).repeat_interleave(torch.tensor(lengths))
    return OfflineData.of(obs, obs, obs + 1, obs[:, 0] + 1, flags, ends, task, max(tasks) + 1)


def test_returns_to_go_are_the_sums_by_hand():
    """Tasks in turn, as they are recorded: task 0 has rows 0-2 and 5, task 1 rows 3, 4."""
    buffers = Buffers(numbered([3, 2, 1], [0, 1, 0], terminated=[4]), 0.5)
    by_hand = [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3, 4 + 0.5 * 5, 5, 6]
    assert buffers.to_go.tolist() == pytest.approx(by_hand)
    # an episode that was cut goes on with gamma^(T-t) V(s_T), one that terminated does not
    assert buffers.last_discount.tolist() == [0.125, 0.25, 0.5, 0, 0, 0.5]
    batch = buffers.rows(torch.tensor([[0, 2], [5, 3]]))
    assert batch.last_obs[..., 0].tolist() == [[3, 3], [6, 5]] and buffers.size.tolist() == [4, 2]
    assert Buffers(numbered([2], [0]), 0.0).to_go.tolist() == [1, 2]  # every step on its own


def test_batches_are_a_window_and_others():
    buffers = Buffers(numbered([30, 20, 40], [0, 1, 0]), 0.9)
    rows = {0: [*range(30), *range(50, 90)], 1: list(range(30, 50))}
    g = generator()
    for _ in range(50):
        inner, outer = buffers.draw(torch.tensor([1, 0]), 12, 200, g)
        for k, task in enumerate((1, 0)):
            window, others = inner.obs[k, :, 0].tolist(), outer.obs[k, :, 0].tolist()
            begin = rows[task].index(window[0])
            assert window == rows[task][begin : begin + 12], "consecutive transitions of the task"
            assert not set(window) & set(others) and set(others) <= set(rows[task])
    inner, outer = buffers.draw(torch.tensor([0]), 69, 5000, g)
    assert len(set(outer.obs[0, :, 0].tolist())) == 1, "all that is left"


def test_thinning_leaves_returns_as_they_are():
    data = numbered([21, 14], [0, 1])
    thin, whole = Buffers(data, 0.9, thinning=7), Buffers(data, 0.9)
    assert thin.size.tolist() == [3, 2] and torch.equal(thin.to_go, whole.to_go)
    inner, _ = thin.draw(torch.tensor([0]), 2, 5, generator())
    assert inner.obs[0, :, 0].tolist() in ([0, 7], [7, 14])


def test_an_adaptation_batch_has_all_or_no_repetition():
    buffers = Buffers(numbered([10, 10], [0, 1]), 0.9)
    few, many = (buffers.draw_any(n, [generator(1), generator(2)]) for n in (6, 25))
    assert all(len(set(row)) == 6 for row in few.obs[..., 0].tolist())
    counts = [np.bincount(np.array(row) % 10).tolist() for row in many.obs[..., 0].int().tolist()]
    assert all(sorted(set(c)) == [2, 3] for c in counts)
    assert set(many.obs[1, :, 0].tolist()) == set(range(10, 20))
    again = buffers.draw_any(6, [generator(1), generator(2)])
    assert torch.equal(few.obs, again.obs)


def test_a_rollout_becomes_episodes_and_broken_steps_are_left_out():
    """Two lanes of four steps: one terminates after two, the other breaks down in its third."""
    nan = torch.nan
    next_obs = torch.tensor([[[[1.0], [2], [11], [12]], [[5], [6], [nan], [21]]]])
    terminated = torch.tensor([[[False, True, False, False], [False, False, True, False]]])
    truncated = torch.tensor([[[False, False, False, True], [False, False, False, True]]])
    act = torch.full((1, 2, 4, 2), 0.5)
    rollout = Rollout(next_obs - 1, act, next_obs, torch.zeros(1, 2, 4), terminated, truncated)
    reward = torch.arange(8.0).view(1, 2, 4)
    data = OfflineData.of_rollout(rollout, reward, ActionUnits(POINT.action_bounds, False), torch.tensor([0]))
    assert data.reward.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert data.ends.tolist() == [False, True, False, True, False, True, True]
    assert data.terminated.tolist() == [False, True, False, False, False, False, False]
    again = OfflineData.from_columns(data.columns(), 1, 2)
    assert checksum(again) == checksum(data) and checksum(replace(data, rows=-data.rows)) != checksum(data)
    choice = ActionUnits(BANDIT.action_bounds, True)
    assert choice(torch.tensor([0.1, 3.0, -2.0])).tolist() == [0, 1, 0]


# -- who records --------------------------------------------------------------------------------------------------


def test_the_bandit_learner_explores_at_first_and_pulls_the_best_known_arm_at_last():
    zeros = torch.zeros(1, 5, dtype=torch.float64)
    knows = EpsilonGreedy(
        zeros + torch.tensor([1.0, 0, 8, 0, 0]), zeros + torch.tensor([0, 0, 2.0, 4, 0]), 15
    )
    noise = torch.zeros(10, 1, 2000, 5)
    act = knows.policy().actor(noise, [generator()])
    first = act(0, torch.zeros(1, 2000, 1)).mean((0, 1))
    assert first.tolist() == [0, 0, 1, 0, 0], (
        "epsilon is 0 after 15 of 15 pulls; means 2/3, 1/2, 9/12, 1/6, 1/2"
    )
    new = EpsilonGreedy(zeros, zeros, 1000).policy().actor(noise, [generator()])
    pulls = new(0, torch.zeros(1, 2000, 1))
    assert pulls.sum(-1).eq(1).all() and float((pulls.mean((0, 1)) - 0.2).abs().max()) < 0.05, "epsilon is 1"


def test_the_bandit_learner_counts_within_an_episode_and_over_episodes():
    """epsilon is 0 behind its lifetime: it pulls the arm of the largest posterior mean, by hand."""
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    learner = EpsilonGreedy(zeros + torch.tensor([2.0, 1, 0]), zeros + torch.tensor([1.0, 0, 1]), 1)
    # posterior means 3/5, 2/3, 1/3
    act = learner.policy().actor(torch.zeros(3, 1, 1, 3), [generator()])
    assert act(0, torch.zeros(1, 1, 1))[0, 0].tolist() == [0, 1, 0]
    assert act(1, torch.zeros(1, 1, 1))[0, 0].tolist() == [1, 0, 0]  # lost: 2/4 < 3/5
    assert act(2, torch.ones(1, 1, 1))[0, 0].tolist() == [1, 0, 0]  # won: 4/6
    rollout = Rollout(*[torch.zeros(1, 1, 3, 1)] * 3, *[torch.zeros(1, 1, 3)] * 3)
    pulled = torch.eye(3)[torch.tensor([1, 0, 0])].view(1, 1, 3, 3)
    learner.learn(replace(rollout, act=pulled), torch.tensor([[[0.0, 0.0, 1.0]]]))
    assert learner._successes.tolist() == [[3, 1, 0]] and learner._failures.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("name", ["bernoulli_bandit_5", "point_robot"])
def test_recorded_tasks_do_not_depend_on_each_other_and_come_back_the_same(name):
    family, config = make(name), preset_config("smoke", name, "macaw")
    recorder = Recorder.of(family, config.sac, 0.2)
    psi = training_tasks(family, 3)
    assert torch.equal(training_tasks(family, 2), psi[:2]), "few tasks are the first of many"
    both = record(family, recorder, psi, 4 * family.horizon, generator(5), Silent())
    again = record(family, recorder, psi, 4 * family.horizon, generator(5), Silent())
    assert checksum(both) == checksum(again)
    one = record(family, recorder, psi[:1], 4 * family.horizon, generator(5), Silent())
    first = both.task == 0
    torch.testing.assert_close(both.act[first], one.act, rtol=0, atol=1e-4)
    torch.testing.assert_close(both.reward[first], one.reward, rtol=0, atol=1e-3)
    assert both.task_sizes().tolist() == [4 * family.horizon] * 3 and int(both.ends.sum()) == 12


@pytest.mark.slow
def test_the_recording_sac_learns_its_task():
    """The last of 120 episodes lose less than half of what the first ones do."""
    config = preset_config("laptop", "point_robot", "macaw")
    recorder = Recorder.of(POINT, config.sac, config.updates_per_sample)
    data = record(POINT, recorder, training_tasks(POINT, 3), 2400, generator(), Silent())
    returns = data.reward.view(120, 3, 20).sum(-1)
    assert float(returns[-15:].mean()) > 0.5 * float(returns[:15].mean())


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pearl(tmp_path_factory):
    """A finished run with a replay: 3 tasks."""
    run = BaselineRun.prepare(
        tmp_path_factory.mktemp("runs") / "pearl",
        algorithm="pearl",
        family="point_robot",
        variant="released",
        preset="smoke",
        seed=0,
        config=baseline_preset("smoke", "point_robot", "pearl"),
    )
    run.train(Silent())
    return run


def settings(*paths, **others):
    config = preset_config("smoke", "point_robot", "macaw")
    return replace(config, data=tuple(map(str, paths)), **others)


def test_a_replay_is_a_buffer_for_each_task(pearl):
    data, replay = read_data(str(pearl.path), POINT), pearl.state.replay
    assert len(data) == replay.size == pearl.state.real_samples and data.num_tasks == 3
    lengths = data.ends.nonzero()[:, 0].diff(prepend=torch.tensor([-1]))
    assert lengths.tolist() == [20] * (len(data) // 20), "episodes of a horizon"
    psi = task_sets(POINT, pearl.info.config)[0][data.task].float()
    expected = POINT.reward(psi, data.obs, data.act, data.next_obs)  # unit actions are this family's
    torch.testing.assert_close(data.reward, expected, rtol=0, atol=1e-5)


def test_episodes_end_at_a_termination_a_jump_and_a_horizon():
    obs = torch.tensor([0, 1, 2, 7, 8, 9, 10, 11, 12.0])[:, None]
    next_obs = torch.cat([obs[1:3], torch.tensor([[3.0]]), obs[4:], torch.tensor([[13.0]])])
    terminated = torch.zeros(9, dtype=torch.bool)
    terminated[4] = True
    ends = episode_ends(obs, next_obs, terminated, torch.zeros(9).long(), 3)
    assert ends.nonzero()[:, 0].tolist() == [2, 4, 7, 8]
    other_task = torch.tensor([0] * 6 + [1] * 3)
    assert episode_ends(obs, next_obs, terminated, other_task, 99).nonzero()[:, 0].tolist() == [2, 4, 5, 8]


def episodes(psi, sizes=(2, 2)):
    g = np.random.default_rng(0)
    for n, p in enumerate(psi):
        steps = 10 + n
        yield Episode(
            g.normal(size=(steps + 1, sizes[0])).astype(np.float32),
            g.uniform(-1, 1, (steps, sizes[1])).astype(np.float32),
            g.normal(size=steps).astype(np.float32),
            n == 0,
            np.array(p, dtype=np.float32),
            False,
        )


def minari(folder, psi, sizes=(2, 2), names=("goal x", "goal y")):
    limits = -np.ones(sizes[1]), np.ones(sizes[1])
    write_minari(list(episodes(psi, sizes)), folder, limits, {"task_parameters": list(names)})
    return folder


def test_a_minari_data_set_is_a_buffer_for_each_psi(tmp_path):
    psi = [(0.1, 0.2), (0.5, 0.5), (0.1, 0.2)]
    folder = minari(tmp_path / "two-v0", psi)
    data = read_data(str(folder), POINT)
    assert data.task_sizes().tolist() == [10 + 12, 11] and data.ends.nonzero()[:, 0].tolist() == [9, 20, 32]
    written = list(episodes(psi))
    np.testing.assert_array_equal(data.reward, np.concatenate([e.rewards for e in written]))
    np.testing.assert_array_equal(data.next_obs[10:21], written[1].observations[1:])
    assert data.terminated.nonzero()[:, 0].tolist() == [9]
    both = read_all(with_checksums(settings(folder, folder, num_tasks=3), POINT), POINT)
    assert both.num_tasks == 3 and both.task_sizes().tolist() == [22, 11, 22]


def test_data_that_does_not_fit_is_refused_with_the_remedy(tmp_path, pearl):
    inner = InnerLoopRun.prepare(
        tmp_path / "promp",
        algorithm="promp",
        family="point_robot",
        variant="released",
        preset="smoke",
        seed=0,
        config=inner_loop_preset("smoke", "point_robot", "promp"),
    )
    (tmp_path / "empty").mkdir()
    wide = minari(tmp_path / "wide-v0", [(0.1, 0.2)], sizes=(3, 2))
    other = minari(tmp_path / "other-v0", [(0.1, 0.2)], names=("speed", "mass"))
    cases = [
        (tmp_path / "nowhere", POINT, "there is no such folder"),
        (tmp_path / "empty", POINT, "expected the folder of a run of `admrl train-baseline`"),
        (
            pearl.path,
            make("sparse_point_robot"),
            "a run of the family sparse_point_robot, got 'point_robot'; name",
        ),
        (inner.path, POINT, r"the run \(promp\) keeps no replay, or has saved none yet; name a run of PEARL"),
        (
            wide,
            POINT,
            r"observations: expected the shape \(11, 2\) \(point_robot\), got \(11, 3\); name data",
        ),
        (
            other,
            POINT,
            r"tasks of point_robot, with the parameters \['goal x', 'goal y'\], got \['speed', 'mass'\]",
        ),
    ]
    for path, family, message in cases:
        with pytest.raises(ValueError, match="config.data: .*" + message):
            read_data(str(path), family)


def test_damaged_and_changed_data_is_refused(tmp_path):
    folder = minari(tmp_path / "one-v0", [(0.1, 0.2)])
    config = with_checksums(settings(folder), POINT)
    file = folder / "data" / "main_data.hdf5"
    with h5py.File(file, "a") as opened:
        opened["episode_0/rewards"][3] = 5.0
    with pytest.raises(
        ValueError, match=r"one-v0 has changed since the run was made .*; put the former data back"
    ):
        read_all(config, POINT)
    with h5py.File(file, "a") as opened:
        opened["episode_0/rewards"][3] = np.nan
    with pytest.raises(ValueError, match="episode 0: rewards: expected finite numbers"):
        read_data(str(folder), POINT)
    file.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="the Minari data set cannot be read"):
        read_data(str(folder), POINT)
    (folder / "data" / "metadata.json").write_text(json.dumps({})[:-1])
    with pytest.raises(ValueError, match=r"metadata\.json is damaged"):
        read_data(str(folder), POINT)
