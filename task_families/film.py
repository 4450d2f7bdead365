"""One episode in pictures, in real time or slower, for films of a family with a MuJoCo body."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from task_families.camera import Camera
from task_families.family import TaskFamily
from task_families.simulator import Simulator

MAX_FRAMES_PER_SECOND = 25  # and whole hundredths of a second, the unit of a gif
MAX_FRAMES = 250  # of a film; a longer one has fewer per second


@dataclass(frozen=True)
class Film:
    """One episode in pictures, each (H, W, 3) uint8."""

    pictures: list[np.ndarray]  # in steps of `seconds`; the last one is the last state
    stills: list[np.ndarray]  # evenly spaced over the episode
    seconds: float  # that every picture is shown
    num_steps: int
    simulated_seconds: float
    total_return: float  # undiscounted

    def milliseconds(self) -> list[int]:
        """How long each picture is shown in a gif, in whole hundredths of a second; no error adds up."""
        ends = [round(100 * self.seconds * i) for i in range(len(self.pictures) + 1)]
        return [10 * (end - start) for start, end in pairwise(ends)]


def steps_per_picture(dt: float, horizon: int, slow_motion: float) -> int:
    """Steps of dt seconds between the pictures of a film of horizon steps."""
    fewest = 1 / (MAX_FRAMES_PER_SECOND * dt * slow_motion)
    return max(1, math.ceil(fewest - 1e-6), math.ceil(horizon / MAX_FRAMES))


@torch.no_grad()
def shoot(
    family: TaskFamily,
    psi: Tensor,
    act: Callable[[int, Tensor], Tensor],
    seed: int,
    *,
    slow_motion: float = 1.0,
    num_stills: int = 6,
) -> Film:
    """One episode of one task: psi (1, k), ``act(t, obs (1, 1, S)) -> (1, 1, A)``.

    Args:
        slow_motion: seconds of film per simulated second.

    Raises:
        ValueError: the family has no body.
    """
    if not family.has_body or family.dt is None:
        raise ValueError(f"family: {family.name} has no MuJoCo body, so there is nothing to see")
    simulator: Simulator = family.make_simulator((1, 1), psi=psi)
    states = simulator.start_states(1, torch.Generator().manual_seed(seed))
    obs = simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)
    with closing(Camera(getattr(family, "model", None))) as camera:
        poses, total, ended = [camera.pose(simulator)], 0.0, False
        while len(poses) <= family.horizon and not ended:
            action = act(len(poses) - 1, obs)
            next_obs = simulator.step(action)
            total += float(family.reward(psi[:, None], obs, action, next_obs))
            ended = bool(family.terminated(next_obs))
            obs = next_obs
            poses.append(camera.pose(simulator))
        num_steps = len(poses) - 1
        every = steps_per_picture(family.dt, family.horizon, slow_motion)
        pictures = [camera.draw(poses[t]) for t in (*range(0, num_steps, every), num_steps)]
        even = np.linspace(0, num_steps, num_stills).round().astype(int)
        stills = [camera.draw(poses[t]) for t in even]
    return Film(pictures, stills, every * family.dt * slow_motion, num_steps, num_steps * family.dt, total)
