"""A point mass that reports its position with an offset."""

import torch
from unit_tools import PointMass

from task_families.function_simulator import FunctionSimulator


class _Rounded:
    """Simulates in float64 and shows what dtype holds."""

    def __init__(self, family, shape, dtype):
        def move(obs, act, u):
            return obs + 0.1 * family.unit(act).clamp(-1, 1)

        self.shape, self._dtype = shape, dtype
        self._truth = FunctionSimulator(shape, family.reset, move, dtype=torch.float64)

    def start_states(self, n, generator):
        return self._truth.start_states(n, generator)

    def reset(self, lanes, states):
        return self._truth.reset(lanes, states).to(self._dtype)

    def step(self, act):
        return self._truth.step(act.double()).to(self._dtype)


class OffsetMass(PointMass):
    name = "offset_mass"

    def __init__(self, variant="released", offset=(0.0, 0.0)):
        super().__init__(variant)
        self.offset = torch.tensor(offset, dtype=torch.float64)

    def reward(self, psi, obs, act, next_obs):
        return super().reward(psi, obs, act, next_obs - self.offset.to(next_obs))

    def reset(self, n, generator):
        return super().reset(n, generator) + self.offset

    def make_simulator(self, shape, *, num_threads=1, dtype=torch.float32, psi=None):
        return _Rounded(self, shape, dtype)
