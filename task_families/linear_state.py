"""Cheetah-Highdim (AdMRL section 5): a linear reward on the 18 normalised state coordinates of the half-cheetah.

    released:  r_psi(s, a, s') = sum_i psi_i (s'_i - mean_i) / std_i - 0.05 |clip(a)|^2
    paper:     r_psi(s, a, s') = sum_i psi_i (s'_i - mean_i) / std_i

Differs from the paper:
1. The paper prints no control cost; the released code has one, of the action clipped to [-1, 1].
2. The paper normalises by the states of a random policy: variants ``paper`` and ``computed`` (the released reward
   with these statistics) use ``COMPUTED``, which `random_policy_statistics` recomputes from its seed. The released
   code ships other statistics (``PUBLISHED``; variant ``released``): their standard deviations are 1.1 to 2 times
   larger, so their data was not that of such a policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from task_families.family import TaskBox
from task_families.mujoco_family import MujocoFamily
from task_families.mujoco_simulator import OWN_ASSETS, Fields
from task_families.rollout import collect

NAMES = (
    *("x", "z", "pitch", "back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot"),
    *("x velocity", "z velocity", "pitch velocity", "back thigh velocity", "back shin velocity"),
    *("back foot velocity", "front thigh velocity", "front shin velocity", "front foot velocity"),
)


@dataclass(frozen=True)
class StateStatistics:
    """Mean and standard deviation of the states of some data, in m, rad, m/s and rad/s."""

    mean: tuple[float, ...]  # (18,)
    std: tuple[float, ...]  # (18,)
    origin: str
    seed: int | None = None


# fmt: off
PUBLISHED = StateStatistics(
    mean=(-0.2032, -0.1054, 0.0898, 0.0143, 0.0019, 0.0132, 0.0708, -0.1491, -0.0426,
          -0.2398, -0.0426, 0.0979, -0.1000, -0.0930, 0.0415, 0.0365, -0.0661, -0.1578),
    std=(0.2466, 0.0705, 0.1305, 0.2103, 0.2675, 0.2240, 0.2896, 0.2673, 0.2615,
         0.5503, 0.6953, 1.2163, 4.1919, 5.5100, 5.2831, 5.2036, 5.0158, 4.9579),
    origin="released AdMRL code",
)
COMPUTED = StateStatistics(
    mean=(-0.1334, -0.1097, 0.0477, 0.0131, 0.0510, -0.0199, -0.0253, -0.1048, -0.0992,
          -0.1419, -0.0577, 0.0212, 0.0178, 0.0144, -0.0177, -0.0090, -0.0426, -0.0452),
    std=(0.1913, 0.0471, 0.0643, 0.1463, 0.1607, 0.1590, 0.1857, 0.1683, 0.1848,
         0.4617, 0.5324, 1.0618, 3.5860, 4.5953, 4.6863, 3.9751, 4.0069, 3.8825),
    origin="random policy clip(N(0, 1)), 100 episodes of 200 steps",
    seed=0,
)
# fmt: on


class CheetahHighdim(MujocoFamily):
    """Gymnasium's half-cheetah; psi (18) = weights of the normalised state coordinates, without unit.

    Observation (18): qpos (9), the global x included, and qvel (9), unclipped. Action (6): torques in [-1, 1]
    times the gear. Never terminates.
    """

    name = "cheetah_highdim"
    source = "AdMRL (Lin et al. 2021)"
    formula = "sum_i psi_i (s'_i - mean_i) / std_i - 0.05 |clip(a)|^2"
    variants = ("released", "computed", "paper")
    obs_size = 18
    act_size = 6
    xml = OWN_ASSETS / "half_cheetah.xml"
    control_cost = 0.05

    def __init__(self, variant: str = "released") -> None:
        super().__init__(variant)
        ones = torch.ones(18)
        self.box = TaskBox(-ones, ones, names=tuple(f"weight of {name}" for name in NAMES), units=("1",) * 18)
        self.first_psi = 0.3 * ones
        self.statistics = PUBLISHED if variant == "released" else COMPUTED
        self._mean = torch.tensor(self.statistics.mean, dtype=torch.float64)
        self._std = torch.tensor(self.statistics.std, dtype=torch.float64)
        self._control_cost = 0.0 if variant == "paper" else self.control_cost

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See the head of this page."""
        state = (next_obs - self._mean.to(next_obs)) / self._std.to(next_obs)
        return (psi * state).sum(-1) - self._control_cost * act.clamp(-1, 1).square().sum(-1)

    def observe(self, now: Fields, before: Fields) -> Tensor:
        """See the class."""
        return torch.cat([now["qpos"], now["qvel"]], dim=-1)


def random_policy_statistics(seed: int, num_episodes: int = 100) -> StateStatistics:
    """Mean and standard deviation of all states s' under actions clip(N(0, 1)); reproduces ``COMPUTED``."""
    family = CheetahHighdim()
    generator = torch.Generator().manual_seed(seed)
    shape = (1, num_episodes)
    noise = torch.randn(
        family.horizon, *shape, family.act_size, generator=generator, dtype=torch.float64
    ).clamp(-1, 1)
    rollout = collect(
        family.make_simulator(shape, dtype=torch.float64),
        family,
        lambda t, obs: (noise[t], noise.new_zeros(shape)),
        family.horizon,
        [generator],
    )
    states = rollout.next_obs.flatten(0, -2)
    return StateStatistics(
        mean=tuple(round(x, 4) for x in states.mean(0).tolist()),
        std=tuple(round(x, 4) for x in states.std(0, correction=0).tolist()),
        origin=f"random policy clip(N(0, 1)), {num_episodes} episodes of {family.horizon} steps",
        seed=seed,
    )
