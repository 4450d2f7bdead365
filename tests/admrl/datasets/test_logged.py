"""The .npz form: what is read, and one clear error for everything that is wrong."""

import numpy as np
import pytest
import torch
from data_tools import linear_arrays

from admrl.datasets.logged import Logged, read_npz
from admrl.datasets.reading import read_data
from admrl.storage.files import DamagedFileError

ARRAYS = linear_arrays(num_episodes=5, num_steps=30)


def saved(tmp_path, **changes):
    file = tmp_path / "log.npz"
    np.savez(file, **{k: v for k, v in (ARRAYS | changes).items() if v is not None})
    return file


def with_value(name, row, value):
    array = ARRAYS[name].copy()
    array[row] = value
    return array


def test_every_number_is_kept(tmp_path):
    data = read_data(saved(tmp_path))
    for name, found in (
        ("observations", data.obs),
        ("actions", data.act),
        ("next_observations", data.next_obs),
    ):
        np.testing.assert_array_equal(found.numpy(), ARRAYS[name].astype(np.float32))
    assert data.ends.tolist() == ARRAYS["ends"].tolist() and data.lengths.tolist() == [30] * 5
    assert data.action_bounds.low.tolist() == [-1.0] and data.bounds_are_given
    some = data.episodes(torch.tensor([False, True, False, False, True]))
    assert torch.equal(some.obs, torch.cat([data.obs[30:60], data.obs[120:]]))
    assert some.lengths.tolist() == [30, 30]


def test_two_flags_in_place_of_ends_and_a_last_row_that_ends_by_itself(tmp_path):
    ends = ARRAYS["ends"].copy()
    ends[-1] = False
    terminations = ends & (np.arange(len(ends)) < 60)
    file = saved(tmp_path, ends=None, terminations=terminations, truncations=ends & ~terminations)
    assert read_npz(file).ends.tolist() == ARRAYS["ends"].tolist()


def test_observations_with_the_last_one_of_each_episode(tmp_path):
    obs = ARRAYS["observations"].reshape(5, 30, 2)
    last = ARRAYS["next_observations"].reshape(5, 30, 2)[:, -1:]
    longer = np.concatenate([obs, last], axis=1).reshape(-1, 2)
    data = read_npz(saved(tmp_path, observations=longer, next_observations=None))
    np.testing.assert_array_equal(data.next_obs.numpy(), ARRAYS["next_observations"].astype(np.float32))
    with pytest.raises(ValueError, match=r"without next_observations.*5 episodes, 155, got 150"):
        read_npz(saved(tmp_path, next_observations=None))


def test_limits_that_are_not_given_are_those_of_the_log(tmp_path):
    data = read_npz(saved(tmp_path, act_low=None, act_high=None))
    assert not data.bounds_are_given
    assert data.action_bounds.low.item() == ARRAYS["actions"].min()
    still = read_npz(saved(tmp_path, actions=np.ones((150, 1)), act_low=None, act_high=None))
    assert still.action_bounds.low.item() == -np.inf  # never moved: no unit, no limit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": None}, "the array observations is missing; found: act_high, act_low, actions"),
        ({"ends": None}, "where episodes end is not known: the array ends is missing"),
        (
            {"actions": ARRAYS["actions"][:, 0]},
            r"actions: expected the shape \(rows, coordinates\), got \(150,\)",
        ),
        ({"actions": ARRAYS["actions"][:-1]}, "ends: expected one for each of the 149 rows"),
        (
            {"next_observations": ARRAYS["next_observations"][:, :1]},
            r"of one size, got \(150, 2\).*\(150, 1\)",
        ),
        (
            {"observations": with_value("observations", 7, np.nan)},
            "observations: 1 of 150 rows.*first is row 7",
        ),
        ({"actions": with_value("actions", 3, 1e300)}, "not finite in float32, the first is row 3"),
        ({"actions": np.full((150, 1), "left")}, "actions: expected numbers, got <U4"),
        ({"ends": with_value("ends", 29, False)}, "row 29 is not observations of row 30.*mark ends"),
        ({"ends": np.full(150, 2)}, r"ends: expected true or false \(1 or 0\), got 2"),
        ({"ends": np.zeros(150)[:, None]}, r"ends: expected the shape \(rows,\)"),
        ({"act_high": None}, "both act_low and act_high, or neither"),
        ({"act_low": np.array([2.0])}, "every low below its high"),
        ({"act_low": np.array([-1.0, -1.0])}, "act_low: expected a number, or one for each of the 1"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_npz(saved(tmp_path, **changes))


@pytest.mark.parametrize(
    "sizes", [{"num_episodes": 1, "num_steps": 200}, {"num_episodes": 3, "num_steps": 33}]
)
def test_too_little(sizes):
    with pytest.raises(ValueError, match=r"expected 100 transitions or more in 2 episodes or more, .*got"):
        Logged.checked("log", linear_arrays(**sizes))


def test_files_that_are_something_else(tmp_path):
    np.save(tmp_path / "one.npy", ARRAYS["actions"])
    with pytest.raises(DamagedFileError, match="expected arrays by name"):
        read_npz(tmp_path / "one.npy")
    whole = saved(tmp_path).read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"1 2 3\n4 5 6\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedFileError, match="expected arrays") as refused:
            read_npz(tmp_path / name)
        assert "pickle" not in str(refused.value), "numpy's advice for other files"
    np.savez(tmp_path / "objects.npz", observations=np.array([{}, {}]))
    with pytest.raises(DamagedFileError, match="expected arrays of numbers"):
        read_npz(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="there is no such file or folder"):
        read_data(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"expected the folder of a Minari data set.*or an .npz file"):
        read_data(tmp_path)
