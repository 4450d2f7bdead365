"""Spaces of gymnasium's: which fit a family, and how observations and actions become rows of numbers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import iterate
from torch import Tensor

from task_families.family import TaskFamily


def flat(space: spaces.Space, obs: Any) -> Tensor:
    """An observation of any space that `gymnasium.spaces.utils.flatten` knows -> (S,), in its order."""
    if isinstance(space, spaces.Box):
        return torch.as_tensor(np.asarray(obs).reshape(-1))
    return torch.as_tensor(np.asarray(spaces.utils.flatten(space, obs), dtype=np.float64))


def action_of(space: spaces.Space, numbers: np.ndarray) -> Any:
    """What the environment is given for the numbers (A,) of an action: clamped to its box, or the largest chooses."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) + int(numbers.argmax())
    assert isinstance(space, spaces.Box)  # `check_spaces`
    return np.clip(numbers.reshape(space.shape), space.low, space.high).astype(space.dtype)


def flat_rows(env: VectorEnv, obs: Any) -> np.ndarray:
    """Observations of a vector environment -> (n, S), each as `flat` has it."""
    if isinstance(env.single_observation_space, spaces.Box):
        return np.asarray(obs).reshape(env.num_envs, -1)
    parts = iterate(env.observation_space, obs)
    return np.stack([flat(env.single_observation_space, part).numpy() for part in parts])


def actions_of(space: spaces.Space, numbers: np.ndarray) -> np.ndarray:
    """What a vector environment of that single action space is given for numbers (n, A); see `action_of`."""
    return np.stack([np.asarray(action_of(space, row), dtype=space.dtype) for row in numbers])


def check_spaces(family: TaskFamily, env: gymnasium.Env) -> None:
    """Refuse an environment whose spaces do not fit, or are not those that the family declares.

    Raises:
        ValueError: names the space, what was expected, and the wrapper that helps.
    """
    seen, acted = env.observation_space, env.action_space
    obs_size, act_size, low, high = sizes_of(seen, acted)
    for name, size, num, space in (
        ("obs_size", family.obs_size, obs_size, seen),
        ("act_size", family.act_size, act_size, acted),
    ):
        if num != size:
            raise ValueError(
                f"{name}: expected {num}, the numbers in the environment's {space}, got {size}; set {name} = {num}"
            )
    bounds = family.action_bounds
    if not (_agree(bounds.low, low) and _agree(bounds.high, high)):
        raise ValueError(
            f"act_low, act_high: expected the limits of the environment's action space, {_limits(low, high)}, "
            f"got {_limits(bounds.low, bounds.high)}; set act_limit, or act_low and act_high (None: no limit), or "
            "change the environment's with gymnasium.wrappers.RescaleAction"
        )


def sizes_of(seen: spaces.Space, acted: spaces.Space) -> tuple[int, int, Tensor, Tensor]:
    """Numbers in an observation and in an action, and the limits of the latter (A,) float64.

    Raises:
        ValueError: names a space that does not fit, what was expected, and the wrapper that helps.
    """
    try:
        obs_size = int(spaces.utils.flatdim(seen))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"observation_space: expected one of a fixed number of numbers, got {seen}; wrap the environment of "
            "make_one in gymnasium.wrappers.TransformObservation with a function that makes a Box's of them"
        ) from error
    if isinstance(acted, spaces.Discrete):
        unlimited = torch.full((int(acted.n),), torch.inf, dtype=torch.float64)  # clamped ones could be equal
        return obs_size, len(unlimited), -unlimited, unlimited
    if not isinstance(acted, spaces.Box) or not np.issubdtype(acted.dtype, np.floating):
        raise ValueError(
            f"action_space: expected a Box of real numbers or a Discrete, got {acted}; wrap the environment of "
            "make_one in gymnasium.wrappers.TransformAction with a function that makes its actions of a Box's"
        )
    low, high = (torch.as_tensor(end.reshape(-1)).double() for end in (acted.low, acted.high))
    return obs_size, len(low), low, high


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-6, atol=0.0)  # theirs may be rounded to float32


def _limits(low: Tensor, high: Tensor) -> str:
    return f"{low.tolist()} to {high.tolist()}"
