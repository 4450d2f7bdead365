"""One point mass whose action has another unit: nothing else may change."""

import torch

from task_families import TaskBox, TaskFamily
from task_families.function_simulator import FunctionSimulator

UNITS = {
    "100": {"act_limit": 100.0},
    "1000": {"act_limit": 1000.0},
    "asymmetric": {"act_low": -1.0, "act_high": 3.0},
    "per coordinate": {"act_low": (-0.01, 5.0), "act_high": (0.01, 905.0)},
}


class PointMass(TaskFamily):
    """s' = s + 0.1 u with u the clamped action in units of its limits; r = 1 - |s' - psi|^2 - 0.05 |u|^2."""

    name, source, formula = "point_mass", "test", "1 - |s' - psi|^2 - 0.05 |u|^2"
    horizon, obs_size, act_size = 20, 2, 2

    def __init__(self, variant="released", **limits):
        super().__init__(variant)
        self.box = TaskBox(-torch.ones(2), torch.ones(2), ("x", "y"), ("m", "m"))
        self.first_psi = torch.full((2,), 0.3)
        vars(self).update(limits)
        declared = self.act_low is not None
        ends = (self.act_low, self.act_high) if declared else (-self.act_limit, self.act_limit)
        low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
        self.middle, self.half = (low + high) / 2, (high - low) / 2  # by hand, not by the package

    def unit(self, act):
        return (act - self.middle.to(act)) / self.half.to(act)

    def reward(self, psi, obs, act, next_obs):
        return 1 - (next_obs - psi).square().sum(-1) - 0.05 * self.unit(act).square().sum(-1)

    def reset(self, n, generator):
        return 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1

    def make_simulator(self, shape, *, num_threads=1, dtype=torch.float32, psi=None):
        def move(obs, act, u):
            return obs + 0.1 * self.unit(act).clamp(-1, 1)

        return FunctionSimulator(shape, self.reset, move, dtype=dtype)
