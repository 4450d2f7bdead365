"""Recorded data of many tasks from files: runs of `admrl train-baseline`, and Minari data sets.

    a run that keeps a replay (PEARL, CRL, SAC, ...)   a buffer for each of its training tasks, rewards of the family
    a run of MACAW                                     its buffers
    a Minari data set (extra `minari`: h5py)           a buffer for each psi in `options`; one, where there is none

Episodes of a replay are told apart where one terminates, where observations jump, and after a horizon. No file
executes code: safetensors, JSON and HDF5 are read, and no environment is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.offline.buffers import ROWS, TASK, ActionUnits, OfflineData, joined
from admrl.offline.config import MacawConfig
from admrl.runs.checkpoints import CheckpointStore
from admrl.runs.config_file import CONFIG, OFFLINE, read_config
from admrl.storage.files import DamagedFileError, parse_json
from admrl.storage.sealed_file import check_tensor
from policy_opt.categorical_policy import one_hot
from task_families.family import TaskFamily

MISSING = 'Minari data sets need h5py: pip install "admrl[minari]"'
REPLAY_FLAGS = (
    4  # behind [obs, act, next_obs]: reward of the critic, reward of the family, terminated, in a context
)


def with_checksums(config: MacawConfig, family: TaskFamily) -> MacawConfig:
    """The settings with the checksum of each of `data`, after reading it.

    Raises:
        ValueError, ImportError: see `read_data`.
    """
    found = tuple(checksum(read_data(path, family)) for path in config.data)
    if config.data_sha256 and config.data_sha256 != found:
        raise ValueError(f"config.data_sha256: expected {list(found)}, got {list(config.data_sha256)}")
    return replace(config, data_sha256=found)


def read_all(config: MacawConfig, family: TaskFamily) -> OfflineData:
    """The buffers of all of `config.data`, one after another, the first num_tasks of them.

    Raises:
        ValueError: a file is no longer what it was when the run was made; or see `read_data`.
    """
    parts, num_tasks = [], 0
    for path, expected in zip(config.data, config.data_sha256, strict=True):
        data = read_data(path, family)
        if (found := checksum(data)) != expected:
            raise ValueError(
                f"config.data: {path} has changed since the run was made (checksum {found[:8]}, not {expected[:8]}); "
                "put the former data back, or train anew"
            )
        parts.append(replace(data, task=data.task + num_tasks))
        num_tasks += data.num_tasks
    return joined(parts, num_tasks).first_tasks(config.num_tasks)


def checksum(data: OfflineData) -> str:
    """SHA-256 of the transitions and their tasks."""
    digest = hashlib.sha256()
    for column in data.columns().values():
        digest.update(column.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_data(path: str, family: TaskFamily) -> OfflineData:
    """The buffers of one folder.

    Raises:
        ValueError: neither kind of folder, of another family or variant, with other spaces, empty or damaged.
        ImportError: h5py is not installed.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"config.data: {path}: there is no such folder")
    if (folder / CONFIG).is_file():
        return _of_run(folder, family)
    for data in (folder / "data", folder):
        if (data / "main_data.hdf5").is_file():
            return _of_minari(data, family)
    raise ValueError(
        f"config.data: {path}: expected the folder of a run of `admrl train-baseline` (with {CONFIG}) or of a Minari "
        "data set (with data/main_data.hdf5)"
    )


# -- runs ---------------------------------------------------------------------------------------------------------


def _of_run(folder: Path, family: TaskFamily) -> OfflineData:
    said = read_config(folder, command="train-baseline")
    for name, expected in (("family", family.name), ("variant", family.variant)):
        if (found := said.get(name)) != expected:
            raise ValueError(
                f"config.data: {folder}: expected a run of the {name} {expected}, got {found!r:.60}; name data "
                "of the family that is trained on"
            )
    checkpoint, _ = CheckpointStore(folder).load()
    if checkpoint is None or ROWS not in checkpoint.rows or TASK not in checkpoint.rows:
        raise ValueError(
            f"config.data: {folder}: the run ({said.get('algorithm') or said.get('selector')}) keeps no replay, or "
            "has saved none yet; name a run of PEARL, CRL, SAC, MT-joint, PEARL-MT or MACAW; "
            "data of a run of `admrl train` has to be exported before (`admrl export-data`)"
        )
    try:
        if said.get("kind") == OFFLINE:
            return OfflineData.from_columns(checkpoint.rows, family.obs_size, family.act_size)
        return _of_replay(checkpoint.rows, family)
    except ValueError as error:
        raise DamagedFileError(f"config.data: {folder}: does not fit {family.name}: {error}") from error


def _of_replay(columns: dict[str, Tensor], family: TaskFamily) -> OfflineData:
    """Rows of `admrl.baselines.replay`."""
    widths = [family.obs_size, family.act_size, family.obs_size, 1, 1, 1, 1]
    rows = check_tensor(columns, ROWS, (None, sum(widths)), torch.float32)
    task = check_tensor(columns, TASK, (len(rows),), torch.int64)
    obs, act, next_obs, _, reward, terminated, _ = rows.split(widths, dim=1)
    ended = terminated[:, 0] > 0
    ends = episode_ends(obs, next_obs, ended, task, family.horizon)
    if family.picks_largest:
        act = one_hot(act)
    return OfflineData.of(obs, act, next_obs, reward[:, 0], ended, ends, task, int(task.max()) + 1)


def episode_ends(obs: Tensor, next_obs: Tensor, terminated: Tensor, task: Tensor, horizon: int) -> Tensor:
    """Where episodes end (R,) bool, of rows in the order in which whole lanes were written; see the head."""
    goes_on = (next_obs[:-1] == obs[1:]).all(1) & (task[:-1] == task[1:])
    ends = terminated.clone()
    ends[:-1] |= ~goes_on
    ends[-1] = True
    last = ends.nonzero()[:, 0]
    lengths = last.diff(prepend=last.new_tensor([-1]))
    begins = (last - lengths + 1).repeat_interleave(lengths)
    age = torch.arange(len(ends)) - begins
    return ends | (age % horizon == horizon - 1)


# -- Minari -------------------------------------------------------------------------------------------------------


def _of_minari(data: Path, family: TaskFamily) -> OfflineData:
    if find_spec("h5py") is None:
        raise ImportError(MISSING)
    import h5py

    _check_metadata(data, family)
    parts: list[tuple[bytes, dict[str, np.ndarray]]] = []
    try:
        with h5py.File(data / "main_data.hdf5") as file:
            for n in range(len(file)):
                episode = file[f"episode_{n}"]
                psi = np.asarray(episode.attrs.get("options/psi", ()), dtype=np.float64)
                names = ("observations", "actions", "rewards", "terminations")
                parts.append((psi.tobytes(), {name: np.asarray(episode[name]) for name in names}))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"config.data: {data}: the Minari data set cannot be read: {error}") from error
    if not parts:
        raise ValueError(f"config.data: {data}: the data set has no episodes")
    order = {key: k for k, key in enumerate(dict.fromkeys(key for key, _ in parts))}
    return joined([_episode(data, n, e, order[k], family) for n, (k, e) in enumerate(parts)], len(order))


def _check_metadata(data: Path, family: TaskFamily) -> None:
    """Refuse a data set that says that its tasks are of another family."""
    file = data / "metadata.json"
    try:
        said = parse_json(file.read_bytes()) if file.is_file() else {}
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"config.data: {file} is damaged: {error}") from error
    names: Any = said.get("task_parameters") if isinstance(said, dict) else None
    if names is not None and list(names) != list(family.box.names):
        raise ValueError(
            f"config.data: {data}: expected tasks of {family.name}, with the parameters {list(family.box.names)}, "
            f"got {list(names)}; name data of the family that is trained on"
        )


def _episode(
    data: Path, number: int, arrays: dict[str, np.ndarray], task: int, family: TaskFamily
) -> OfflineData:
    obs, act, reward, terminated = arrays.values()
    steps = len(act)
    expected = (steps + 1, family.obs_size), (steps, family.act_size), (steps,), (steps,)
    for (name, array), shape in zip(arrays.items(), expected, strict=True):
        if array.shape != shape:
            raise ValueError(
                f"config.data: {data}: episode {number}: {name}: expected the shape {shape} ({family.name}), got "
                f"{array.shape}; name data of the family that is trained on"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ValueError(f"config.data: {data}: episode {number}: {name}: expected finite numbers")
    if not steps:
        raise ValueError(f"config.data: {data}: episode {number} is empty")
    units = ActionUnits(family.action_bounds, family.picks_largest)
    observed = torch.from_numpy(obs.astype(np.float32))
    ends = torch.zeros(steps, dtype=torch.bool)
    ends[-1] = True
    return OfflineData.of(
        observed[:-1],
        units(torch.from_numpy(act.astype(np.float32))),
        observed[1:],
        torch.from_numpy(reward.astype(np.float32)),
        torch.from_numpy(terminated.astype(bool)),
        ends,
        torch.full((steps,), task),
        task + 1,
    )
