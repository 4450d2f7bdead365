"""MujocoSimulator: many MuJoCo simulations of one model, stepped together on a thread pool.

Bit-identical to stepping one `mujoco.MjData` at any number of threads (`mujoco.batch`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

try:
    import mujoco
    from gymnasium.envs.mujoco import mujoco_env
    from mujoco.batch import Batch
except ImportError as error:
    raise ImportError(
        f"this task family needs MuJoCo >= 3.17 and gymnasium's MuJoCo extra ({error}); "
        'install them with: pip install "gymnasium[mujoco]>=1.0" "mujoco>=3.17"'
    ) from error
from pathlib import Path

ASSETS = Path(mujoco_env.__file__).parent / "assets"


@lru_cache(maxsize=8)
def load_model(xml: str) -> mujoco.MjModel:
    """The compiled model of one of gymnasium's own XML files.

    Raises:
        RuntimeError: MuJoCo 4.0.0 with a sparse constraint Jacobian, which that version solves wrongly.
    """
    model = mujoco.MjModel.from_xml_path(str(ASSETS / xml))
    if mujoco.__version__ == "4.0.0" and mujoco.mj_isSparse(model):
        raise RuntimeError(
            f"{xml}: MuJoCo 4.0.0 gives wrong accelerations for models with a sparse Jacobian; "
            "install mujoco>=4.0.1 or mujoco<4"
        )
    return model


class MujocoSimulator:
    """(M, N) lanes of one model. A state is (qpos, qvel), float64.

    A simulation that MuJoCo reports as unstable observes nan from that step until its lane is reset, so that
    nothing computed from it can pass for data. `num_unstable` counts them.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        shape: tuple[int, int],
        start_states: Callable[[int, torch.Generator], Tensor],
        observe: Callable[[Tensor, Tensor], Tensor],
        *,
        frame_skip: int,
        num_threads: int,
        dtype: torch.dtype,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.num_unstable = 0
        self.start_states = start_states
        self._observe = observe
        self._frame_skip = frame_skip
        self._batch = Batch(model, nsim=shape[0] * shape[1], nthread=num_threads)
        self._batch.reset()
        self._qpos = torch.from_numpy(self._batch.bind("qpos"))  # live views of the state rows
        self._qvel = torch.from_numpy(self._batch.bind("qvel"))
        self._ctrl = self._batch.bind("ctrl")
        self._warned = np.asarray(self._batch.warning).copy()
        self._unstable = torch.zeros(shape[0] * shape[1], dtype=torch.bool)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        ids = lanes.flatten().nonzero()[:, 0]
        self._batch.reset(ids.numpy().astype(np.int32), stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._warned = np.asarray(self._batch.warning).copy()  # a reset clears the counters
        num_pos = self._qpos.shape[1]
        self._qpos[ids] = states[:, :num_pos]
        self._qvel[ids] = states[:, num_pos:]
        self._unstable[ids] = False
        return self._observations()

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. MuJoCo clamps the controls itself."""
        self._ctrl[:] = act.detach().reshape(self._ctrl.shape).numpy()
        self._batch.step(nstep=self._frame_skip)
        warned = np.asarray(self._batch.warning)
        if not np.array_equal(warned, self._warned):
            fresh = torch.from_numpy((warned > self._warned).reshape(len(warned), -1).any(1))
            self.num_unstable += int((fresh & ~self._unstable).sum())
            self._unstable |= fresh
            self._warned = warned.copy()
        return self._observations()

    def _observations(self) -> Tensor:
        obs = self._observe(self._qpos, self._qvel).to(self.dtype)
        if bool(self._unstable.any()):
            obs[self._unstable] = torch.nan
        return obs.view(*self.shape, -1)
