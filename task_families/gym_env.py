"""TaskEnv: one task of a family as a gymnasium environment, for libraries that train on those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from task_families.simulator import ActionBounds, Simulated


class TaskEnv(gymnasium.Env):
    """One task; the time limit is the family's horizon. Observations and actions are float32.

    Same simulator, reward and termination code as the batched sampler, with one lane. An episode whose simulation
    becomes unstable terminates with nan observations and reward, and ``info["unstable"]`` is true. Copies and
    pickles keep the task (psi) and start with a reset.

    The action space has the family's limits (`TaskFamily.action_bounds`); where only the largest number of an action
    counts (`TaskFamily.picks_largest`), it is [-1, 1] per number, which holds every choice. Other families without
    limits have none here: a linear-quadratic optimum is one of unlimited actions.
    """

    def __init__(
        self,
        family: Simulated,
        psi: Tensor | Sequence[float],
        *,
        allow_outside: bool = False,
        render_mode: str | None = None,
    ) -> None:
        psi = torch.as_tensor(psi, dtype=torch.float64)
        if psi.dim() != 1:
            raise ValueError(
                f"psi: expected shape ({family.box.size},), one task, got {tuple(psi.shape)}; "
                "make one environment for each task"
            )
        self.metadata: dict[str, Any] = {"render_modes": []}
        if family.has_body and family.dt is not None:
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(1 / family.dt))}
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = " or ".join(repr(mode) for mode in (None, *self.metadata["render_modes"]))
            why = "" if family.has_body else f"; {family.name} has no MuJoCo body, so there is nothing to see"
            raise ValueError(f"render_mode: expected {modes}, got {render_mode!r}{why}")
        self.psi = family.box.check(psi, allow_outside=allow_outside)[0]
        self.family = family
        self.render_mode = render_mode
        bounds = ActionBounds.make(family.act_size, -1, 1) if family.picks_largest else family.action_bounds
        low, high = (end.numpy().astype(np.float32) for end in (bounds.low, bounds.high))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (family.obs_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self._simulator = family.make_simulator((1, 1), dtype=torch.float64, psi=self.psi[None])
        self._generator = torch.Generator()
        self._obs = torch.zeros(family.obs_size, dtype=torch.float64)
        self._step = 0
        self._camera: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.family, self.psi, self.render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        states = self._simulator.start_states(1, self._generator)
        self._obs = self._simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)[0, 0]
        self._step = 0
        return self._obs.numpy().astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        act = torch.as_tensor(np.asarray(action), dtype=torch.float64)
        if act.shape != (self.family.act_size,) or not bool(act.isfinite().all()):
            raise ValueError(
                f"action: expected {self.family.act_size} finite numbers, got {np.asarray(action).tolist()}"
            )
        next_obs = self._simulator.step(act[None, None])[0, 0]
        reward = float(self.family.reward(self.psi, self._obs, act, next_obs))
        unstable = not bool(next_obs.isfinite().all())
        terminated = unstable or bool(self.family.terminated(next_obs))
        self._obs = next_obs
        self._step += 1
        truncated = self._step >= self.family.horizon and not terminated
        info = {"unstable": True} if unstable else {}
        return next_obs.numpy().astype(np.float32), reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """A picture (height, width, 3) uint8 of the present state, if render_mode is ``"rgb_array"``."""
        if self.render_mode is None:
            return None
        from task_families.camera import Camera

        if self._camera is None:
            self._camera = Camera(getattr(self.family, "model", None))
        return self._camera.picture(self._simulator)

    def close(self) -> None:
        """Free the camera, and what else the simulator holds, if it has a `close`; a reset starts it again."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        if hasattr(self._simulator, "close"):
            self._simulator.close()


def _remake(family: Simulated, psi: Tensor, render_mode: str | None) -> TaskEnv:
    # psi was accepted when the environment was first made
    return TaskEnv(family, psi, allow_outside=True, render_mode=render_mode)
