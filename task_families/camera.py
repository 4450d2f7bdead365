"""Camera: pictures of a simulated body without a screen, through EGL or OSMesa.

The OpenGL backend is chosen when the first picture is taken; see `task_families.opengl`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from task_families.mujoco_simulator import MujocoSimulator
from task_families.opengl import backend

if TYPE_CHECKING:
    from task_families.simulator import Simulator


class Camera:
    """Follows the first body of a MuJoCo model, seen from the side and above. Close it after use."""

    def __init__(
        self,
        model: mujoco.MjModel | None,
        *,
        width: int = 320,
        height: int = 240,
        distance: float = 4.0,
    ) -> None:
        """
        Args:
            model: a MuJoCo family's `model`.
            distance: from the body in m.

        Raises:
            ValueError: there is no model.
            RuntimeError: no OpenGL backend works; see `backend`.
        """
        if not isinstance(model, mujoco.MjModel):
            raise ValueError(
                f"model: expected the MuJoCo model of a family that has one, got {model!r:.60}; there is nothing to "
                "take a picture of"
            )
        name = backend()
        os.environ["PYOPENGL_PLATFORM"] = name  # what PyOpenGL reads when it is first imported
        self._model, self._data = model, mujoco.MjData(model)
        self._context: Any = import_module(f"mujoco.{name}").GLContext(width, height)
        self._context.make_current()
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._renderer)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        self._view.trackbodyid = 1
        self._view.distance = distance
        self._view.azimuth, self._view.elevation = 90.0, -15.0  # degrees
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._picture = np.zeros((height, width, 3), dtype=np.uint8)

    def picture(self, simulator: Simulator, lane: tuple[int, int] = (0, 0)) -> np.ndarray:
        """(height, width, 3) uint8 of one lane's present state."""
        return self.draw(self.pose(simulator, lane))

    @staticmethod
    def pose(simulator: Simulator, lane: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Positions (nq,) of one lane's present state, to be drawn later."""
        if not isinstance(simulator, MujocoSimulator):
            raise ValueError(f"simulator: expected a MujocoSimulator, got {type(simulator).__name__}")
        return simulator.qpos[lane].numpy()

    def draw(self, pose: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 of positions (nq,)."""
        self._data.qpos[:] = pose
        mujoco.mj_forward(self._model, self._data)
        self._context.make_current()
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._view,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._picture, None, self._rectangle, self._renderer)
        return self._picture[::-1].copy()  # OpenGL's rows start at the bottom

    def close(self) -> None:
        """Free the OpenGL context; twice is harmless."""
        if self._context is not None:
            self._renderer.free()
            self._context.free()
            self._context = None


def film_strip(pictures: list[np.ndarray], num: int, gap: int = 4) -> np.ndarray:
    """num pictures (H, W, 3) of all, evenly chosen, side by side on white with ``gap`` pixels between them."""
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, num).round().astype(int)]
    space = np.full((chosen[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row = [part for picture in chosen for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)
