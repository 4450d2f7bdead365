"""TransitionData: the real transitions D, shared by all tasks (no rewards), with a held-out part.

Beside the rows it knows which of them are whole episodes, and whose: the first episode of every lane that was added,
by the number of its policy. So the return of any policy under any reward can be had without a new sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from task_families.rollout import Rollout

_COLUMNS = ("obs", "act", "next_obs")


class TransitionData:
    """Rows in time order, lane after lane. Lanes are either for fitting or held out, as a whole. The rows are where
    `to` has put them, at first on the CPU; `episodes` stay there."""

    def __init__(self, obs_size: int, act_size: int, dtype: torch.dtype = torch.float32) -> None:
        self.obs = torch.zeros(0, obs_size, dtype=dtype)  # (R, S)
        self.act = torch.zeros(0, act_size, dtype=dtype)  # (R, A)
        self.next_obs = torch.zeros(0, obs_size, dtype=dtype)  # (R, S)
        self.ends = torch.zeros(0, dtype=torch.bool)  # (R,) the next row does not continue this one
        self.is_held_out = torch.zeros(0, dtype=torch.bool)  # (R,)
        self.episodes = torch.zeros(0, 3, dtype=torch.long)  # (n, 3) number of the policy, first row, rows
        self.num_policies = 0
        self._starts: dict[tuple[int, bool], Tensor] = {}

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def num_fit(self) -> int:
        """Rows for fitting."""
        return int((~self.is_held_out).sum())

    def to(self, device: torch.device | str) -> TransitionData:
        """A copy with its rows on a device."""
        copy = self.clone()
        copy.load_state_dict({name: tensor.to(device) for name, tensor in self.state_dict().items()})
        return copy

    def clone(self) -> TransitionData:
        """An independent copy (tensors are never written in place, so they may be shared)."""
        copy = TransitionData(self.obs.shape[1], self.act.shape[1], self.obs.dtype)
        copy.load_state_dict(self.state_dict())
        copy.episodes, copy.num_policies = self.episodes, self.num_policies
        return copy

    def add(self, rollout: Rollout, held_out: float, generator: torch.Generator) -> Tensor:
        """Append every task's transitions, each task's from a policy of its own; a share of the lanes is held out at
        random.

        Transitions that are not finite (an unstable simulation) are left out.

        Returns:
            The rows (R,) that were appended for fitting, as a bool mask over `obs`.
        """
        rollout = rollout.to("cpu")
        lanes = rollout.terminated.flatten(0, 1)  # (L, T)
        num_lanes = len(lanes)
        held = torch.zeros(num_lanes, dtype=torch.bool)
        held[torch.randperm(num_lanes, generator=generator)[: int(held_out * num_lanes)]] = True
        ends = (rollout.terminated | rollout.truncated).flatten(0, 1).clone()
        finite = rollout.next_obs.isfinite().all(-1) & rollout.act.isfinite().all(-1)
        keep = (finite & rollout.obs.isfinite().all(-1)).flatten(0, 1)
        ends[:, :-1] |= ~keep[:, 1:]
        ends[:, -1] = True
        first_new = len(self)
        chosen = keep.flatten()
        for name in _COLUMNS:
            new = getattr(rollout, name).flatten(0, 2)[chosen].to(getattr(self, name))
            setattr(self, name, torch.cat([getattr(self, name), new]))
        held_rows = held[:, None].expand_as(lanes).flatten()[chosen]
        self.ends = torch.cat([self.ends, ends.flatten()[chosen].to(self.ends.device)])
        self.is_held_out = torch.cat([self.is_held_out, held_rows.to(self.ends.device)])
        self._starts.clear()
        self._add_episodes(rollout, keep, first_new)
        added = torch.arange(len(self), device=self.ends.device) >= first_new
        return added & ~self.is_held_out

    def _add_episodes(self, rollout: Rollout, keep: Tensor, first_new: int) -> None:
        """Whole first episodes of the lanes whose steps keep (L, T) were appended from row first_new on; of a policy
        that broke down in none of its lanes, since it must not be judged by those that are left."""
        num_tasks, num_lanes = rollout.terminated.shape[:2]
        first = rollout.first_episode().flatten(0, 1)  # (L, T)
        per_lane = keep.sum(1)
        start = first_new + per_lane.cumsum(0) - per_lane
        policy = self.num_policies + torch.arange(num_tasks).repeat_interleave(num_lanes)
        whole = (keep | ~first).all(1).view(num_tasks, num_lanes).all(1).repeat_interleave(num_lanes)
        new = torch.stack([policy, start, first.sum(1)], dim=1)[whole]
        self.episodes = torch.cat([self.episodes, new])
        self.num_policies += num_tasks

    def extend(self, other: TransitionData) -> None:
        """Append all rows of another data set, each staying in its part."""
        shift = torch.tensor([self.num_policies, len(self), 0])
        self.episodes = torch.cat([self.episodes, other.episodes + shift])
        self.num_policies += other.num_policies
        for name in (*_COLUMNS, "ends", "is_held_out"):
            mine = getattr(self, name)
            setattr(self, name, torch.cat([mine, getattr(other, name).to(mine.device)]))
        self._starts.clear()

    def starts(self, num_horizon: int, held_out: bool = False) -> Tensor:
        """Rows from which num_horizon consecutive transitions of one episode follow: (W,) indices."""
        key = (num_horizon, held_out)
        if key not in self._starts:
            ok = self.is_held_out == held_out
            for step in range(num_horizon - 1):
                ended = torch.ones_like(self.ends)
                ended[: len(self) - step] = self.ends[step:]
                ok = ok & ~ended
            self._starts[key] = ok.nonzero()[:, 0]
        return self._starts[key]

    def windows(self, rows: Tensor, num_horizon: int) -> tuple[Tensor, Tensor, Tensor]:
        """obs (..., H, S), act (..., H, A), next_obs (..., H, S) from start rows (...)."""
        index = rows[..., None] + torch.arange(num_horizon, device=rows.device)
        return self.obs[index], self.act[index], self.next_obs[index]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {name: getattr(self, name) for name in (*_COLUMNS, "ends", "is_held_out")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        for name in (*_COLUMNS, "ends", "is_held_out"):
            setattr(self, name, state[name])
        self._starts.clear()
