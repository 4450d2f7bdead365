"""Point robots in the plane (PEARL, Rakelly et al. 2019): s' = s + 0.1 a, a clipped to [-1, 1], lengths in m.

    point_robot         r = -|s' - psi|                                       psi = goal in [-1, 1]^2
    sparse_point_robot  r = (1 - |s' - g|) if |s' - g| <= radius, else 0      g = (cos psi, sin psi), psi in [0, pi]

sparse_point_robot has ``variant="released"`` (radius 0.2), ``"wide"`` (radius 0.8, for one of the robustness
studies) and ``"dense"`` (-|s' - g|, what PEARL's critic trains on). Episodes last 20 steps and never terminate.

Differs from the paper:
1. The papers' 100 semicircle goals are evenly spaced; here psi is continuous and `published_tasks` lists the 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from task_families.family import TaskBox, TaskFamily
from task_families.function_simulator import FunctionSimulator
from task_families.simulator import Simulator

STEP = 0.1  # m per action
RADIUS = {"released": 0.2, "wide": 0.8}


class PointRobot(TaskFamily):
    """Go to a goal in the square; starts uniform in [-1, 1]^2. Observation and action (2)."""

    name = "point_robot"
    source = "PEARL (Rakelly et al. 2019)"
    formula = "-|s' - psi|"
    horizon = 20
    obs_size = 2
    act_size = 2

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        ones = torch.ones(2)
        self.box = TaskBox(-ones, ones, ("goal x", "goal y"), ("m", "m"))
        self.first_psi = torch.full((2,), 0.3)

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        return -torch.linalg.vector_norm(next_obs - psi, dim=-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """See the class."""
        return 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        return FunctionSimulator(shape, self.reset, _move, dtype=dtype)

    def goal(self, psi: Tensor) -> Tensor:
        """Where to go (..., 2)."""
        return psi

    def optimal_policy(self, psi: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Straight to the goal in every coordinate, at full speed: nearest to it at every step."""
        goal = self.goal(psi)[:, None]
        return lambda t, obs: ((goal.to(obs) - obs) / STEP).clamp(-1, 1)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """80 and 20 goals, uniform in the square."""
        psi = self.box.fixed(100, seed)
        return psi[:80], psi[80:]


class SparsePointRobot(PointRobot):
    """Find a goal on the upper unit semicircle, starting at the origin; psi = its angle in rad."""

    name = "sparse_point_robot"
    formula = "(1 - d) if d = |s' - (cos psi, sin psi)| <= 0.2 else 0"
    variants = ("released", "wide", "dense")

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([0.0]), torch.tensor([math.pi]), ("angle of the goal",), ("rad",))
        self.first_psi = torch.tensor([math.pi / 2])

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        distance = torch.linalg.vector_norm(next_obs - self.goal(psi), dim=-1)
        if self.variant == "dense":
            return -distance
        return torch.where(distance <= RADIUS[self.variant], 1 - distance, 0 * distance)

    def goal(self, psi: Tensor) -> Tensor:
        """On the semicircle (..., 2)."""
        return torch.cat([psi.cos(), psi.sin()], dim=-1)

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """The origin."""
        return torch.zeros(n, 2, dtype=torch.float64)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """80 and 20 of 100 evenly spaced angles, shuffled; the released seed is 1337."""
        angles = np.linspace(0, math.pi, 100)
        np.random.RandomState(seed).shuffle(angles)
        psi = torch.from_numpy(angles)[:, None]
        return psi[:80], psi[80:]


def _move(obs: Tensor, act: Tensor, u: Tensor) -> Tensor:
    return obs + STEP * act.clamp(-1, 1)
