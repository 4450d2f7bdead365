"""Recorded transitions of many tasks, and the batches that are drawn from them.

A row is [obs, unit action, next_obs, reward, terminated, ends], beside the number of its task; the rows of a task are
in the order in which they were recorded, whole episodes one after another.

    to_go_t = sum_{j >= t} gamma^(j-t) r_j up to the end T of the episode
    an episode that was cut, not terminated, goes on: its remainder is gamma^(T-t) V(s_T)

Shapes: R rows, K tasks, B tasks of a batch, n transitions of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from admrl.storage.sealed_file import check_tensor
from policy_opt.categorical_policy import one_hot
from task_families.rollout import Rollout
from task_families.simulator import ActionBounds

ROWS, TASK = "rows", "task"


class Batch(NamedTuple):
    """n transitions of each of B tasks, or of one task without the first axis."""

    obs: Tensor  # (B, n, S)
    act: Tensor  # (B, n, A) unit actions; one-hot where an action is a choice
    to_go: Tensor  # (B, n) Monte-Carlo return to the end of the episode
    last_obs: Tensor  # (B, n, S) s_T
    last_discount: Tensor  # (B, n) gamma^(T-t) where the episode was cut, 0 where it terminated


@dataclass(frozen=True, eq=False)
class OfflineData:
    """R transitions of K tasks."""

    rows: Tensor  # (R, 2 S + A + 3) float32
    task: Tensor  # (R,) int64, from 0 to K - 1
    num_tasks: int
    obs_size: int
    act_size: int

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls,
        obs: Tensor,
        act: Tensor,
        next_obs: Tensor,
        reward: Tensor,
        terminated: Tensor,
        ends: Tensor,
        task: Tensor,
        num_tasks: int,
    ) -> Self:
        """From obs and next_obs (R, S), act (R, A) and all others (R,)."""
        flags = torch.stack([reward.float(), terminated.float(), ends.float()], dim=1)
        rows = torch.cat([obs.float(), act.float(), next_obs.float(), flags], dim=1)
        return cls(rows, task, num_tasks, obs.shape[1], act.shape[1])

    @property
    def obs(self) -> Tensor:
        """(R, S)"""
        return self.rows[:, : self.obs_size]

    @property
    def act(self) -> Tensor:
        """(R, A)"""
        return self.rows[:, self.obs_size : self.obs_size + self.act_size]

    @property
    def next_obs(self) -> Tensor:
        """(R, S)"""
        return self.rows[:, self.obs_size + self.act_size : -3]

    @property
    def reward(self) -> Tensor:
        """(R,)"""
        return self.rows[:, -3]

    @property
    def terminated(self) -> Tensor:
        """(R,) bool"""
        return self.rows[:, -2] > 0

    @property
    def ends(self) -> Tensor:
        """(R,) bool: the last transition of an episode."""
        return self.rows[:, -1] > 0

    def task_sizes(self) -> Tensor:
        """Transitions of every task (K,)."""
        return torch.bincount(self.task, minlength=self.num_tasks)

    def first_tasks(self, num_tasks: int) -> Self:
        """The rows of the first tasks, at most so many."""
        kept = self.task < num_tasks
        few = min(num_tasks, self.num_tasks)
        return replace(self, rows=self.rows[kept], task=self.task[kept], num_tasks=few)

    def columns(self) -> dict[str, Tensor]:
        """For checkpoints, see `from_columns`."""
        return {ROWS: self.rows, TASK: self.task}

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor], obs_size: int, act_size: int) -> Self:
        """Inverse of `columns`; there are as many tasks as have rows.

        Raises:
            ValueError: names what does not fit.
        """
        rows = check_tensor(columns, ROWS, (None, 2 * obs_size + act_size + 3), torch.float32)
        task = check_tensor(columns, TASK, (len(rows),), torch.int64)
        if not len(rows) or int(task.min()) < 0:
            raise ValueError(f"{TASK}: expected numbers from 0, of one transition or more")
        return cls(rows, task, int(task.max()) + 1, obs_size, act_size)

    @classmethod
    def of_rollout(cls, rollout: Rollout, reward: Tensor, to_unit: ActionUnits, task: Tensor) -> Self:
        """The episodes of a rollout and its rewards (M, N, T), of tasks (M,).

        The last step of a simulation that broke down is left out: its episode ends one step earlier, cut.
        """
        sound = rollout.next_obs.isfinite().all(-1)  # (M, N, T)
        ends = rollout.terminated | rollout.truncated
        ends = ends | (~sound).roll(-1, -1)
        ends[..., -1] = True
        rows = task[:, None, None].expand(sound.shape)[sound]
        columns = rollout.obs, to_unit(rollout.act), rollout.next_obs, reward, rollout.terminated, ends
        obs, act, next_obs, rewards, terminated, last = (x[sound] for x in columns)
        return cls.of(obs, act, next_obs, rewards, terminated, last, rows, int(task.max()) + 1)


@dataclass(frozen=True)
class ActionUnits:
    """The family's actions as the data holds them."""

    bounds: ActionBounds
    picks_largest: bool

    def __call__(self, act: Tensor) -> Tensor:
        """Unit actions, or which choice was made, one-hot."""
        return one_hot(act) if self.picks_largest else self.bounds.to_unit(act)

    def back(self, unit: Tensor) -> Tensor:
        """Actions of the family."""
        return unit if self.picks_largest else self.bounds.from_unit(unit)


def joined(parts: list[OfflineData], num_tasks: int) -> OfflineData:
    """The rows of some parts, one after another, of the same tasks."""
    rows, task = torch.cat([part.rows for part in parts]), torch.cat([part.task for part in parts])
    return replace(parts[0], rows=rows, task=task, num_tasks=num_tasks)


class Buffers:
    """The data, ready to be drawn from."""

    def __init__(self, data: OfflineData, gamma: float, thinning: int = 1) -> None:
        """thinning: of so many transitions of a task the first can be drawn; returns are of all of them."""
        self.data = data
        order = torch.argsort(data.task, stable=True)  # by task, each in its own order
        ends = data.ends[order]
        ends = ends | (data.task[order] != data.task[order].roll(-1))
        last = ends.nonzero()[:, 0]
        lengths = last.diff(prepend=last.new_tensor([-1]))
        self.to_go = torch.empty(len(data), dtype=torch.float32)
        self.to_go[order] = returns_to_go(data.reward[order], last, lengths, gamma)
        end_of = last.repeat_interleave(lengths)  # (R,) position of every row's episode's end
        left = end_of - torch.arange(len(data)) + 1  # T - t
        goes_on = (~data.terminated[order][end_of]).float()
        self.last_discount = torch.empty(len(data), dtype=torch.float32)
        self.last_discount[order] = goes_on * (gamma ** left.double()).float()
        self._end = torch.empty(len(data), dtype=torch.int64)
        self._end[order] = order[end_of]
        kept = [order[data.task[order] == k][::thinning] for k in range(data.num_tasks)]
        self.size = torch.tensor([len(rows) for rows in kept])  # (K,)
        self._rows = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)  # (K, largest size)

    def to(self, device: torch.device) -> None:
        """Move what batches are made of; what is drawn, and from how many, stays on the CPU."""
        self.data = replace(self.data, rows=self.data.rows.to(device))
        self.to_go, self.last_discount = self.to_go.to(device), self.last_discount.to(device)
        self._end = self._end.to(device)

    def rows(self, index: Tensor) -> Batch:
        """Rows (B, n) of the data."""
        index = index.to(self._end.device)
        data, end = self.data, self._end[index]
        return Batch(
            data.obs[index], data.act[index], self.to_go[index], data.next_obs[end], self.last_discount[index]
        )

    def draw(
        self, tasks: Tensor, num_inner: int, num_outer: int, generator: torch.Generator
    ) -> tuple[Batch, Batch]:
        """D_tr, num_inner consecutive transitions of each of tasks (B,), and D_ts, num_outer of all others.

        D_ts is drawn with replacement. Every task must have more than num_inner.
        """
        size = self.size[tasks, None]
        place, share = (
            torch.rand(len(tasks), n, generator=generator, dtype=torch.float64) for n in (1, num_outer)
        )
        begin = (place * (size - num_inner + 1)).long()
        inner = begin + torch.arange(num_inner)
        outer = (share * (size - num_inner)).long()
        outer = torch.where(outer >= begin, outer + num_inner, outer)  # the window is not among them
        picked = (self._rows[tasks[:, None], position] for position in (inner, outer))
        first, second = (self.rows(index) for index in picked)
        return first, second

    def draw_any(self, num: int, generators: list[torch.Generator]) -> Batch:
        """num transitions of every task, each's by its own generator: without replacement, and where a task has
        fewer, all of them about equally often."""
        index = []
        for k, generator in enumerate(generators):
            size = int(self.size[k])
            order = torch.randperm(size, generator=generator)
            index.append(self._rows[k][order[torch.arange(num) % size]])
        return self.rows(torch.stack(index))


def returns_to_go(reward: Tensor, last: Tensor, lengths: Tensor, gamma: float) -> Tensor:
    """Discounted return from every row (R,) to the end of its episode; last (E,) and lengths (E,) of the episodes."""
    total = reward.double().clone()
    for back in range(1, int(lengths.max()) if len(lengths) else 0):
        rows = last[lengths > back] - back
        total[rows] += gamma * total[rows + 1]
    return total.float()
