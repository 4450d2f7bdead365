"""D as a Minari data set: what minari itself reads is D, number by number; and data sets of others."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from adapter_tools import small_run
from data_tools import linear_arrays

from admrl.datasets import minari_files
from admrl.datasets.minari_files import Episode, read_minari, write_minari
from admrl.datasets.reading import read_data
from admrl.datasets.run_data import export_data
from admrl.storage.files import DamagedFileError, StorageError

minari = pytest.importorskip("minari", reason='needs the extra: pip install "admrl[minari]"')
pytest.importorskip("h5py", reason='needs the extra: pip install "admrl[minari]"')
LIMITS = (np.array([-1.0]), np.array([1.0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("export") / "run")


def episodes(num=5, num_steps=30):
    arrays = {k: v.astype(np.float32) for k, v in linear_arrays(num, num_steps).items()}
    obs, act, after = (
        arrays[k].reshape(num, num_steps, -1) for k in ("observations", "actions", "next_observations")
    )
    return [
        Episode(
            observations=np.concatenate([obs[i], after[i, -1:]]),
            actions=act[i],
            rewards=np.arange(num_steps, dtype=np.float32),
            terminated=i % 2 == 0,
            psi=np.array([i, -i], dtype=np.float32),
            held_out=i == 3,
        )
        for i in range(num)
    ]


def test_minari_reads_exactly_d(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    done = export_data(run, tmp_path / "point_robot-v0")
    data, found = run.learner.data[0], minari.load_dataset("point_robot-v0")
    assert done.num_transitions == len(data) == found.total_steps and done.num_left_out == 0
    first, psi = 0, torch.tensor(run.state.records[0].psi)
    for episode, about in zip(found, found.storage.get_episode_metadata(range(len(found))), strict=True):
        rows = slice(first, first + len(episode))
        obs, act, after = data.obs[rows], data.act[rows], data.next_obs[rows]
        np.testing.assert_array_equal(episode.observations[:-1], obs.numpy())
        np.testing.assert_array_equal(episode.observations[1:], after.numpy())
        np.testing.assert_array_equal(episode.actions, act.numpy())
        np.testing.assert_array_equal(about["options"]["psi"], psi.numpy())
        np.testing.assert_array_equal(episode.rewards, run.family.reward(psi, obs, act, after).numpy())
        assert episode.observations.dtype == episode.rewards.dtype == np.float32
        assert (
            not episode.terminations.any() and not episode.truncations[:-1].any() and episode.truncations[-1]
        )
        assert bool(about["held_out"]) == bool(data.is_held_out[first]) and bool(data.ends[rows][-1])
        first += len(episode)
    assert first == len(data) and sorted(p.name for p in tmp_path.iterdir()) == ["point_robot-v0"]
    back = read_data(tmp_path / "point_robot-v0")
    for name in ("obs", "act", "next_obs", "ends"):
        assert torch.equal(getattr(back, name), getattr(data, name))
    assert torch.equal(back.action_bounds.low, run.family.action_bounds.low)


def test_one_task_for_all_rewards(run, tmp_path):
    psi = torch.tensor([0.25, -0.5])
    export_data(run, tmp_path / "one-v3", psi)
    found, data = minari.MinariDataset(tmp_path / "one-v3" / "data"), run.learner.data[0]
    rewards = np.concatenate([episode.rewards for episode in found])
    np.testing.assert_array_equal(rewards, run.family.reward(psi, data.obs, data.act, data.next_obs).numpy())
    assert found.spec.version == 3


def test_nothing_is_written_elsewhere_or_downloaded(tmp_path):
    """In a home of its own, with every connection refused."""
    code = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_minari_files import LIMITS, episodes, write_minari, read_minari\n"
        "from pathlib import Path\n"
        "write_minari(episodes(), Path('some-v0'), LIMITS, {})\n"
        "print(len(read_minari(Path('some-v0'))))\n"
    )
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "MINARI_DATASETS_PATH"} | {
        "HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0 and result.stdout == "150\n", result.stderr
    assert [p.name for p in work.iterdir()] == ["some-v0"]
    assert not [p for p in home.rglob("*") if "minari" in str(p)]


def test_flags_and_metadata_of_every_episode(tmp_path):
    write_minari(episodes(), tmp_path / "some-v0", LIMITS, {"algorithm_name": "by hand"})
    found = minari.MinariDataset(tmp_path / "some-v0" / "data")
    for i, episode in enumerate(found):
        assert episode.terminations.tolist() == [False] * 29 + [i % 2 == 0]
        assert episode.truncations.tolist() == [False] * 29 + [i % 2 == 1]
    about = list(found.storage.get_episode_metadata(range(5)))
    assert [a["options"]["psi"].tolist() for a in about] == [[i, -i] for i in range(5)]
    assert [bool(a["held_out"]) for a in about] == [False, False, False, True, False]
    assert found.storage.metadata["algorithm_name"] == "by hand"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_leaves_nothing(tmp_path, monkeypatch, failure):
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def fail(*args, **options):
        raise failure

    monkeypatch.setattr(HDF5Storage, "update_episode_metadata", fail)
    with pytest.raises(StorageError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_minari(episodes(), tmp_path / "some-v0", LIMITS, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hopper", "with a version at the end, e.g. hopper-v0, got"),
        ("a b-v3", "e.g. a-b-v3, got"),
        ("lift ö-v0", "e.g. lift-v0, got"),
        ("...", "e.g. data-v0, got"),
        ("there-v0", "there-v0 already exists"),
        ("nowhere/some-v0", "the folder .*nowhere does not exist"),
    ],
)
def test_folders_that_cannot_be(tmp_path, name, message):
    (tmp_path / "there-v0").mkdir()
    with pytest.raises(ValueError, match=message):
        write_minari(episodes(), tmp_path / name, LIMITS, {})
    assert [p.name for p in tmp_path.iterdir()] == ["there-v0"]


def test_a_data_set_of_minaris_own_collector(tmp_path, monkeypatch):
    """As users make them, with an environment's steps; its spaces have no limits of observations."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = __import__("gymnasium").spaces.Box
    buffers = [
        EpisodeBuffer(
            observations=e.observations, actions=e.actions, rewards=e.rewards,
            terminations=np.zeros(30, bool), truncations=np.arange(30) == 29,
        )
        for e in episodes()
    ]  # fmt: skip
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "own/log-v1",
            buffers,
            action_space=space(-2.0, 2.0, (1,)),
            observation_space=space(-9.0, 9.0, (2,)),
        )
    data = read_data(tmp_path / "own" / "log-v1")
    assert data.lengths.tolist() == [30] * 5 and data.action_bounds.high.tolist() == [2.0]
    np.testing.assert_array_equal(data.next_obs[29].numpy(), buffers[0].observations[-1])


def damaged(tmp_path, change):
    write_minari(episodes(), tmp_path / "some-v0", LIMITS, {})
    file = tmp_path / "some-v0" / "data" / "metadata.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    return tmp_path / "some-v0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("observation_space"), "does not say its observation_space"),
        (
            lambda a: a.update(action_space='{"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}'),
            "in one axis",
        ),
        (lambda a: a.update(total_episodes=7), "cannot be read"),
        (lambda a: a.update(total_episodes=0), "has no episodes"),
        (lambda a: a.update(data_format="tape"), "cannot be read"),
    ],
)
def test_damaged_data_sets(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_minari(damaged(tmp_path, change))


def test_half_a_file(tmp_path):
    folder = damaged(tmp_path, lambda a: None)
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_minari(folder)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder = damaged(tmp_path, lambda a: None)
    monkeypatch.setattr(minari_files, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "admrl\[minari\]"'):
        read_minari(folder)
