"""Velocity-and-height tasks on MuJoCo bodies (AdMRL section 5): Hopper2D.

    released:  r_psi(s, a, s') = 10 - |v_x - psi_1| - 5 |h - psi_2| - 0.001 |a|^2
    paper:     r_psi(s, a, s') =    - |v_x - psi_1| - 5 |h - psi_2|

v_x is the forward velocity in m/s and h the height of the torso in m, both read from s'; rewards are per step.

Differs from the paper:
1. The paper prints its reward without a minus sign, without control cost and without constants. The default
   variant is the released code's reward; ``variant="paper"`` is the printed formula with the minus sign that
   it must have been meant to have. With terminations the constant matters: it is the incentive to stay alive.
2. The paper is silent about simulation. As in the released code, one action lasts one simulator step
   (frame_skip 1, 0.002 s), and resets are much wider than gymnasium's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from task_families.family import Simulator, TaskBox, TaskFamily
from task_families.mujoco_simulator import MujocoSimulator, load_model

VELOCITY_LIMIT = 10.0  # qvel is clipped to +-10 in the observation


class Hopper2D(TaskFamily):
    """Gymnasium's hopper; psi = (target forward velocity in m/s, target torso height in m).

    Observation (11): qpos without the horizontal root position (5): height, pitch, three joint angles; then
    qvel clipped to +-10 (6). Action (3): joint torques in [-1, 1] times the gear.
    """

    name = "hopper2d"
    variants = ("released", "paper")
    obs_size = 11
    act_size = 3
    xml = "hopper.xml"
    height, pitch, velocity = 0, 1, 5  # where the observation holds them
    coefficients = (1.0, 5.0)  # AdMRL Table 1: c_1 and c_3

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(
            low=torch.tensor([-2.0, 1.2]),
            high=torch.tensor([2.0, 2.0]),
            names=("target velocity", "target height"),
            units=("m/s", "m"),
        )
        self.first_psi = self.box.from_unit(torch.full((2,), 0.3))
        self.alive_bonus, self.control_cost = (10.0, 0.001) if variant == "released" else (0.0, 0.0)
        self._model = load_model(self.xml)
        self._qpos0 = torch.from_numpy(self._model.qpos0.copy())

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        c_velocity, c_height = self.coefficients
        return (
            self.alive_bonus
            - c_velocity * (next_obs[..., self.velocity] - psi[..., 0]).abs()
            - c_height * (next_obs[..., self.height] - psi[..., 1]).abs()
            - self.control_cost * act.square().sum(-1)
        )

    def terminated(self, next_obs: Tensor) -> Tensor:
        """Fallen (height <= 0.7 m or |pitch| >= 0.2 rad), a joint or velocity beyond 100, or not finite."""
        healthy = (next_obs[..., self.height] > 0.7) & (next_obs[..., self.pitch].abs() < 0.2)
        return ~(healthy & (next_obs[..., 2:].abs() < 100).all(-1) & next_obs.isfinite().all(-1))

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """qpos0 + U(-0.1, 0.1), qvel 0.1 N(0, 1): (n, 6 + 6) float64."""
        size = len(self._qpos0)
        qpos = self._qpos0 + 0.2 * torch.rand(n, size, generator=generator, dtype=torch.float64) - 0.1
        qvel = 0.1 * torch.randn(n, size, generator=generator, dtype=torch.float64)
        return torch.cat([qpos, qvel], dim=-1)

    def observe(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        """(..., 6), (..., 6) -> (..., 11)."""
        return torch.cat([qpos[..., 1:], qvel.clamp(-VELOCITY_LIMIT, VELOCITY_LIMIT)], dim=-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """See `TaskFamily.reset`."""
        return self.observe(*self.start_states(n, generator).split(len(self._qpos0), dim=-1))

    def make_simulator(
        self, shape: tuple[int, int], *, num_threads: int = 1, dtype: torch.dtype = torch.float32
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        return MujocoSimulator(
            self._model,
            shape,
            self.start_states,
            self.observe,
            frame_skip=1,
            num_threads=num_threads,
            dtype=dtype,
        )
