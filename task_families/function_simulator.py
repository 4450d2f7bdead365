"""FunctionSimulator: batched dynamics that are one torch function of observation, action and chance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (obs (M, N, S), act (M, N, A), u (M, N) uniform on [0, 1)) -> next_obs (M, N, S)
Transition = Callable[[Tensor, Tensor, Tensor], Tensor]


class FunctionSimulator:
    """(M, N) lanes. A state is the observation, then the uniform numbers that decide the chance of each step.

    Drawing an episode's chance with its start state makes a simulation a function of state and actions, so that
    copies, batches and restarts cannot disturb each other's random numbers.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        first_obs: Callable[[int, torch.Generator], Tensor],
        transition: Transition,
        *,
        num_uniforms: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            first_obs: ``first_obs(n, generator) -> (n, S)`` from p_0.
            num_uniforms: one for each step of an episode, which then starts over; 0 for deterministic dynamics.
        """
        self.shape = shape
        self._first_obs, self._transition, self._num_uniforms = first_obs, transition, num_uniforms
        size = first_obs(1, torch.Generator().manual_seed(0)).shape[-1]
        self._obs = torch.zeros(*shape, size, dtype=dtype)
        self._uniforms = torch.zeros(*shape, max(num_uniforms, 1), dtype=torch.float64)
        self._time = torch.zeros(shape, dtype=torch.long)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Simulator.start_states`: (n, S + num_uniforms) float64."""
        obs = self._first_obs(n, generator).double()
        uniforms = torch.rand(n, self._num_uniforms, generator=generator, dtype=torch.float64)
        return torch.cat([obs, uniforms], dim=-1)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        obs_size = self._obs.shape[-1]
        self._obs = self._obs.clone()
        self._obs[lanes] = states[:, :obs_size].to(self._obs)
        if self._num_uniforms:
            self._uniforms[lanes] = states[:, obs_size:]
        self._time[lanes] = 0
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`."""
        u = self._uniforms.gather(-1, (self._time % self._uniforms.shape[-1])[..., None])[..., 0]
        self._time += 1
        self._obs = self._transition(self._obs, act.detach().to(self._obs), u)
        return self._obs
