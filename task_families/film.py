"""One episode in pictures, for films of a MuJoCo family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from task_families.camera import Camera
from task_families.family import TaskFamily
from task_families.simulator import Simulator

FRAMES_PER_SECOND = 25
MAX_FRAMES = 100  # of a film; a longer episode shows every n-th step


@dataclass(frozen=True)
class Film:
    """One episode in pictures."""

    pictures: list[np.ndarray]  # each (H, W, 3) uint8
    num_steps: int
    total_return: float  # undiscounted
    slow_motion: float  # seconds of film per simulated second


@torch.no_grad()
def shoot(family: TaskFamily, psi: Tensor, act: Callable[[int, Tensor], Tensor], seed: int) -> Film:
    """One episode of one task: psi (1, k), ``act(t, obs (1, 1, S)) -> (1, 1, A)``."""
    simulator: Simulator = family.make_simulator((1, 1), psi=psi)
    states = simulator.start_states(1, torch.Generator().manual_seed(seed))
    obs = simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)
    every = math.ceil(family.horizon / MAX_FRAMES)
    camera = Camera(getattr(family, "model", None))
    pictures, total, t = [camera.picture(simulator)], 0.0, 0
    try:
        ended = False
        while t < family.horizon and not ended:
            action = act(t, obs)
            next_obs = simulator.step(action)
            total += float(family.reward(psi[:, None], obs, action, next_obs))
            ended = bool(family.terminated(next_obs))
            obs, t = next_obs, t + 1
            if t % every == 0 or ended:
                pictures.append(camera.picture(simulator))
    finally:
        camera.close()
    seconds: float = family.dt  # type: ignore[attr-defined]  # every family with a body has it
    return Film(pictures, t, total, 1 / (FRAMES_PER_SECOND * every * seconds))
