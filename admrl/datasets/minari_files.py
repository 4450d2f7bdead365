"""Minari data sets (extra `minari`), in folders that the caller names; nothing is downloaded or written elsewhere.

    FOLDER/data/main_data.hdf5     episode_0, ...: observations (T + 1, S), actions (T, A), rewards (T,), ...
    FOLDER/data/metadata.json      spaces, sizes, where the numbers come from

Minari names data sets NAME-vNUMBER, and finds FOLDER by that name if MINARI_DATASETS_PATH is the folder around it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from admrl.datasets.logged import Logged
from admrl.storage.files import TEMPORARY, DamagedFileError, check_place, storage_error

MISSING = 'Minari data sets need minari and h5py: pip install "admrl[minari]"'
NAME = re.compile(r"[-_\w]+-v\d+")


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode as Minari keeps it."""

    observations: np.ndarray  # (T + 1, S)
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    terminated: bool  # at its last step; otherwise it was cut
    psi: np.ndarray  # (k,)
    held_out: bool  # never fitted by the run that it is of


def require_minari() -> None:
    """
    Raises:
        ImportError: an optional package is missing; says how to install it.
    """
    if find_spec("minari") is None or find_spec("h5py") is None:
        raise ImportError(MISSING)


def check_folder_name(folder: Path) -> None:
    """
    Raises:
        ValueError: Minari has no such names, or it is there already, or nothing is around it.
    """
    if not NAME.fullmatch(folder.name):
        stem = re.sub(r"-v\d+$", "", folder.name)
        number = folder.name[len(stem) :] or "-v0"
        raise ValueError(
            "out: expected a folder named as Minari names data sets, letters, digits, - and _ with a version at the "
            f"end, e.g. {re.sub(r'[^-_a-zA-Z0-9]+', '-', stem).strip('-') or 'data'}{number}, got {folder}"
        )
    check_new_folder(folder)


def check_new_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: it is there already, or the folder that it is to be in is not.
    """
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"out: {folder} already exists; choose another, or remove it")
    check_place(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside the one that it becomes at the end; whatever happens, never half of it.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        raise


def write_minari(
    episodes: Sequence[Episode],
    folder: Path,
    act_limits: tuple[np.ndarray, np.ndarray],
    about: dict[str, Any],
) -> None:
    """Write a new data set.

    Args:
        act_limits: lowest and highest actions (A,), may be infinite.
        about: further metadata: plain data.

    Raises:
        ValueError: see `check_folder_name`.
        ImportError: minari is not installed.
        StorageError: it cannot be written.
    """
    require_minari()
    check_folder_name(folder)
    from gymnasium.spaces import Box
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    first = episodes[0]
    low, high = (x.astype(first.actions.dtype) for x in act_limits)
    with new_folder(folder) as unfinished:
        storage = MinariStorage.new(
            (unfinished / "data").resolve(),  # minari cannot measure a relative one
            observation_space=Box(-np.inf, np.inf, first.observations.shape[1:], first.observations.dtype),
            action_space=Box(low, high, dtype=first.actions.dtype),
            jpeg_encoding=False,
        )
        storage.update_metadata({"dataset_id": folder.name, "minari_version": version("minari"), **about})
        storage.update_episodes([EpisodeBuffer(**_buffer(episode)) for episode in episodes])
        storage.update_episode_metadata([{"held_out": episode.held_out} for episode in episodes])


def _buffer(episode: Episode) -> dict[str, Any]:
    last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
    return {
        "options": {"psi": episode.psi},  # as of env.reset(options={"psi": psi})
        "observations": episode.observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": last & episode.terminated,
        "truncations": last & (not episode.terminated),
    }


def read_minari(folder: Path) -> Logged:
    """The transitions of a data set's folder; its rewards are not needed.

    Raises:
        ValueError: no data set, or one whose observations or actions are not rows of numbers; see `Logged.checked`.
        ImportError: minari is not installed.
    """
    data = folder / "data" if (folder / "data").is_dir() else folder
    if not (data / "metadata.json").is_file():
        raise ValueError(
            f"{folder}: expected the folder of a Minari data set (with data/metadata.json), or an .npz file"
        )
    require_minari()
    from minari.dataset.minari_storage import MinariStorage

    try:
        missing = {"observation_space", "action_space"} - set(MinariStorage.read_raw_metadata(data))
        if missing:  # minari would make the environment that the file names, and so run code
            raise DamagedFileError(
                f"{folder}: metadata.json does not say its {' and '.join(sorted(missing))}"
            )
        storage = MinariStorage.read(data)
        low, high = _check_spaces(folder, storage)
        episodes = list(storage.get_episodes(range(storage.total_episodes)))
    except (DamagedFileError, MemoryError):
        raise
    except Exception as error:  # minari, h5py and gymnasium each have their own for a damaged file
        raise DamagedFileError(f"{folder}: the Minari data set cannot be read: {error}") from error
    if not episodes:
        raise ValueError(f"{folder}: the data set has no episodes")
    for episode in episodes:
        steps, seen = len(episode["actions"]), len(episode["observations"])
        if seen != steps + 1:
            raise ValueError(
                f"{folder}: episode {episode['id']}: "
                f"expected {steps + 1} observations, one after the last action, got {seen}"
            )
    last = [np.arange(len(e["actions"])) == len(e["actions"]) - 1 for e in episodes]
    arrays = {name: np.concatenate([e[name] for e in episodes]) for name in ("observations", "actions")}
    arrays["ends"] = np.concatenate(last)
    if np.isfinite(low).all() and np.isfinite(high).all():
        arrays |= {"act_low": low, "act_high": high}
    return Logged.checked(str(folder), arrays)


def _check_spaces(folder: Path, storage: Any) -> tuple[np.ndarray, np.ndarray]:
    """The limits of actions, if both spaces are boxes of one axis."""
    from gymnasium.spaces import Box

    for name in ("observation_space", "action_space"):
        space = getattr(storage, name)
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise DamagedFileError(
                f"{folder}: {name}: expected a box of numbers in one axis, got {space}; flatten it, "
                "and save an .npz file"
            )
    return storage.action_space.low.astype(np.float64), storage.action_space.high.astype(np.float64)
