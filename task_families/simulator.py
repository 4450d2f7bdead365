"""What simulates M x N lanes of a family, and what one lane of it needs to be an environment."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from task_families.action_bounds import ActionBounds
from task_families.task_space import TaskSpace


def spawn_generators(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """n independent generators, seeded from one: a task's noise then does not depend on its neighbours."""
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]


class Simulator(Protocol):
    """M x N lanes that are stepped together: the real simulator and the learned model look alike.

    A *state* is whatever the simulator needs to start an episode from: (qpos, qvel) for MuJoCo, the
    observation for a learned model.
    """

    shape: tuple[int, int]  # (M, N)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n states (n, state_size) drawn from the initial distribution p_0."""

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """Put the lanes (M, N) bool into states (number of lanes, state_size); all observations (M, N, S)."""

    def step(self, act: Tensor) -> Tensor:
        """Apply act (M, N, A) in every lane; the next observations (M, N, S)."""


class Simulated(Protocol):
    """What `task_families.gym_env.TaskEnv` asks of a family; see `TaskFamily`."""

    box: TaskSpace
    horizon: int
    obs_size: int
    act_size: int

    @property
    def action_bounds(self) -> ActionBounds:
        """See `TaskFamily.action_bounds`."""

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See `TaskFamily.reward`."""

    def terminated(self, next_obs: Tensor) -> Tensor:
        """See `TaskFamily.terminated`."""
