"""Pooled replay of raw transitions; what a context reads of the past is rebuilt from row numbers, never stored.

A row is [unit action, reward, obs, next_obs, terminated], written once, in the order of its episode, and episodes one
after the other. `position` says how many steps of the same episode lie before a row, so that the last L tuples
(a, r, s) before row i are the rows i - L ... i - 1, as far as the episode reaches, and zeros before that.

Shapes: R rows, B agents or tasks of a batch, N transitions of each, L tuples, W = A + 1 + S numbers in each.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from admrl.devices.transfer import on_device
from admrl.storage.sealed_file import check_tensor
from dynamics.precision import lost_digits
from task_families.rollout import Rollout
from task_families.simulator import ActionBounds

ROWS, POSITION, TASK = "rows", "position", "task"


@dataclass(frozen=True, eq=False)
class Batch:
    """Transitions of B tasks, and what went before each of them."""

    obs: Tensor  # (B, N, S)
    act: Tensor  # (B, N, A) unit actions
    reward: Tensor  # (B, N, 1)
    next_obs: Tensor  # (B, N, S)
    terminated: Tensor  # (B, N, 1) 1 where no value lies beyond
    history: Tensor  # (B, N, L, W) tuples (a, r, s) before obs, the newest last
    next_history: Tensor  # (B, N, L, W) before next_obs

    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def to(self, device: torch.device) -> Batch:
        """The same on a device; itself, if it is there."""
        return Batch(*(x.to(device) for x in self.tensors()))


@dataclass(frozen=True, eq=False)
class Episodes:
    """Rows of whole episodes; see the head of this page."""

    rows: Tensor  # (R, 2 S + A + 2)
    position: Tensor  # (R,) int64
    obs_size: int

    def batch(self, index: Tensor, length: int) -> Batch:
        """Transitions of row numbers (B, N), with histories of `length` tuples."""
        s, a = self.obs_size, self.rows.shape[1] - 2 * self.obs_size - 2
        # tuples of the rows index - L ... index: the first L are the history, the last L that of next_obs
        index = index.to(self.rows.device)
        offset = torch.arange(-length, 1, device=self.rows.device)
        act, reward, obs, next_obs, terminated = self.rows[index].split([a, 1, s, s, 1], dim=-1)
        is_known = self.position[index][..., None] + offset >= 0  # of the same episode
        tuples = self.rows[:, : a + 1 + s][(index[..., None] + offset).clamp_min(0)]
        tuples = torch.where(is_known[..., None], tuples, 0.0)
        return Batch(obs, act, reward, next_obs, terminated, tuples[..., :-1, :], tuples[..., 1:, :])


def rows_of(rollout: Rollout, reward: Tensor, bounds: ActionBounds) -> tuple[Tensor, Tensor, Tensor]:
    """What a rollout (M, N, T, .) and its rewards (M, N, T) are as rows (M, N T, .), lane after lane.

    Returns:
        rows, positions (M, N T) and whether each row is sound: a simulation that broke down ends its episode with a
        row that is not.
    """
    ends = rollout.terminated
    step = torch.arange(ends.shape[-1]).expand(ends.shape)
    # an episode begins at step 0 and after every termination
    after = torch.cat([torch.zeros_like(step[..., :1]), torch.where(ends, step + 1, 0)[..., :-1]], -1)
    position = step - after.cummax(-1).values
    parts = [bounds.to_unit(rollout.act), reward[..., None], rollout.obs, rollout.next_obs, ends[..., None]]
    rows = torch.cat([part.float() for part in parts], dim=-1).flatten(1, 2)
    return rows, position.flatten(1), rows.isfinite().all(-1)


class PooledReplay:
    """The rows of all training tasks, in preallocated memory."""

    def __init__(self, num_tasks: int, capacity: int, obs_size: int, act_size: int) -> None:
        """capacity: rows of all tasks together; the training knows how many it will write."""
        self._obs_size, self._num_tasks = obs_size, num_tasks
        # memory is taken when it is written
        self._rows = torch.empty(capacity, 2 * obs_size + act_size + 2, dtype=torch.float32)
        self._position, self._task = (torch.empty(capacity, dtype=torch.int64) for _ in range(2))
        self.size = 0
        self.has_warned = False  # that observations lose digits

    def to(self, device: torch.device) -> None:
        """Move the rows and their positions; to which task one belongs stays on the CPU, as all draws do."""
        for name in ("_rows", "_position"):
            old: Tensor = getattr(self, name)
            new = torch.empty_like(old, device=device)
            new[: self.size] = old[: self.size].to(device)
            setattr(self, name, new)

    @property
    def capacity(self) -> int:
        """Numbers that all rows hold, once they are written."""
        return self._rows.numel() + 2 * len(self._rows)  # a position is as long as two

    @property
    def episodes(self) -> Episodes:
        """All rows so far."""
        return Episodes(self._rows[: self.size], self._position[: self.size], self._obs_size)

    def add(self, task: int, rows: Tensor, position: Tensor) -> None:
        """Write whole episodes of a task, from the CPU: rows (n, .), positions (n,).

        Warns once if the observations lose digits (`dynamics.precision`).

        Raises:
            ValueError: more rows than the replay was made for.
        """
        end = self.size + len(rows)
        if end > len(self._rows):
            raise ValueError(f"replay: made for {len(self._rows)} rows, got {end}")
        here = slice(self.size, end)
        sent = on_device({ROWS: rows, POSITION: position}, self._rows.device)
        self._rows[here], self._position[here], self._task[here] = sent[ROWS], sent[POSITION], task
        if not self.has_warned and len(rows):
            seen = rows[:, -1 - 2 * self._obs_size : -1 - self._obs_size].double()
            note = lost_digits(seen.mean(0), seen.std(0, correction=0), self._rows.dtype)
            if note:
                self.has_warned = True
                warnings.warn(note, stacklevel=2)
        self.size = end

    def draw(self, num: int, newest: int, generator: torch.Generator) -> Tensor:
        """Row numbers (num,), uniform with replacement among the newest rows."""
        begin = max(self.size - newest, 0)
        return torch.randint(begin, self.size, (num,), generator=generator)

    def snapshot(self, newest: int) -> Tensor:
        """Row numbers of the newest rows of every task, at most so many of each."""
        task = self._task[: self.size]
        return torch.cat([(task == k).nonzero()[:, 0][-newest:] for k in range(self._num_tasks)])

    # -- for checkpoints; rows only ever join at the end ---------------------------------------------------------

    def columns(self) -> dict[str, Tensor]:
        """The rows (R, .)."""
        n = self.size
        return {ROWS: self._rows[:n], POSITION: self._position[:n], TASK: self._task[:n]}

    def load(self, columns: dict[str, Tensor]) -> None:
        """Inverse of `columns`.

        Raises:
            ValueError: names what does not fit.
        """
        num = len(columns[TASK]) if TASK in columns else 0
        if num > len(self._rows):
            raise ValueError(f"{ROWS}: expected at most {len(self._rows)}, got {num}")
        rows = check_tensor(columns, ROWS, (num, self._rows.shape[1]), torch.float32)
        position = check_tensor(columns, POSITION, (num,), torch.int64)
        task = check_tensor(columns, TASK, (num,), torch.int64)
        if num and not (0 <= int(task.min()) <= int(task.max()) < self._num_tasks):
            raise ValueError(f"{TASK}: expected numbers from 0 to {self._num_tasks - 1}")
        if bool(((position < 0) | (position > torch.arange(num))).any()):
            raise ValueError(f"{POSITION}: names rows that are not there")
        self._rows[:num], self._position[:num], self._task[:num], self.size = rows, position, task, num
