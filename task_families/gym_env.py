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
    """One task, or a new one at every reset; the time limit is the family's horizon. Observations, actions: float32.

    ``reset(options={"psi": ...})`` begins an episode of that task; later ones are of it too, until another is given,
    unless every reset draws its own. With ``shows_psi``, psi stands behind every observation, as the evaluation gives
    it to policies that see it.

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
        psi: Tensor | Sequence[float] | None,
        *,
        allow_outside: bool = False,
        render_mode: str | None = None,
        shows_psi: bool = False,
    ) -> None:
        """
        Args:
            psi: (k,); None: every reset draws a task, uniformly.
        """
        self.metadata: dict[str, Any] = {"render_modes": []}
        if family.has_body and family.dt is not None:
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(1 / family.dt))}
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = " or ".join(repr(mode) for mode in (None, *self.metadata["render_modes"]))
            why = "" if family.has_body else f"; {family.name} has no MuJoCo body, so there is nothing to see"
            raise ValueError(f"render_mode: expected {modes}, got {render_mode!r}{why}")
        self.family, self.render_mode = family, render_mode
        self.allow_outside, self.shows_psi, self.draws_psi = allow_outside, shows_psi, psi is None
        first = family.box.sample(1, "uniform", torch.Generator().manual_seed(0))[0] if psi is None else psi
        self.psi = self._checked(first)
        bounds = ActionBounds.make(family.act_size, -1, 1) if family.picks_largest else family.action_bounds
        low, high = (end.numpy().astype(np.float32) for end in (bounds.low, bounds.high))
        size = family.obs_size + (family.box.size if shows_psi else 0)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self._simulator = family.make_simulator((1, 1), dtype=torch.float64, psi=self.psi[None])
        self._generator = torch.Generator()
        self._obs = torch.zeros(family.obs_size, dtype=torch.float64)
        self._step = 0
        self._camera: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        psi = None if self.draws_psi else self.psi
        return _remake, (self.family, psi, self.render_mode, self.shows_psi, self.allow_outside)

    def _checked(self, psi: Any) -> Tensor:
        """One task (k,) float64.

        Raises:
            ValueError: another shape, or outside the box.
        """
        task = torch.as_tensor(psi, dtype=torch.float64)
        if task.dim() != 1:
            raise ValueError(
                f"psi: expected shape ({self.family.box.size},), one task, got {tuple(task.shape)}; "
                "make one environment for each task"
            )
        return self.family.box.check(task, allow_outside=self.allow_outside)[0]

    def _begin(self, psi: Tensor) -> None:
        """The next episode is of another task."""
        if self.family.psi_changes_dynamics and not torch.equal(psi, self.psi):
            if hasattr(self._simulator, "close"):
                self._simulator.close()
            self._simulator = self.family.make_simulator((1, 1), dtype=torch.float64, psi=psi[None])
        self.psi = psi

    def _seen(self, obs: Tensor) -> np.ndarray:
        """What is observed in a state (S,)."""
        seen = torch.cat([obs, self.psi.to(obs)]) if self.shows_psi else obs
        return seen.numpy().astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            options: ``{"psi": (k,)}``, the task; None: the present one, or one that is drawn.

        Raises:
            ValueError: a psi of another shape or outside the box, or another option.
        """
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        if unknown := set(options or {}) - {"psi"}:
            raise ValueError(f"options: expected psi, got {sorted(unknown)[0]!r}")
        if options and options.get("psi") is not None:
            self._begin(self._checked(options["psi"]))
        elif self.draws_psi:
            generator = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
            self._begin(self._checked(self.family.box.sample(1, "uniform", generator)[0]))
        states = self._simulator.start_states(1, self._generator)
        self._obs = self._simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)[0, 0]
        self._step = 0
        return self._seen(self._obs), {"psi": self.psi.numpy().copy()}

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
        return self._seen(next_obs), reward, terminated, truncated, info

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


def _remake(
    family: Simulated, psi: Tensor | None, render_mode: str | None, shows_psi: bool, allow_outside: bool
) -> TaskEnv:
    # psi was accepted when the environment was first made
    env = TaskEnv(family, psi, allow_outside=True, render_mode=render_mode, shows_psi=shows_psi)
    env.allow_outside = allow_outside
    return env
