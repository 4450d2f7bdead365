"""What simulates M x N lanes of a family, where it clamps actions, and what one lane needs to be an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from task_families.task_space import TaskSpace


def spawn_generators(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """n independent generators, seeded from one: a task's noise then does not depend on its neighbours."""
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]


Limit = float | Sequence[float] | Tensor | None


@dataclass(frozen=True, eq=False)
class ActionBounds:
    """The simulator clamps action i to [low_i, high_i]; an infinite end is not clamped.

        unit action = (action - center) / scale,     center = (low + high) / 2,   scale = (high - low) / 2

    per coordinate; one that is not limited on both sides stays in its own unit (center 0, scale 1). Simulators,
    rewards, rollouts, environments and policies from elsewhere speak the family's units; policies, exploration noise,
    learned models and replays work in unit actions: results do not depend on the unit of a family's actions.
    """

    low: Tensor  # (A,) float64
    high: Tensor  # (A,) float64

    @classmethod
    def make(cls, act_size: int, low: Limit, high: Limit) -> ActionBounds:
        """Bounds of actions with A numbers; None: no limit, one number: of every coordinate.

        Raises:
            ValueError: another number of them, nan, or a low that is not below its high.
        """
        ends = [
            cls._end(act_size, "act_low", low, -torch.inf),
            cls._end(act_size, "act_high", high, torch.inf),
        ]
        if not bool((ends[0] < ends[1]).all()):
            raise ValueError(
                f"act_low, act_high: expected every low below its high, got {ends[0].tolist()} and {ends[1].tolist()}"
            )
        return cls(*ends)

    @staticmethod
    def _end(act_size: int, name: str, limit: Limit, otherwise: float) -> Tensor:
        end = torch.as_tensor(otherwise if limit is None else limit, dtype=torch.float64)
        if end.shape not in ((), (act_size,)):
            raise ValueError(
                f"{name}: expected a number, or one for each of the {act_size} coordinates of an action, got {limit}"
            )
        return end.expand(act_size).clone()

    @cached_property
    def _is_limited(self) -> Tensor:
        """(A,) bool, on both sides."""
        return self.low.isfinite() & self.high.isfinite()

    @cached_property
    def center(self) -> Tensor:
        """(A,) float64; see the class."""
        return torch.where(self._is_limited, (self.low + self.high) / 2, 0.0)

    @cached_property
    def scale(self) -> Tensor:
        """(A,) float64, above 0."""
        return torch.where(self._is_limited, (self.high - self.low) / 2, 1.0)

    @cached_property
    def are_finite(self) -> bool:
        """Whether every coordinate is limited on both sides."""
        return bool(self._is_limited.all())

    @cached_property
    def are_unit(self) -> bool:
        """Whether unit actions are the family's actions."""
        return bool((self.center == 0).all() & (self.scale == 1).all())

    def to_unit(self, act: Tensor) -> Tensor:
        """Actions (..., A) -> unit actions."""
        return act if self.are_unit else (act - self.center.to(act)) / self.scale.to(act)

    def from_unit(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`."""
        return unit if self.are_unit else torch.addcmul(self.center.to(unit), self.scale.to(unit), unit)

    @cached_property
    def _moved(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]]:
        """What `_like` has moved before."""
        return {}

    def _like(self, like: Tensor) -> tuple[Tensor, ...]:
        """low, high, center and scale of like's dtype and on its device, moved there once."""
        kind = like.dtype, like.device
        if kind not in self._moved:
            self._moved[kind] = tuple(x.to(like) for x in (self.low, self.high, self.center, self.scale))
        return self._moved[kind]

    def clamped_to_unit(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """Actions (..., A) -> clamped unit actions, with like's dtype and device looked up once, for many calls."""
        are_free = bool((self.low.isinf() & self.high.isinf()).all())
        if self.are_unit and (self.are_finite or are_free):  # nothing to look up: a GPU is sent nothing
            return lambda act: act.clamp(-1.0, 1.0) if self.are_finite else act
        low, high, center, scale = self._like(like)
        low, high = (low - center) / scale, (high - center) / scale

        def clamp(unit: Tensor) -> Tensor:
            if self.are_finite:
                return unit.clamp(-1.0, 1.0)
            return unit if are_free else unit.clamp(low, high)

        return clamp if self.are_unit else lambda act: clamp((act - center) / scale)


class Simulator(Protocol):
    """M x N lanes that are stepped together: the real simulator and the learned model look alike.

    A *state* is whatever the simulator needs to start an episode from: (qpos, qvel) for MuJoCo, the
    observation for a learned model.
    """

    shape: tuple[int, int]  # (M, N)

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n states (n, state_size) drawn from the initial distribution p_0."""

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """Put the lanes (M, N) bool into states (number of lanes, state_size); all observations (M, N, S). A learned
        model also takes a state for each lane, (M, N, S), of which it uses those of the lanes."""

    def step(self, act: Tensor) -> Tensor:
        """Apply act (M, N, A) in every lane; the next observations (M, N, S)."""


class Simulated(Protocol):
    """What `task_families.gym_env.TaskEnv` asks of a family; see `TaskFamily`."""

    name: ClassVar[str]
    picks_largest: ClassVar[bool]
    psi_changes_dynamics: ClassVar[bool]
    box: TaskSpace
    dt: float | None
    horizon: int
    obs_size: int
    act_size: int

    @property
    def has_body(self) -> bool:
        """See `TaskFamily.has_body`."""

    @property
    def action_bounds(self) -> ActionBounds:
        """See `TaskFamily.action_bounds`."""

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`."""

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See `TaskFamily.reward`."""

    def terminated(self, next_obs: Tensor) -> Tensor:
        """See `TaskFamily.terminated`."""
