"""Lanes that go on from one policy update to the next, as those of a vectorised environment do.

An update on whole episodes needs few lanes of many steps: many small products. With `config.steps_per_lane` L, a
divisor of the horizon, it sees L steps of many lanes instead; the value function stands for what comes after (Mnih et
al. 2016, "Asynchronous methods for deep reinforcement learning"; PPO, Schulman et al. 2017, section 5).

A lane starts anew when its episode terminated, broke down, or has not L steps left until the horizon. At first the
lanes of every member are spread over the ages 0, L, 2 L, ... of an episode, so that an update sees all of its parts
once the first lanes have gone through it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from task_families.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Lanes:
    """Where the N lanes of M tasks stand between two updates."""

    obs: Tensor  # (M, N, S); 0 where a lane starts anew
    starts: Tensor  # (M, N) bool, starts anew
    age: Tensor  # (M, N) int64, steps of the episode before (or, at first, what its end is counted from)
    total: Tensor  # (M, N) float64, undiscounted rewards of the episode before
    is_whole: Tensor  # (M, N) bool, the episode began at age 0, so that its return means something

    @classmethod
    def new(cls, obs: Tensor, num_members: int, num_steps: int, horizon: int) -> Lanes:
        """All start; ages are spread within the lanes of each member. obs (M, N, S) says where they are kept."""
        num_lanes = obs.shape[1]
        position = torch.arange(num_lanes, device=obs.device) % (num_lanes // num_members)
        age = (position * num_steps % horizon).expand(obs.shape[:2]).clone()
        return cls(
            obs=torch.zeros_like(obs),
            starts=torch.ones_like(age, dtype=torch.bool),
            age=age,
            total=torch.zeros_like(age, dtype=torch.float64),
            is_whole=age == 0,
        )

    def to(self, device: torch.device | str) -> Lanes:
        """The same on a device."""
        return Lanes(*(getattr(self, f.name).to(device) for f in fields(self)))

    def tasks(self, index: slice | Tensor) -> Lanes:
        """Those of some tasks."""
        return Lanes(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, index: Tensor, part: Lanes) -> Lanes:
        """With those of some tasks (numbers) replaced."""
        return Lanes(
            *(getattr(self, f.name).index_copy(0, index, getattr(part, f.name)) for f in fields(self))
        )

    def after(self, rollout: Rollout, reward: Tensor, usable: Tensor, horizon: int) -> tuple[Lanes, Tensor]:
        """Where they stand after the next steps, and the mean return of the episodes that ended in these.

        An episode that is cut less than L steps before the horizon counts with its mean reward for what is missing.

        Args:
            rollout: of L steps.
            reward: (M, N, L).
            usable: (M, N, L) bool; episodes of lanes in which anything broke down do not count.

        Returns:
            The lanes, and (M,) returns of the reward's dtype; nan for tasks in which no episode ended.
        """
        num_steps = reward.shape[-1]
        sound = usable.all(-1)
        ends, steps = rollout.terminated, torch.arange(num_steps, device=reward.device)
        summed = self.total[..., None] + torch.where(sound[..., None], reward, 0.0).double().cumsum(-1)
        last = torch.where(ends, steps, -1).cummax(-1).values  # the newest end, up to and with each step
        before = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], -1)
        episode = summed - _at(summed, before)
        counts = ends & sound[..., None] & (self.is_whole[..., None] | (before >= 0))
        newest = last[..., -1]
        started = newest >= 0
        age = torch.where(started, num_steps - 1 - newest, self.age + num_steps)
        total = summed[..., -1] - _at(summed, last[..., -1:])[..., 0]
        is_whole = self.is_whole | started
        is_over = age + num_steps > horizon
        whole_cut = is_over & is_whole & sound
        sums = torch.where(counts, episode, 0.0).sum((1, 2))
        sums = sums + torch.where(whole_cut, total * horizon / age.clamp_min(1), 0.0).sum(1)
        returns = sums / (counts.sum((1, 2)) + whole_cut.sum(1))
        starts = is_over | ends[..., -1] | ~usable[..., -1]
        lanes = Lanes(
            obs=torch.where(starts[..., None], 0.0, rollout.next_obs[..., -1, :]),
            starts=starts,
            age=torch.where(starts, 0, age),
            total=torch.where(starts, 0.0, total),
            is_whole=(is_whole & sound) | starts,
        )
        return lanes, returns.to(reward.dtype)


def _at(summed: Tensor, index: Tensor) -> Tensor:
    """summed (..., T) at an index (..., U), 0 where it is -1."""
    return torch.where(index >= 0, summed.gather(-1, index.clamp_min(0)), 0.0)
