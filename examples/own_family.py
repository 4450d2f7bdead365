"""Add your own family of tasks: a cart-pole from an XML string, which should stand at a position psi.

A family needs a box of tasks, a body, what is observed, a reward that torch can differentiate, and a termination.
`check_family` then proves that it behaves: batches, restarts, seeds, gradients, gymnasium, pickling.

    python examples/own_family.py

Any other simulator works, too: subclass `TaskFamily` and return a `Simulator` (three methods) from `make_simulator`;
`task_families.gymnasium_simulator.GymnasiumFamily` does that for a gymnasium environment, as `Pendulum` below shows.
"""

import gymnasium
import torch

from task_families import TaskBox, check_family
from task_families.gymnasium_simulator import GymnasiumFamily
from task_families.mujoco_family import MujocoFamily

XML = """<mujoco model="cart-pole"><option timestep="0.02" integrator="RK4"/><worldbody><light pos="0 0 5"/>
  <body pos="0 0 1"><joint name="slide" type="slide" axis="1 0 0" damping="1"/><geom size=".2 .1 .1" type="box"/>
    <body><joint type="hinge" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 .6" size=".04"/></body></body>
  </worldbody><actuator><motor joint="slide" gear="100" ctrlrange="-1 1"/></actuator></mujoco>"""


class CartPole(MujocoFamily):
    """Observation (4): position (m), angle (rad), and their velocities. Action (1): force on the cart."""

    name, source, formula = "cart_pole", "this example", "1 - (x - psi)^2 - 0.1 a^2"
    xml = XML
    obs_size, act_size = 4, 1

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("target position",), ("m",))
        self.first_psi = torch.tensor([0.3])

    def observe(self, now, before):
        return torch.cat([now["qpos"], now["qvel"]], dim=-1)

    def reward(self, psi, obs, act, next_obs):
        return 1 - (next_obs[..., 0] - psi[..., 0]).square() - 0.1 * act.square().sum(-1)

    def terminated(self, next_obs):
        return ~(next_obs[..., 1].abs() < 0.5)  # also if it is nan


class Pendulum(GymnasiumFamily):
    """Gymnasium's pendulum, to be held at the angle psi. Observation (3): cos, sin, angular velocity."""

    name, source, formula = "pendulum_angle", "this example", "cos(angle - psi) - 0.001 a^2"
    obs_size, act_size, act_limit = 3, 1, 2.0

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("target angle",), ("rad",))
        self.first_psi = torch.tensor([0.3])

    def make_one(self):
        return gymnasium.make("Pendulum-v1").unwrapped

    def reward(self, psi, obs, act, next_obs):
        target = torch.cat([psi.cos(), psi.sin()], dim=-1)
        return (next_obs[..., :2] * target).sum(-1) - 0.001 * act.square().sum(-1)


def main() -> None:
    for family in (CartPole(), Pendulum()):
        passed = check_family(family)
        print(f"{family.name}: {len(passed)} checks passed ({', '.join(passed)})")
        env = family.make_env([0.5])
        print(f"  one task as a gymnasium environment starts in {env.reset(seed=0)[0]}")


if __name__ == "__main__":
    main()
