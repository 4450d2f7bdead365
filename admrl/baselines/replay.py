"""Replay of many tasks in one preallocated tensor, sampled without a loop; a context is a set of rows of it.

A row is [obs, unit action, next_obs, reward, context reward, terminated, in a context], written once, as they arrive.
Three tables hold row numbers by task: all of the task (the RL buffer), those of its present context (PEARL's encoder
buffer, cleared before a task is sampled again), and those of all its contexts, cleared or not.

The rows may be on a GPU (`to`); the tables and what is drawn from them are on the CPU, so that every device sees the
same draws, for an upload of their numbers.

Shapes: R rows, K tasks, B tasks of a batch, N transitions of each.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from admrl.devices.transfer import on_device
from admrl.solving.sac import Batch
from admrl.storage.sealed_file import check_tensor
from dynamics.precision import lost_digits

ROWS, TASK = "rows", "task"


class RowTable:
    """Numbers of rows by task: (K, capacity) and how many are valid (K,)."""

    def __init__(self, num_tasks: int) -> None:
        self.index = torch.zeros(num_tasks, 1, dtype=torch.int64)
        self.size = torch.zeros(num_tasks, dtype=torch.int64)

    def add(self, task: int, rows: Tensor) -> None:
        """Append rows (n,) to a task's."""
        size = int(self.size[task])
        needed = size + len(rows)
        if needed > self.index.shape[1]:
            grown = torch.zeros(len(self.index), max(needed, 2 * self.index.shape[1]), dtype=torch.int64)
            grown[:, : self.index.shape[1]] = self.index
            self.index = grown
        self.index[task, size:needed] = rows
        self.size[task] = needed

    def clear(self, task: int) -> None:
        """Forget a task's rows."""
        self.size[task] = 0

    def draw(self, tasks: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Rows (B, num), uniform with replacement among those of tasks (B,); every task must have some."""
        share = torch.rand(len(tasks), num, generator=generator, dtype=torch.float64)
        position = (share * self.size[tasks, None]).long()
        return self.index[tasks[:, None], position]

    def draw_window(
        self, tasks: Tensor, num: int, generator: torch.Generator, *, length: int, stride: int
    ) -> Tensor:
        """Rows (B, num) of tasks (B,), uniform with replacement among `length` consecutive ones of each.

        These begin at a random multiple of `stride`. A task with fewer rows shows all it has.
        """
        size = self.size[tasks, None]
        num_places = ((size - length) // stride + 1).clamp(min=1)
        place, share = (torch.rand(len(tasks), n, generator=generator, dtype=torch.float64) for n in (1, num))
        begin = stride * (place * num_places).long()
        position = begin + (share * size.clamp(max=length)).long()
        return self.index[tasks[:, None], position]


class MultiTaskReplay:
    """See the head of this page."""

    def __init__(self, num_tasks: int, capacity: int, obs_size: int, act_size: int) -> None:
        """capacity: rows of all tasks together; the training knows how many it will write."""
        self._widths = [obs_size, act_size, obs_size, 1, 1, 1, 1]
        self._rows = torch.empty(
            capacity, sum(self._widths), dtype=torch.float32
        )  # memory is taken when it is written
        self._task = torch.empty(capacity, dtype=torch.int64)
        self.size = 0
        self.has_warned = False  # that observations lose digits
        self.all, self.context, self.all_contexts = (RowTable(num_tasks) for _ in range(3))

    def to(self, device: torch.device | str) -> None:
        """Move the rows."""
        rows = torch.empty_like(self._rows, device=device)
        rows[: self.size] = self._rows[: self.size].to(device)
        self._rows = rows

    @property
    def capacity(self) -> int:
        """Numbers that all rows hold, once they are written."""
        return self._rows.numel()

    def add(
        self,
        task: int,
        obs: Tensor,
        act: Tensor,
        next_obs: Tensor,
        reward: Tensor,
        context_reward: Tensor,
        terminated: Tensor,
        *,
        to_context: bool,
    ) -> None:
        """Write n transitions of a task, from the CPU: obs (n, S), act (n, A), next_obs (n, S), the others (n,).

        Warns once if the observations lose digits (`dynamics.precision`).

        Raises:
            ValueError: more rows than the replay was made for.
        """
        columns = [obs, act, next_obs, reward[:, None], context_reward[:, None], terminated[:, None].float()]
        columns += [torch.full((len(obs), 1), float(to_context), dtype=torch.float32)]
        new = torch.cat([c.to(self._rows.dtype) for c in columns], dim=-1)
        end = self.size + len(new)
        if end > len(self._rows):
            raise ValueError(f"replay: made for {len(self._rows)} rows, got {end}")
        self._rows[self.size : end] = on_device({ROWS: new}, self._rows.device)[ROWS]
        self._task[self.size : end] = task
        if not self.has_warned and len(obs):
            seen = obs.double()
            note = lost_digits(seen.mean(0), seen.std(0, correction=0), self._rows.dtype)
            if note:
                self.has_warned = True
                warnings.warn(note, stacklevel=2)
        rows = torch.arange(self.size, end)
        self.all.add(task, rows)
        if to_context:
            self.context.add(task, rows)
            self.all_contexts.add(task, rows)
        self.size = end

    def sample(self, tasks: Tensor, num: int, generator: torch.Generator) -> Batch:
        """A batch for gradient steps: num transitions of each of tasks (B,)."""
        rows = self._rows[self.all.draw(tasks, num, generator).to(self._rows.device)]
        obs, act, next_obs, reward, _, terminated, _ = rows.split(self._widths, dim=-1)
        return Batch(obs, act, reward, next_obs, terminated)

    def sample_context(
        self,
        tasks: Tensor,
        num: int,
        generator: torch.Generator,
        *,
        has_next_obs: bool,
        window: tuple[int, int] | None = None,
    ) -> Tensor:
        """Contexts (B, num, .) of [obs, act, context reward] and next_obs, if wanted.

        Args:
            window: length and stride of the consecutive transitions from which a context is drawn (see
                `RowTable.draw_window`), among those of all contexts of the task. None: from its present context.
        """
        if window is None:
            drawn = self.context.draw(tasks, num, generator)
        else:
            drawn = self.all_contexts.draw_window(tasks, num, generator, length=window[0], stride=window[1])
        obs, act, next_obs, _, reward, _, _ = self._rows[drawn.to(self._rows.device)].split(
            self._widths, dim=-1
        )
        return context_rows(obs, act, reward, next_obs if has_next_obs else None)

    # -- for checkpoints; rows only ever join at the end ---------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All but the rows."""
        return {"context.index": self.context.index, "context.size": self.context.size}

    def columns(self) -> dict[str, Tensor]:
        """The rows (R, .)."""
        return {ROWS: self._rows[: self.size], TASK: self._task[: self.size]}

    def load(self, columns: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Inverse of both.

        Raises:
            ValueError: names what does not fit.
        """
        num_tasks = len(self.all.size)
        num_rows = len(columns[TASK]) if TASK in columns else 0
        if num_rows > len(self._rows):
            raise ValueError(f"{ROWS}: expected at most {len(self._rows)}, got {num_rows}")
        rows = check_tensor(columns, ROWS, (num_rows, sum(self._widths)), torch.float32)
        task = check_tensor(columns, TASK, (num_rows,), torch.int64)
        index = check_tensor(tensors, "context.index", (num_tasks, None), torch.int64)
        size = check_tensor(tensors, "context.size", (num_tasks,), torch.int64)
        if num_rows and not (0 <= int(task.min()) <= int(task.max()) < num_tasks):
            raise ValueError(f"{TASK}: expected numbers from 0 to {num_tasks - 1}")
        if bool(
            (size < 0).any()
            | (size > index.shape[1]).any()
            | (index < 0).any()
            | (index >= max(num_rows, 1)).any()
        ):
            raise ValueError("context.index: names rows that are not there")
        self._rows[:num_rows], self._task[:num_rows], self.size = rows, task, num_rows
        self.all, self.all_contexts = RowTable(num_tasks), RowTable(num_tasks)
        in_context = rows[:, -1] > 0
        for k in range(num_tasks):
            self.all.add(k, (task == k).nonzero()[:, 0])
            self.all_contexts.add(k, ((task == k) & in_context).nonzero()[:, 0])
        self.context.index, self.context.size = index.clone(), size.clone()


def context_rows(obs: Tensor, act: Tensor, reward: Tensor, next_obs: Tensor | None) -> Tensor:
    """What an encoder reads: [s, a, r] or [s, a, r, s'], (..., .)."""
    return torch.cat([obs, act, reward] + ([] if next_obs is None else [next_obs]), dim=-1)
