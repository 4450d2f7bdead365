"""A gymnasium environment that counts how often it is made and closed, and its family."""

import gymnasium
import numpy as np
import torch

from task_families import TaskBox
from task_families.gymnasium_simulator import GymnasiumFamily

MADE, CLOSED = [], []


def counts():
    return len(MADE), len(CLOSED)


class Counted(gymnasium.Env):
    """A point in the plane that is pushed: s' = s + 0.1 a + what its own random numbers say."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, breaks_at=None):
        MADE.append(self)
        self.breaks_at, self.num_steps = breaks_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        assert not any(env is self for env in CLOSED), "a closed environment was used"
        self.num_steps += 1
        if self.num_steps == self.breaks_at:
            raise RuntimeError("the wire broke")
        noise = self.np_random.normal(size=2, scale=0.01)
        self.state = (self.state + 0.1 * action + noise).astype(np.float32)
        return self.state, 0.0, False, False, {}

    def close(self):
        CLOSED.append(self)


class CountedFamily(GymnasiumFamily):
    name, source, formula = "counted", "test", "1 - |s' - psi|^2"
    horizon, obs_size, act_size = 20, 2, 2
    breaks_at = None

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBox(-torch.ones(2), torch.ones(2), ("x", "y"), ("m", "m"))
        self.first_psi = torch.full((2,), 0.3)

    def make_one(self):
        return Counted(self.breaks_at)

    def reward(self, psi, obs, act, next_obs):
        return 1 - (next_obs - psi).square().sum(-1)


def count_in_another_process(family):
    """Resets and steps; how many were made there, and open at the end."""
    simulator = family.make_simulator((1, 3))
    simulator.reset(torch.ones(1, 3, dtype=torch.bool), torch.arange(3)[:, None].double())
    simulator.step(torch.zeros(1, 3, 2))
    del simulator
    open_before = len(MADE) - len(CLOSED)
    family.close()
    return len(MADE), open_before, len(MADE) - len(CLOSED)
