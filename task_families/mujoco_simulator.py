"""MujocoSimulator: many MuJoCo simulations of one body, stepped together on a thread pool.

Bit-identical to stepping one `mujoco.MjData` at any number of threads (`mujoco.batch`). What an observation needs
beyond the state comes in two kinds: *derived* fields (centre of mass, contact forces), computed at the new state
and therefore not one sub-step stale as those that `mj_step` leaves behind; and *remembered* fields, whose value
before the step is kept, so that the observation may hold a finite difference. At a reset they hold the present.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
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
except Exception as error:  # what a backend that is unknown, or not installed, makes of MuJoCo's import
    if not (asked := os.environ.get("MUJOCO_GL")):
        raise
    raise ImportError(
        "MUJOCO_GL: expected a backend that MuJoCo can load here (egl, osmesa, glfw) or off in this environment "
        f"variable, got {asked!r} ({error!s:.200}); install it, or leave it out: unset MUJOCO_GL"
    ) from error
from pathlib import Path

if mujoco.get_mju_user_warning() is None:
    # otherwise MuJoCo appends to MUJOCO_LOG.TXT in the working directory; `num_unstable` counts what happened
    mujoco.set_mju_user_warning(logging.getLogger(__name__).info)

ASSETS = Path(mujoco_env.__file__).parent / "assets"
OWN_ASSETS = Path(__file__).parent / "assets"
NEEDS_ACCELERATION = frozenset({"cfrc_ext", "cfrc_int", "cacc", "qfrc_actuator", "qacc"})
Fields = Mapping[str, Tensor]  # name of an MjData field -> (R, ...) float64, R lanes


@lru_cache(maxsize=16)
def load_model(
    xml: str | Path, timestep: float | None = None, *, contact_forces: bool = False
) -> mujoco.MjModel:
    """The compiled model of an XML text, an XML file (a `Path`), or one of gymnasium's own files (its name).

    Args:
        timestep: seconds, instead of the file's.
        contact_forces: adds a sensor that makes MuJoCo compute cfrc_ext, which it otherwise leaves at zero.

    Raises:
        RuntimeError: MuJoCo 4.0.0 with a sparse constraint Jacobian, which that version solves wrongly.
    """
    if isinstance(xml, str) and xml.lstrip().startswith("<"):
        spec = mujoco.MjSpec.from_string(xml)
    else:
        spec = mujoco.MjSpec.from_file(str(xml if isinstance(xml, Path) else ASSETS / xml))
    if timestep is not None:
        spec.option.timestep = timestep
    if contact_forces:
        spec.add_sensor(
            name="contact_forces",
            type=mujoco.mjtSensor.mjSENS_FRAMELINACC,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname=spec.bodies[1].name,
        )
    model = spec.compile()
    if mujoco.__version__ == "4.0.0" and mujoco.mj_isSparse(model):
        raise RuntimeError(
            f"{spec.modelname}: MuJoCo 4.0.0 gives wrong accelerations for models with a sparse Jacobian; "
            'install mujoco>=4.0.1 or mujoco<4, or set jacobian="dense" in the XML'
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
        observe: Callable[[Fields, Fields], Tensor],
        *,
        frame_skip: int,
        num_threads: int,
        dtype: torch.dtype,
        derived: tuple[str, ...] = (),
        remembered: tuple[str, ...] = (),
        control_scale: float = 1.0,
        lane_parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            observe: ``observe(now, before) -> (R, S)`` from the fields qpos, qvel and `derived` after the step,
                and the `remembered` ones before it.
            control_scale: control per unit of action; MuJoCo clamps the control.
            lane_parameters: model fields with a value for every lane, e.g. ``{"body_mass": (M * N, nbody)}``.
        """
        self.shape = shape
        self.dtype = dtype
        self.num_unstable = 0
        self.model = model
        self.start_states = start_states
        self._observe = observe
        self._frame_skip = frame_skip
        self._control_scale = control_scale
        self._stage = mujoco.mjtStage.mjSTAGE_NONE
        if derived:
            needs_acc = NEEDS_ACCELERATION.intersection(derived)
            self._stage = mujoco.mjtStage.mjSTAGE_ACC if needs_acc else mujoco.mjtStage.mjSTAGE_VEL
        num_lanes = shape[0] * shape[1]
        self._batch = Batch(model, nsim=num_lanes, nthread=num_threads)
        for name, value in (lane_parameters or {}).items():
            self._batch.expand(name)[:] = value.numpy()
        if lane_parameters:
            self._batch.set_const()
        self._batch.reset()
        # live views of the state rows; derived fields are refreshed by every call
        self._now = {name: torch.from_numpy(self._batch.bind(name)) for name in ("qpos", "qvel")}
        self._derived = {name: self._batch.bind(name) for name in derived}
        self._before = {name: self._fields()[name].clone() for name in remembered}
        self._ctrl = self._batch.bind("ctrl")
        self._warned = np.asarray(self._batch.warning).copy()
        self._unstable = torch.zeros(num_lanes, dtype=torch.bool)

    @property
    def qpos(self) -> Tensor:
        """Positions (M, N, nq) float64, a copy; what a renderer needs."""
        return self._now["qpos"].clone().view(*self.shape, -1)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        ids = lanes.flatten().nonzero()[:, 0]
        rows = ids.numpy().astype(np.int32)
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE)
        qpos, qvel = self._now["qpos"], self._now["qvel"]
        qpos[ids] = states[:, : qpos.shape[1]]
        qvel[ids] = states[:, qpos.shape[1] :]
        if self._derived:
            self._batch.forward(rows, stage=self._stage)
        now = self._fields()
        for name, before in self._before.items():
            before[ids] = now[name][ids]
        self._unstable[ids] = False
        self._warned = np.asarray(self._batch.warning).copy()  # a reset sets the lane's counters to zero
        return self._observations()

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. MuJoCo clamps the controls itself."""
        now = self._fields()
        for name, before in self._before.items():
            before.copy_(now[name])
        self._ctrl[:] = self._control_scale * act.detach().reshape(self._ctrl.shape).numpy()
        self._batch.step(nstep=self._frame_skip, stage=self._stage)
        warned = np.asarray(self._batch.warning)
        if not np.array_equal(warned, self._warned):
            fresh = torch.from_numpy((warned > self._warned).reshape(len(warned), -1).any(1))
            self.num_unstable += int((fresh & ~self._unstable).sum())
            self._unstable |= fresh
            self._warned = warned.copy()
        return self._observations()

    def _fields(self) -> dict[str, Tensor]:
        # MuJoCo's own array is read-only, which torch does not know; it is only read here
        return self._now | {name: torch.tensor(field) for name, field in self._derived.items()}

    def _observations(self) -> Tensor:
        obs = self._observe(self._fields(), self._before).to(self.dtype)
        if bool(self._unstable.any()):
            obs[self._unstable] = torch.nan
        return obs.view(*self.shape, -1)
