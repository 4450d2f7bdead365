"""Walker-2D-Params and Hopper-2D-Params (Rothfuss et al. 2019, PEARL, CRL): the dynamics differ by task.

    r(s, a, s') = D x / dt + 1 - 0.001 |a|^2        a clipped to [-1, 1], D x = x(s') - x(s), for every psi

psi holds one exponent in [-3, 3] for every element of four model fields, which multiplies it:

    body_mass (bodies), body_inertia (bodies x 3), geom_friction (geoms x 3):  1.5 ^ psi   (0.30 to 3.4 times)
    dof_damping (degrees of freedom):                                          1.3 ^ psi   (0.46 to 2.2 times)

65 numbers for the walker, 41 for the hopper. One batched call holds another model in every row.

Differs from the paper:
1. psi is the exponent, uniform in the box as the papers draw it; the papers call the multiplier the task.
2. A reward must be a function of (psi, s, a, s'), but the observation hides x. It has one more number: the mean
   forward velocity over the last action in m/s.
3. Own XML with global coordinates, which MuJoCo refuses since 2.3.4; this is gymnasium's walker2d.xml (same masses,
   left foot friction 1.9 and right 0.9) with the released time step of 0.004 s. frame_skip is 4 as released, where
   the constructor ignores its argument.
4. Constants that MuJoCo derives from masses (`mj_setConst`) follow the multipliers; the released code kept those of
   the nominal body. Inertias may violate the triangle inequality, as released.
"""

from __future__ import annotations

from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from task_families.family import TaskBox
from task_families.mujoco_family import VELOCITY_LIMIT, MujocoFamily
from task_families.mujoco_simulator import Fields
from task_families.simulator import Simulator

BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
EXPONENT_LIMIT = 3.0


class _ParametersFamily(MujocoFamily):
    """Observation: qpos without x, qvel clipped to +-10, mean forward velocity over the last action (1)."""

    source = "PEARL (Rakelly et al. 2019), CRL"
    formula = "v_x + 1 - 0.001 |a|^2, physics by psi"
    psi_changes_dynamics = True
    frame_skip = 4
    position_noise = 0.005
    velocity_noise = 0.005
    velocity_noise_kind = "uniform"
    remembered = ("qpos",)
    num_published: ClassVar[tuple[int, int]] = (40, 10)

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        # copies: the bindings return views, and multipliers written through those would compound
        self._nominal = {name: torch.from_numpy(getattr(self.model, name).copy()) for name in BASES}
        names = [f"{name}[{i}]" for name, value in self._nominal.items() for i in range(value.numel())]
        limit = torch.full((len(names),), EXPONENT_LIMIT)
        units = tuple(f"log_{BASES[name.split('[')[0]]}" for name in names)
        self.box = TaskBox(-limit, limit, tuple(names), units)
        self.first_psi = torch.zeros(len(names))

    def parameters(self, psi: Tensor) -> dict[str, Tensor]:
        """The model fields of tasks psi (R, k): name -> (R, ...) float64, in the units of the XML."""
        sizes = [value.numel() for value in self._nominal.values()]
        parts = psi.double().split(sizes, dim=-1)
        return {
            name: value * (BASES[name] ** part).view(-1, *value.shape)
            for (name, value), part in zip(self._nominal.items(), parts, strict=True)
        }

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""
        lanes = self.require_psi(psi, shape[0]).repeat_interleave(shape[1], dim=0)  # (M * N, k)
        return self._simulator(shape, num_threads, dtype, self.parameters(lanes))

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page; psi has no part in it."""
        return next_obs[..., -1] + 1.0 - 1e-3 * act.clamp(-1, 1).square().sum(-1)

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        velocity = (now["qpos"][:, :1] - before["qpos"][:, :1]) / self.dt
        clipped = now["qvel"].clamp(-VELOCITY_LIMIT, VELOCITY_LIMIT)
        return torch.cat([now["qpos"][:, 1:], clipped, velocity], dim=-1)

    def published_tasks(self, seed: int) -> tuple[Tensor, Tensor]:
        """40 and 10 tasks, uniform in the box."""
        psi = self.box.fixed(sum(self.num_published), seed)
        return psi[: self.num_published[0]], psi[self.num_published[0] :]


class Walker2DParams(_ParametersFamily):
    """The walker, 65 multipliers. Terminates when the height leaves (0.8, 2) m or the pitch (-1, 1) rad."""

    name = "walker2d_params"
    obs_size = 18
    act_size = 6
    xml = "walker2d.xml"
    timestep = 0.004
    healthy_range: ClassVar = {0: (0.8, 2.0), 1: (-1.0, 1.0)}


class Hopper2DParams(_ParametersFamily):
    """The hopper, 41 multipliers. Terminates at height <= 0.7 m, |pitch| >= 0.2 rad, or a state beyond 100."""

    name = "hopper2d_params"
    obs_size = 12
    act_size = 3
    xml = "hopper.xml"
    healthy_range: ClassVar = {0: (0.7, inf), 1: (-0.2, 0.2), -1: (-inf, inf)}
    healthy_state_range = (-100.0, 100.0)
