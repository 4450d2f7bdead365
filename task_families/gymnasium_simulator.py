"""GymnasiumFamily: a task family on any gymnasium environment whose dynamics its seed determines.

Every lane is an environment of its own, stepped in a Python loop: slower than a batched simulator, but everything
else of this package then applies. The environment's own rewards and terminations are not used.
"""

from __future__ import annotations

from abc import abstractmethod

import gymnasium
import numpy as np
import torch
from torch import Tensor

from task_families.family import TaskFamily
from task_families.simulator import Simulator


class GymnasiumSimulator:
    """(M, N) lanes, one environment each. A state is the seed of the environment's reset."""

    def __init__(self, envs: list[gymnasium.Env], shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape = shape
        self._envs = envs
        obs_size = int(np.prod(envs[0].observation_space.shape or ()))
        self._obs = torch.zeros(*shape, obs_size, dtype=dtype)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n seeds (n, 1)."""
        return torch.randint(2**31, (n, 1), generator=generator).double()

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        self._obs = self._obs.clone()
        rows = self._obs.view(len(self._envs), -1)
        for i, seed in zip(lanes.flatten().nonzero()[:, 0].tolist(), states[:, 0].tolist(), strict=True):
            rows[i] = torch.as_tensor(np.asarray(self._envs[i].reset(seed=int(seed))[0]))
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. Actions are clamped to the environment's box."""
        self._obs = self._obs.clone()
        rows = self._obs.view(len(self._envs), -1)
        actions = act.detach().reshape(len(self._envs), -1).numpy()
        for i, env in enumerate(self._envs):
            box = env.action_space
            clamped = np.clip(actions[i], box.low, box.high).astype(box.dtype)
            rows[i] = torch.as_tensor(np.asarray(env.step(clamped)[0]))
        return self._obs


class GymnasiumFamily(TaskFamily):
    """A subclass sets the sizes, the box and the reward, and makes one environment with box spaces."""

    @abstractmethod
    def make_one(self) -> gymnasium.Env:
        """A new environment without a time limit."""

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """See `TaskFamily.reset`."""
        simulator = self.make_simulator((1, n), dtype=torch.float64)
        return simulator.reset(torch.ones(1, n, dtype=torch.bool), simulator.start_states(n, generator))[0]

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`; one thread, whatever num_threads says."""
        return GymnasiumSimulator([self.make_one() for _ in range(shape[0] * shape[1])], shape, dtype)
