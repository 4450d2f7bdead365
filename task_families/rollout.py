"""Rollout: transitions without rewards, and how they are collected from any simulator, batched over tasks.

No rewards are stored: the data is shared by all tasks, and r_psi is recomputed for the psi at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from task_families.family import TaskFamily
from task_families.simulator import Simulator

# Start states drawn ahead per lane. Lanes that terminate take the next one; after the last the first is
# used again. Drawing ahead makes a task's noise independent of its neighbours in the batch.
STARTS_PER_LANE = 8
OnStep = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]  # (t, obs, act, next_obs, terminated)


@dataclass(frozen=True)
class Rollout:
    """N lanes of T steps for each of M tasks.

    A lane starts with a reset at step 0, unless it goes on (see `collect`). After a termination it restarts at
    once, so that a lane may hold several episodes; `next_obs` is always the true successor, never the state after the
    restart.
    """

    obs: Tensor  # (M, N, T, S)
    act: Tensor  # (M, N, T, A) as sampled, not clamped
    next_obs: Tensor  # (M, N, T, S)
    log_prob: Tensor  # (M, N, T) of the action under the policy that chose it (nan if it added noise)
    terminated: Tensor  # (M, N, T) bool, the family's termination: no value beyond
    truncated: Tensor  # (M, N, T) bool, cut by the time limit: bootstrap with the value of next_obs

    @property
    def num_samples(self) -> int:
        """Transitions in all tasks together."""
        return self.terminated.numel()

    @property
    def num_unstable(self) -> int:
        """Simulations that became unstable: transitions to a state that is not finite; each ends its episode."""
        return int((~self.next_obs.isfinite().all(-1)).sum())

    def first_episode(self) -> Tensor:
        """Steps that belong to the lane's first episode, the terminating one included: (M, N, T) bool."""
        ended_before = self.terminated.cumsum(-1) - self.terminated.long()
        return ended_before == 0

    def to(self, device: torch.device | str) -> Rollout:
        """The same on a device; itself, if it is there."""
        return Rollout(*(getattr(self, f.name).to(device) for f in fields(self)))

    def tasks(self, index: slice) -> Rollout:
        """The rollout of some tasks."""
        return Rollout(*(getattr(self, f.name)[index] for f in fields(self)))

    def join(self, other: Rollout) -> Rollout:
        """The lanes of both; the same tasks and steps."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Rollout(*(torch.cat(pair, dim=1) for pair in pairs))

    def lanes(self, index: slice) -> Rollout:
        """The rollout of some lanes of every task."""
        return Rollout(*(getattr(self, f.name)[:, index] for f in fields(self)))


def collect(
    simulator: Simulator,
    family: TaskFamily,
    act: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    goes_on: tuple[Tensor, Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Rollout:
    """Run every lane for num_steps, restarting after terminations. On a GPU a learned model is never waited for.

    Args:
        simulator: (M, N) lanes of the truth or of a learned model.
        family: says which states terminate.
        act: ``act(t, obs (M, N, S)) -> (action (M, N, A), log_prob (M, N))``; owns its noise.
        num_steps: T, at most family.horizon.
        generators: one per task, for the start states.
        goes_on: which lanes (M, N) bool start anew, and the observations (M, N, S) at which the simulator's lanes
            are; None: all start.
        on_step: called after every step, before the next action.

    Raises:
        ValueError: num_steps is outside 1..horizon, or not one generator per task.
    """
    num_tasks = simulator.shape[0]
    if not 1 <= num_steps <= family.horizon:
        raise ValueError(f"num_steps: expected 1 to {family.horizon} (the horizon), got {num_steps}")
    if len(generators) != num_tasks:
        raise ValueError(f"generators: expected one per task ({num_tasks}), got {len(generators)}")
    pool = start_pool(simulator, generators)
    return run_lanes(simulator, family, act, num_steps, pool, goes_on, on_step)


def start_pool(simulator: Simulator, generators: Sequence[torch.Generator]) -> Tensor:
    """The start states of every task's lanes, drawn ahead: (M, pool, state)."""
    pool_size = STARTS_PER_LANE * simulator.shape[1]
    return torch.stack([simulator.start_states(pool_size, g) for g in generators])


def run_lanes(
    simulator: Simulator,
    family: TaskFamily,
    act: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    num_steps: int,
    pool: Tensor,
    goes_on: tuple[Tensor, Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Rollout:
    """`collect` from start states that were drawn ahead (`start_pool`)."""
    num_tasks, pool_size = pool.shape[:2]
    next_start = torch.zeros(num_tasks, 1, dtype=torch.long, device=pool.device)
    is_readable = pool.device.type == "cpu"  # a flag costs nothing to read

    def restarted(done: Tensor) -> Tensor:
        nonlocal next_start
        index = (next_start + done.cumsum(1) - 1) % pool_size  # (M, N)
        next_start = next_start + done.sum(1, keepdim=True)
        if not is_readable:
            return simulator.reset(done, pool.gather(1, index[..., None].expand(-1, -1, pool.shape[-1])))
        task, _ = done.nonzero(as_tuple=True)
        return simulator.reset(done, pool[task, index[done]])

    everywhere = torch.ones(simulator.shape, dtype=torch.bool, device=pool.device)
    starts, obs = (everywhere, None) if goes_on is None else goes_on
    obs = restarted(starts) if obs is None or not is_readable or bool(starts.any()) else obs

    columns: list[Tensor] = []  # (M, N, T, ...)
    for t in range(num_steps):
        action, log_prob = act(t, obs)
        next_obs = simulator.step(action)
        terminated = family.terminated(next_obs)
        row = (obs, action, next_obs, log_prob, terminated)
        # made once: many small tensors kept between large ones that are freed would scatter the memory
        columns = columns or [x.new_empty(*x.shape[:2], num_steps, *x.shape[2:]) for x in row]
        for column, x in zip(columns, row, strict=True):
            column.select(2, t).copy_(x)
        if on_step is not None:
            on_step(t, obs, action, next_obs, terminated)
        obs = next_obs
        if t + 1 < num_steps and (not is_readable or bool(terminated.any())):
            obs = restarted(terminated)

    observed, actions, successors, log_probs, ends = columns
    truncated = torch.zeros_like(ends)
    truncated[..., -1] = ~ends[..., -1]
    return Rollout(observed, actions, successors, log_probs, ends, truncated)
