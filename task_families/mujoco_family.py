"""MujocoFamily: a task family on one MuJoCo body. A subclass says what is observed, rewarded and terminal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from task_families.family import TaskFamily
from task_families.mujoco_simulator import Fields, MujocoSimulator, load_model
from task_families.simulator import Simulator

VELOCITY_LIMIT = 10.0  # hopper and walker observe qvel clipped to +-10


class MujocoFamily(TaskFamily):
    """One body, given by an XML file. Shapes: R lanes, nq positions, nv velocities.

    The released AdMRL code's resets are the default: qpos0 + U(-0.1, 0.1) and qvel 0.1 N(0, 1) per coordinate,
    the root included.
    """

    xml: ClassVar[str | Path]  # a path, an XML text, or the name of one of gymnasium's files
    frame_skip: ClassVar[int] = 1  # simulator steps per action
    timestep: ClassVar[float | None] = None  # seconds, instead of the file's
    position_noise: ClassVar[float] = 0.1  # half-width of the uniform noise of a reset
    velocity_noise: ClassVar[float] = 0.1
    velocity_noise_kind: ClassVar[str] = "gaussian"  # or "uniform"
    control_scale: ClassVar[float] = 1.0  # control per unit of action
    derived: tuple[str, ...] = ()  # MjData fields that `observe` reads besides qpos and qvel
    remembered: tuple[str, ...] = ()  # fields of which `observe` reads the value before the step
    contact_forces: bool = False  # compute cfrc_ext
    dt: float  # seconds per action
    # An episode goes on while every observation is inside its open interval: those by index, then all others
    healthy_range: ClassVar[Mapping[int, tuple[float, float]]] = {}
    healthy_state_range: ClassVar[tuple[float, float]] = (-inf, inf)
    healthy_ends: ClassVar[bool] = False  # the ends of an interval belong to it

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.model = load_model(self.xml, self.timestep, contact_forces=self.contact_forces)
        self.qpos0 = torch.from_numpy(self.model.qpos0.copy())
        self.dt = float(self.model.opt.timestep) * self.frame_skip
        self._healthy: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def terminated(self, next_obs: Tensor) -> Tensor:
        """See `TaskFamily.terminated`; the intervals are those of the class."""
        kind = next_obs.dtype, next_obs.device
        if kind not in self._healthy:
            self._healthy[kind] = self._healthy_intervals(*kind)
        low, high = self._healthy[kind]
        # false for nan, and without a limit for inf
        return ~((next_obs > low) & (next_obs < high)).all(-1)

    def _healthy_intervals(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Lower and upper end of each observation's open interval (S,)."""
        ends = torch.tensor([self.healthy_state_range], dtype=dtype, device=device).repeat(self.obs_size, 1)
        for i, interval in self.healthy_range.items():
            ends[i] = torch.tensor(interval, dtype=dtype)
        low, high = ends.unbind(1)
        if self.healthy_ends:
            low, high = low.nextafter(low - inf), high.nextafter(high + inf)
        return low, high

    @abstractmethod
    def observe(self, now: Fields, before: Fields) -> Tensor:
        """Observations (R, S) from fields (R, ...) after the step (``now``) and before it (``before``).

        Right after a reset both are the same, so that a finite difference of them is zero.
        """

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n states (n, nq + nv) float64 from p_0."""
        num_pos, num_vel = len(self.qpos0), self.model.nv
        noise = 2 * torch.rand(n, num_pos, generator=generator, dtype=torch.float64) - 1
        qpos = self.qpos0 + self.position_noise * noise
        if self.velocity_noise_kind == "gaussian":
            qvel = torch.randn(n, num_vel, generator=generator, dtype=torch.float64)
        else:
            qvel = 2 * torch.rand(n, num_vel, generator=generator, dtype=torch.float64) - 1
        return torch.cat([qpos, self.velocity_noise * qvel], dim=-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """See `TaskFamily.reset`."""
        states = self.start_states(n, generator)
        if self.derived:
            simulator = self._simulator((1, n), 1, torch.float64, {})
            return simulator.reset(torch.ones(1, n, dtype=torch.bool), states)[0]
        qpos, qvel = states.split([len(self.qpos0), self.model.nv], dim=-1)
        now = {"qpos": qpos, "qvel": qvel}
        return self.observe(now, now)

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        return self._simulator(shape, num_threads, dtype, {})

    def _simulator(
        self, shape: tuple[int, int], num_threads: int, dtype: torch.dtype, parameters: Mapping[str, Tensor]
    ) -> MujocoSimulator:
        return MujocoSimulator(
            self.model,
            shape,
            self.start_states,
            self.observe,
            frame_skip=self.frame_skip,
            num_threads=num_threads,
            dtype=dtype,
            derived=self.derived,
            remembered=self.remembered,
            control_scale=self.control_scale,
            lane_parameters=parameters,
        )
