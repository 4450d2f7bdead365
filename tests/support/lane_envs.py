"""Environments and families for lanes in several processes: all of a module, so that other processes find them."""

import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from task_families import EnvFamily, TaskBox

MASS = TaskBox(torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0]), ("mass", "force"), ("kg", "N"))


class Cart(gymnasium.Env):
    """x'' = force a / mass + noise; the position, the speed and which side it is on in a Dict; asymmetric actions."""

    observation_space = spaces.Dict(
        speed=spaces.Box(-np.inf, np.inf, (1,), np.float64),
        x=spaces.Box(-np.inf, np.inf, (1,), np.float32),
        side=spaces.Discrete(2),
    )
    action_space = spaces.Box(-1.0, 2.0, (1,), np.float64)

    def __init__(self, mass=1.0, force=1.0):
        self.mass, self.force = mass, force

    def observed(self):
        return {"x": self.x[:1].astype(np.float32), "speed": self.x[1:], "side": int(self.x[0] > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.observed(), {}

    def step(self, action):
        speed = self.x[1] + 0.3 * self.force * action[0] / self.mass + 0.3 * self.np_random.normal()
        self.x = np.array([self.x[0] + 0.3 * speed, speed])
        return self.observed(), 0.0, False, False, {}


class Walk(gymnasium.Env):
    """A walk on a circle by choices from 2 on; it ends itself, and can be walked on."""

    observation_space = spaces.MultiDiscrete([9, 2])
    action_space = spaces.Discrete(3, start=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = int(self.np_random.integers(9))
        return np.array([self.x, 0]), {}

    def step(self, action):
        self.x = (self.x + int(action) - 3 + int(self.np_random.integers(-1, 2))) % 9
        return np.array([self.x, int(action == 4)]), 0.0, self.x == 0, False, {}


class Troubled(gymnasium.Env):
    """One number, the time; `trouble` decides what its task makes of a step."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    psi = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0.0
        return np.array([self.time]), {}

    def step(self, action):
        self.time += 1
        if self.psi > 0.8 and self.time > 1:
            raise ValueError("too steep") if self.psi > 0.95 else ZeroDivisionError("the wheel fell off")
        if self.psi < -0.8:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([self.time]), 0.0, False, False, {}


class Logged(Troubled):
    """Notes in a file of the folder LANES which process opened and closed it, and began a step that takes a while."""

    def __init__(self):
        self.note("open")

    def note(self, word):
        with open(Path(os.environ["LANES"]) / "log", "a") as file:
            file.write(f"{word} {os.getpid()}\n")

    def step(self, action):
        if seconds := float(os.environ.get("LANES_SLEEP", "0")):
            self.note("step")
            time.sleep(seconds)
        return super().step(action)

    def close(self):
        self.note("close")


class OnlyHere:
    """What another process cannot make."""

    def __reduce__(self):
        return only_here, (os.getpid(),)


def only_here(pid):
    if os.getpid() != pid:
        raise FileNotFoundError("no such table")
    return OnlyHere()


def nothing(psi, obs, act, next_obs):
    return -(next_obs[..., 0] - psi[..., 0]).square()


def far(next_obs):
    return ~(next_obs[..., 1].abs() < 2.0)  # of a cart, in the Dict's order: speed, x, side (2)


def at_zero(next_obs):
    return next_obs[..., 0] > 0.5


def carts(**options):
    return EnvFamily("carts", Cart, MASS, nothing, terminated=far, horizon=25, **options)


def pendulum(**options):
    return EnvFamily("pendulum", "Pendulum-v1", MASS, nothing, psi_attributes=("m", "g"), **options)


LINE = TaskBox(-torch.ones(1), torch.ones(1), ("x",), ("m",))


def walk(**options):
    return EnvFamily("walk", Walk, LINE, nothing, terminated=at_zero, horizon=25, **options)


def troubled(env=Troubled, **options):
    return EnvFamily("troubled", env, LINE, nothing, psi_attributes=("psi",), **options)
