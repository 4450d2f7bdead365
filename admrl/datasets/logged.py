"""Logged: transitions that somebody logged, in episodes, and the .npz form of them.

    observations       (R, S)  numbers, one row a transition, episodes one after another
    actions            (R, A)
    next_observations  (R, S)  or left out: then observations has R + N rows, each of the N episodes with its last
    ends               (R,)    true in the last transition of an episode; or `terminations` and `truncations` (R,)
    act_low, act_high  (A,)    the simulator's limits of actions, optional

No file executes code: arrays of objects are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from admrl.storage.files import DamagedFileError
from task_families.simulator import ActionBounds

MIN_TRANSITIONS, MIN_EPISODES = 100, 2
SAME = 1e-4  # a next observation is the following one up to so many of its standard deviations: logs round


@dataclass(frozen=True, eq=False)
class Logged:
    """R transitions of whole episodes, one after another, checked; float32."""

    obs: Tensor  # (R, S)
    act: Tensor  # (R, A)
    next_obs: Tensor  # (R, S)
    ends: Tensor  # (R,) bool
    action_bounds: ActionBounds
    bounds_are_given: bool
    """Otherwise the limits are the smallest and largest logged actions."""

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def obs_size(self) -> int:
        """S"""
        return self.obs.shape[1]

    @property
    def act_size(self) -> int:
        """A"""
        return self.act.shape[1]

    @property
    def lengths(self) -> Tensor:
        """(n,) transitions of every episode."""
        last = self.ends.nonzero()[:, 0]
        return last.diff(prepend=last.new_tensor([-1]))

    @classmethod
    def checked(cls, where: str, arrays: Mapping[str, np.ndarray]) -> Logged:
        """From arrays by their names above.

        Args:
            where: the file, for messages.

        Raises:
            ValueError: an array is missing, has another shape, holds no numbers or some that are not finite, the
                episodes' ends are not known, or there are too few transitions or episodes.
        """
        obs, act = (_numbers(where, arrays, name, 2) for name in ("observations", "actions"))
        ends = _ends(where, arrays, len(act))
        if "next_observations" in arrays:
            next_obs = _numbers(where, arrays, "next_observations", 2)
            _same_shape(where, obs, next_obs, len(act))
            _check_continues(where, obs, next_obs, ends)
        else:
            obs, next_obs = _successors(where, obs, ends)
        num_episodes = int(ends.sum())
        if len(act) < MIN_TRANSITIONS or num_episodes < MIN_EPISODES:
            raise ValueError(
                f"{where}: expected {MIN_TRANSITIONS} transitions or more in {MIN_EPISODES} episodes or more, "
                f"some of which are held out, got {len(act)} in {num_episodes}; log more, or cut long episodes"
            )
        bounds, are_given = _bounds(where, arrays, act)
        obs32, act32, next32 = (torch.from_numpy(x.astype(np.float32)) for x in (obs, act, next_obs))
        return cls(obs32, act32, next32, torch.from_numpy(ends), bounds, are_given)

    def episodes(self, chosen: Tensor) -> Logged:
        """Those of the chosen episodes (n,) bool."""
        rows = chosen.repeat_interleave(self.lengths)
        return replace(
            self, obs=self.obs[rows], act=self.act[rows], next_obs=self.next_obs[rows], ends=self.ends[rows]
        )


def read_npz(file: Path) -> Logged:
    """The transitions of an .npz file of the form above.

    Raises:
        ValueError: not such a file; see `Logged.checked`.
    """
    try:
        with file.open("rb") as handle:  # numpy leaves a damaged one open
            is_zip = handle.read(2) == b"PK"
            handle.seek(0)
            opened = np.load(handle, allow_pickle=False) if is_zip else None
            arrays = {name: opened[name] for name in opened.files} if isinstance(opened, NpzFile) else None
    except FileNotFoundError as error:
        raise ValueError(f"{file}: there is no such file") from error
    except Exception as error:  # numpy, zip and zlib each have their own for a damaged file
        raise DamagedFileError(
            f"{file}: expected arrays of numbers as numpy.savez writes them: {error}"
        ) from error
    if arrays is None:
        raise DamagedFileError(
            f"{file}: expected arrays by name, as numpy.savez writes them (.npz), got another sort of file"
        )
    return Logged.checked(str(file), arrays)


def _numbers(where: str, arrays: Mapping[str, np.ndarray], name: str, num_axes: int) -> np.ndarray:
    """An array as finite float64."""
    if name not in arrays:
        found = ", ".join(sorted(arrays)) or "none"
        raise ValueError(f"{where}: the array {name} is missing; found: {found}")
    array = np.asarray(arrays[name])
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: {name}: expected numbers, got {array.dtype}")
    if array.ndim != num_axes or 0 in array.shape[1:]:
        wanted = "(rows, coordinates)" if num_axes == 2 else "(rows,)"
        raise ValueError(f"{where}: {name}: expected the shape {wanted}, got {array.shape}")
    array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).reshape(len(array), -1).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{where}: {name}: {len(bad)} of {len(array)} rows are not finite in float32, the first is row {bad[0]}; "
            "leave them out, and end the episode before them"
        )
    return array


def _ends(where: str, arrays: Mapping[str, np.ndarray], num_rows: int) -> np.ndarray:
    """(R,) bool; the last row always ends an episode, since nothing follows."""
    if "ends" in arrays:
        names = ["ends"]
    elif {"terminations", "truncations"} <= set(arrays):
        names = ["terminations", "truncations"]
    else:
        raise ValueError(
            f"{where}: where episodes end is not known: the array ends is missing (or terminations and truncations); "
            "it is true in the last transition of every episode"
        )
    ends = np.zeros(num_rows, dtype=bool)
    for name in names:
        flags = _numbers(where, arrays, name, 1)
        if flags.shape != (num_rows,):
            raise ValueError(
                f"{where}: {name}: expected one for each of the {num_rows} rows of actions, got {flags.shape}"
            )
        if not np.isin(flags, (0, 1)).all():
            raise ValueError(
                f"{where}: {name}: expected true or false (1 or 0), got {flags[~np.isin(flags, (0, 1))][0]:g}"
            )
        ends |= flags == 1
    ends[-1:] = True
    return ends


def _same_shape(where: str, obs: np.ndarray, next_obs: np.ndarray, num_rows: int) -> None:
    if obs.shape != next_obs.shape or len(obs) != num_rows:
        raise ValueError(
            f"{where}: expected as many rows of observations, actions and next_observations, and observations of one "
            f"size, got {obs.shape}, {num_rows} rows of actions and {next_obs.shape}"
        )


def _check_continues(where: str, obs: np.ndarray, next_obs: np.ndarray, ends: np.ndarray) -> None:
    """Refuse episodes that go on where the observation jumps: their boundary is unknown."""
    jumps = (np.abs(next_obs[:-1] - obs[1:]) > SAME * obs.std(0) + 1e-6 * np.abs(obs[1:])).any(1) & ~ends[:-1]
    if jumps.any():
        row = int(np.flatnonzero(jumps)[0])
        raise ValueError(
            f"{where}: next_observations of row {row} is not observations of row {row + 1}, though ends says that "
            f"the episode goes on there ({int(jumps.sum())} such rows); mark ends where an episode ends"
        )


def _successors(where: str, obs: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations and next ones (R, S) from (R + N, S) with the last observation of every episode."""
    num_episodes = int(ends.sum())
    if len(obs) != len(ends) + num_episodes:
        raise ValueError(
            f"{where}: without next_observations, expected observations with one row more than actions for each of "
            f"the {num_episodes} episodes, {len(ends) + num_episodes}, got {len(obs)}"
        )
    first = np.arange(len(ends)) + ends.cumsum() - ends
    return obs[first], obs[first + 1]


def _bounds(where: str, arrays: Mapping[str, np.ndarray], act: np.ndarray) -> tuple[ActionBounds, bool]:
    """The limits of actions; those of the log where none are given, and none where an action never changes."""
    size = act.shape[1]
    if ("act_low" in arrays) != ("act_high" in arrays):
        raise ValueError(f"{where}: expected both act_low and act_high, or neither")
    if "act_low" in arrays:
        ends = [np.asarray(arrays[name], dtype=np.float64) for name in ("act_low", "act_high")]
        try:
            return ActionBounds.make(size, *(x.tolist() for x in ends)), True
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    low, high = act.min(0), act.max(0)
    moves = high > low
    return ActionBounds.make(
        size, np.where(moves, low, -np.inf).tolist(), np.where(moves, high, np.inf).tolist()
    ), False
