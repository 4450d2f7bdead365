"""Families of the tests, in a module that other processes find: they are pickled."""

import torch

from task_families import TaskBall, TaskBox, TaskFamily
from task_families.function_simulator import FunctionSimulator
from task_families.linear_quadratic import LinearQuadratic


class Point(TaskFamily):
    """A correct family of three lines, to be broken."""

    name, source, formula = "point", "test", "-|s' - psi|^2"
    horizon, obs_size, act_size, act_limit = 10, 2, 2, None

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBox(-torch.ones(2), torch.ones(2), ("x", "y"), ("m", "m"))
        self.first_psi = torch.zeros(2)

    def reward(self, psi, obs, act, next_obs):
        return -(next_obs - psi).square().sum(-1)

    def reset(self, n, generator):
        return torch.rand(n, 2, generator=generator, dtype=torch.float64)

    def make_simulator(self, shape, *, num_threads=1, dtype=torch.float32, psi=None):
        return FunctionSimulator(shape, self.reset, lambda obs, act, u: obs + act, dtype=dtype)


class BallTargets(LinearQuadratic):
    """Targets in a ball instead of a box."""

    name = "ball_targets"

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBall(torch.zeros(2, dtype=torch.float64), 1.0, ("x", "y"), ("m", "m"))
