"""Directions, velocities and goals of CRL and PEARL (Rakelly et al. 2019, `oyster`), on gymnasium's bodies.

With dt the seconds per action, D x = x(s') - x(s) and a clipped to [-1, 1]:

    half_cheetah_fwd_back  r =  psi D x / dt  - 0.05 |a|^2                     psi = -1 (back) or +1
    half_cheetah_vel       r = -|D x / dt - psi| - 0.05 |a|^2                  psi = velocity in m/s
    ant_fwd_back, ant_dir  r = (cos psi, sin psi) . D(x, y) / dt - 0.5 |a|^2 + 1 [- 5e-4 |f|^2]
    ant_goal               r = -|x - psi_1| - |y - psi_2| - 0.1 |a|^2 [- 5e-4 |f|^2]
    humanoid_direc_2d      r = 0.25 (cos psi, sin psi) . D com / 0.003 - 0.1 |0.4 a|^2 + 5 [- min(5e-7 |F|^2, 10)]

F are the external contact forces and torques on all bodies, f the same clipped to [-1, 1].

Differs from the paper:
1. The terms in brackets exist in ``variant="contact"`` alone. The published results were computed with a MuJoCo
   (2.0) whose contact forces were always zero, as in the default variant; there, the observation leaves them out.
2. A reward must be a function of (psi, s, a, s'). Ant-Fwd-Back, Ant-Dir and Humanoid-Direc-2D hide the position,
   so that their observation has two more numbers: the mean velocity (x, y) of the torso, for the humanoid of the
   centre of mass, over the last action in m/s.
3. psi is a continuous parameter with a box around the tasks: fwd_back has its two tasks at the ends (half-cheetah)
   or at 0 and pi (ant). `published_tasks` draws the papers' task sets.
4. Quantities derived from the state are those of the new state; `oyster` read them one sub-step late.
5. The humanoid's factor 0.25 / 0.003 is as released: D is over five sub-steps of 0.003 s, so it is 1.25 times the
   velocity. Physics is that of the installed MuJoCo, not of the papers' version.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from task_families.family import TaskBox
from task_families.mujoco_family import MujocoFamily
from task_families.mujoco_simulator import OWN_ASSETS, Fields

PEARL = "PEARL (Rakelly et al. 2019)"


def drawn_once(low: float, high: float, num: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Training and test tasks (n, 1), uniform on [low, high), by numpy's legacy generator as in `oyster`."""
    psi = np.random.RandomState(seed).uniform(low, high, size=sum(num))
    tasks = torch.from_numpy(psi)[:, None]
    return tasks[: num[0]], tasks[num[0] :]


class _HalfCheetah(MujocoFamily):
    """Observation (20): qpos without x (8), qvel (9), torso position x, y, z (3) in m; dt 0.05 s."""

    source = PEARL
    obs_size = 20
    act_size = 6
    xml = OWN_ASSETS / "half_cheetah.xml"
    frame_skip = 5

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        qpos = now["qpos"]
        height = qpos[:, 1] + float(self.model.body("torso").pos[2])
        torso = torch.stack([qpos[:, 0], torch.zeros_like(height), height], dim=-1)
        return torch.cat([qpos[:, 1:], now["qvel"], torso], dim=-1)

    def velocity(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        """Mean forward velocity over the action in m/s."""
        return (next_obs[..., 17] - obs[..., 17]) / self.dt


class HalfCheetahFwdBack(_HalfCheetah):
    """Run forwards or backwards."""

    name = "half_cheetah_fwd_back"
    formula = "psi v_x - 0.05 |a|^2"

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("direction",), ("1",))
        self.first_psi = torch.tensor([1.0])

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        cost = 0.05 * act.clamp(-1, 1).square().sum(-1)
        return psi[..., 0] * self.velocity(obs, next_obs) - cost

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """Both directions, for training and for testing."""
        psi = torch.tensor([[1.0], [-1.0]])
        return psi, psi


class HalfCheetahVel(_HalfCheetah):
    """Run at a target velocity."""

    name = "half_cheetah_vel"
    formula = "-|v_x - psi| - 0.05 |a|^2"

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([0.0]), torch.tensor([3.0]), ("target velocity",), ("m/s",))
        self.first_psi = torch.tensor([1.5])

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        cost = 0.05 * act.clamp(-1, 1).square().sum(-1)
        return -(self.velocity(obs, next_obs) - psi[..., 0]).abs() - cost

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """100 and 30 velocities, uniform; the released seed is 1337."""
        return drawn_once(0.0, 3.0, (100, 30), seed)


class _Ant(MujocoFamily):
    """dt 0.05 s. With contact forces, the 84 clipped ones are part of the observation."""

    source = PEARL
    variants = ("released", "contact")
    act_size = 8
    xml = "ant.xml"
    frame_skip = 5
    num_contacts = 84

    def __init__(self, variant: str = "released") -> None:
        self.contact_forces = variant == "contact"
        self.derived = ("cfrc_ext",) if self.contact_forces else ()
        super().__init__(variant)

    def contacts(self, now: Fields) -> list[Tensor]:
        """The clipped contact forces (R, 84), if the variant has them."""
        return [now["cfrc_ext"].flatten(1).clamp(-1, 1)] if self.contact_forces else []

    def contact_cost(self, contacts: Tensor) -> Tensor | float:
        """5e-4 |f|^2 of observed forces (..., 84)."""
        return 5e-4 * contacts.square().sum(-1) if self.contact_forces else 0.0


class AntDir(_Ant):
    """Walk in a direction; psi = angle in rad.

    Observation (29; 113 with contact forces): qpos without x and y (13), qvel (14), [contact forces (84)], mean
    velocity of the torso x, y (2). Terminates when the torso's height leaves [0.2, 1] m.
    """

    name = "ant_dir"
    formula = "(cos psi, sin psi) . v - 0.5 |a|^2 + 1"
    healthy_range: ClassVar = {0: (0.2, 1.0)}
    healthy_ends = True
    remembered = ("qpos",)
    high: ClassVar[float] = 2 * math.pi

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.obs_size = 29 + (self.num_contacts if self.contact_forces else 0)
        self.box = TaskBox(torch.tensor([0.0]), torch.tensor([self.high]), ("direction",), ("rad",))
        self.first_psi = torch.tensor([0.0])

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        angle = psi[..., 0]
        forward = angle.cos() * next_obs[..., -2] + angle.sin() * next_obs[..., -1]
        cost = 0.5 * act.clamp(-1, 1).square().sum(-1) + self.contact_cost(next_obs[..., 27:-2])
        return forward - cost + 1.0

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        velocity = (now["qpos"][:, :2] - before["qpos"][:, :2]) / self.dt
        return torch.cat([now["qpos"][:, 2:], now["qvel"], *self.contacts(now), velocity], dim=-1)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """45 and 5 of 50 uniform directions (as MACAW splits them; `oyster` trains and tests on the same)."""
        return drawn_once(0.0, 2 * math.pi, (45, 5), seed)


class AntFwdBack(AntDir):
    """AntDir with the box [0, pi]: forwards at 0, backwards at pi."""

    name = "ant_fwd_back"
    high = math.pi

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """Both directions, for training and for testing."""
        psi = torch.tensor([[0.0], [math.pi]])
        return psi, psi


class AntGoal(_Ant):
    """Walk to a position; psi = (x, y) in m. Never terminates.

    Observation (29; 113 with contact forces): qpos (15), qvel (14), [contact forces (84)].
    """

    name = "ant_goal"
    formula = "-|x - psi_1| - |y - psi_2| - 0.1 |a|^2"
    radius = 3.0  # the papers' goals lie in this disc

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.obs_size = 29 + (self.num_contacts if self.contact_forces else 0)
        side = torch.full((2,), self.radius)
        self.box = TaskBox(-side, side, ("goal x", "goal y"), ("m", "m"))
        self.first_psi = self.box.from_unit(torch.full((2,), 0.3))

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        distance = (next_obs[..., :2] - psi).abs().sum(-1)
        cost = 0.1 * act.clamp(-1, 1).square().sum(-1) + self.contact_cost(next_obs[..., 29:])
        return -distance - cost

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        return torch.cat([now["qpos"], now["qvel"], *self.contacts(now)], dim=-1)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """150 and 30 goals, uniform in the disc of radius 3 m."""
        psi = self.box.restrict(lambda psi: psi.norm(dim=-1) <= self.radius).fixed(180, seed)
        return psi[:150], psi[150:]


class HumanoidDirec2D(MujocoFamily):
    """Walk in a direction on two legs; psi = angle in rad. dt 0.015 s.

    Observation (294; 378 with contact forces): qpos without x and y (22), qvel (23), cinert (140), cvel (84),
    actuator forces (23), [contact forces (84)], mean velocity of the centre of mass x, y (2). Action (17) in
    [-1, 1] times 0.4. Terminates when the torso's height leaves [1, 2] m.
    """

    name = "humanoid_direc_2d"
    source = PEARL
    formula = "1.25 (cos psi, sin psi) . v - 0.1 |0.4 a|^2 + 5"
    variants = ("released", "contact")
    act_size = 17
    xml = "humanoid.xml"
    frame_skip = 5
    position_noise = 0.01
    velocity_noise = 0.01
    velocity_noise_kind = "uniform"
    control_scale = 0.4
    healthy_range: ClassVar = {0: (1.0, 2.0)}
    healthy_ends = True
    remembered = ("subtree_com",)

    def __init__(self, variant: str = "released") -> None:
        self.contact_forces = variant == "contact"
        fields = ("cinert", "cvel", "qfrc_actuator", "subtree_com")
        self.derived = (*fields, "cfrc_ext") if self.contact_forces else fields
        super().__init__(variant)
        self.obs_size = 294 + (84 if self.contact_forces else 0)
        self.box = TaskBox(torch.tensor([0.0]), torch.tensor([2 * math.pi]), ("direction",), ("rad",))
        self.first_psi = torch.tensor([0.0])

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        angle = psi[..., 0]
        forward = angle.cos() * next_obs[..., -2] + angle.sin() * next_obs[..., -1]
        cost = 0.1 * (self.control_scale * act.clamp(-1, 1)).square().sum(-1)
        if self.contact_forces:
            cost = cost + (5e-7 * next_obs[..., 292:-2].square().sum(-1)).clamp(max=10.0)
        return 0.25 * forward * (self.dt / 0.003) - cost + 5.0

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class. The centre of mass is that of the subtree of body 1, the torso: all bodies."""
        velocity = (now["subtree_com"][:, 1, :2] - before["subtree_com"][:, 1, :2]) / self.dt
        names = ("cinert", "cvel", "qfrc_actuator") + (("cfrc_ext",) if self.contact_forces else ())
        derived = [now[name].flatten(1) for name in names]
        return torch.cat([now["qpos"][:, 2:], now["qvel"], *derived, velocity], dim=-1)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """100 and 30 directions, uniform."""
        return drawn_once(0.0, 2 * math.pi, (100, 30), seed)
