"""Velocity-and-height tasks on MuJoCo bodies (AdMRL section 5): Hopper2D, Walker2D, Ant2D, Ant3D.

    released:  r_psi(s, a, s') = constant - sum_i c_i |f_i(s') - psi_i| - control_cost |a|^2
    paper:     r_psi(s, a, s') =          - sum_i c_i |f_i(s') - psi_i|

f is read from s' (velocities in m/s, heights in m); rewards are per step (AdMRL Table 1 has f and c):

    Hopper2D  f = (v_x, h)       c = (1, 5)       constant 10     control cost 0.001
    Walker2D  f = (v_x, h)       c = (1, 5)       constant 10     control cost 0.001
    Ant2D     f = (v_x, v_y)     c = (1, 1)       constant 5.05   control cost 0.005
    Ant3D     f = (v_x, v_y, h)  c = (1, 1, 30)   constant 3.05   control cost 0.005

Differs from the paper:
1. The paper prints its reward without a minus sign, without control cost and without constants. The default
   variant is the released code's reward; ``variant="paper"`` is the printed formula with the minus sign that
   it must have been meant to have. With terminations the constant matters: it is the incentive to stay alive.
2. The paper is silent about simulation. As in the released code, one action lasts one simulator step
   (frame_skip 1; 0.002 s for Hopper and Walker, 0.01 s for Ant), and resets are much wider than gymnasium's.
3. Ant's velocity is, as in the released code, the displacement of the torso over the step divided by its
   duration, zero after a reset. The released code reads the torso's position from the last stage of the
   integrator (up to 7 mm off); here it is that of the new state.
"""

from __future__ import annotations

from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from task_families.family import TaskBox
from task_families.mujoco_family import VELOCITY_LIMIT, MujocoFamily
from task_families.mujoco_simulator import Fields


class VelocityFamily(MujocoFamily):
    """The reward at the head of this page; a subclass holds its numbers."""

    source = "AdMRL (Lin et al. 2021)"
    variants = ("released", "paper")
    targets: ClassVar[tuple[int, ...]]  # where s' holds f
    coefficients: ClassVar[tuple[float, ...]]  # c
    constant: ClassVar[float]
    control_cost: ClassVar[float]
    limits: ClassVar[tuple[tuple[float, float], ...]]  # of psi
    labels: ClassVar[tuple[tuple[str, str], ...]]  # name and unit of each task parameter

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        low, high = torch.tensor(self.limits).unbind(1)
        names, units = zip(*self.labels, strict=True)
        self.box = TaskBox(low, high, names, units)
        self.first_psi = self.box.from_unit(torch.full((self.box.size,), 0.3))
        released = variant == "released"
        self._constant, self._control_cost = (self.constant, self.control_cost) if released else (0.0, 0.0)

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        reward = self._constant - self._control_cost * act.square().sum(-1)
        for i, (target, c) in enumerate(zip(self.targets, self.coefficients, strict=True)):
            reward = reward - c * (next_obs[..., target] - psi[..., i]).abs()
        return reward


class Hopper2D(VelocityFamily):
    """Gymnasium's hopper; psi = (target forward velocity in m/s, target torso height in m).

    Observation (11): qpos without the horizontal root position (5): height, pitch, three joint angles; then
    qvel clipped to +-10 (6). Action (3): joint torques in [-1, 1] times the gear. Terminates at height <= 0.7 m,
    |pitch| >= 0.2 rad, or a joint or velocity beyond 100.
    """

    name = "hopper2d"
    formula = "10 - |v_x - psi_1| - 5 |h - psi_2| - 0.001 |a|^2"
    obs_size = 11
    act_size = 3
    xml = "hopper.xml"
    targets = (5, 0)
    coefficients = (1.0, 5.0)
    constant = 10.0
    control_cost = 0.001
    limits = ((-2.0, 2.0), (1.2, 2.0))
    labels = (("target velocity", "m/s"), ("target height", "m"))
    healthy_range: ClassVar = {0: (0.7, inf), 1: (-0.2, 0.2)}
    healthy_state_range = (-100.0, 100.0)

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        velocity = now["qvel"].clamp(-VELOCITY_LIMIT, VELOCITY_LIMIT)
        return torch.cat([now["qpos"][..., 1:], velocity], dim=-1)


class Walker2D(VelocityFamily):
    """Gymnasium's walker; psi = (target forward velocity in m/s, target torso height in m).

    Observation (17): qpos without the horizontal root position (8): height, pitch, six joint angles; then qvel
    clipped to +-10 (9). Action (6): joint torques in [-1, 1] times the gear. Terminates when the height leaves
    (0.8, 2) m or the pitch (-1, 1) rad.
    """

    name = "walker2d"
    formula = "10 - |v_x - psi_1| - 5 |h - psi_2| - 0.001 |a|^2"
    obs_size = 17
    act_size = 6
    xml = "walker2d.xml"
    targets = (8, 0)
    coefficients = (1.0, 5.0)
    constant = 10.0
    control_cost = 0.001
    limits = ((-2.0, 2.0), (1.0, 1.8))
    labels = (("target velocity", "m/s"), ("target height", "m"))
    healthy_range: ClassVar = {0: (0.8, 2.0), 1: (-1.0, 1.0)}

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        velocity = now["qvel"].clamp(-VELOCITY_LIMIT, VELOCITY_LIMIT)
        return torch.cat([now["qpos"][..., 1:], velocity], dim=-1)


class Ant2D(VelocityFamily):
    """Gymnasium's ant; psi = target velocity (x, y) of the torso in m/s.

    Observation (35): qpos (15): global position x, y, z, orientation quaternion, eight joint angles; qvel (14);
    torso position (3) in m; torso velocity (3) over the last step in m/s. Action (8): torques in [-1, 1]. Terminates
    when the torso's height leaves [0.2, 1] m.
    """

    name = "ant2d"
    formula = "5.05 - |v_x - psi_1| - |v_y - psi_2| - 0.005 |a|^2"
    obs_size = 35
    act_size = 8
    xml = "ant.xml"
    targets: ClassVar[tuple[int, ...]] = (32, 33)
    coefficients: ClassVar[tuple[float, ...]] = (1.0, 1.0)
    constant = 5.05  # 5 for every step ("entry") and 0.05 for surviving
    control_cost = 0.005
    limits: ClassVar[tuple[tuple[float, float], ...]] = ((-3.0, 3.0), (-3.0, 3.0))
    labels: ClassVar[tuple[tuple[str, str], ...]] = (
        ("target velocity x", "m/s"),
        ("target velocity y", "m/s"),
    )
    healthy_range: ClassVar = {2: (0.2, 1.0)}
    healthy_ends = True
    remembered = ("qpos",)

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        position = now["qpos"][..., :3]
        velocity = (position - before["qpos"][..., :3]) / self.dt
        return torch.cat([now["qpos"], now["qvel"], position, velocity], dim=-1)


class Ant3D(Ant2D):
    """Ant2D with a third task parameter, the target height of the torso in m."""

    name = "ant3d"
    formula = "3.05 - |v_x - psi_1| - |v_y - psi_2| - 30 |h - psi_3| - 0.005 |a|^2"
    targets = (32, 33, 2)
    coefficients = (1.0, 1.0, 30.0)
    constant = 3.05
    limits = ((-3.0, 3.0), (-3.0, 3.0), (0.4, 0.6))
    labels = (*Ant2D.labels, ("target height", "m"))
