"""GymnasiumSimulator: lanes that are stepped one after another, in a Python loop; and what all lanes share."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

import gymnasium
import torch
from torch import Tensor

from task_families.gymnasium_lanes.env_pool import EnvPool
from task_families.gymnasium_lanes.spaces import action_of, flat


class HasEnvironments(Protocol):
    """What lanes ask of a family; see `task_families.gymnasium_simulator.GymnasiumFamily`."""

    name: ClassVar[str]
    obs_size: int

    @property
    def env_pool(self) -> EnvPool:
        """The environments of this family, in this process."""

    def make_one(self) -> gymnasium.Env:
        """A new environment without a time limit."""

    def tell_psi(self, env: gymnasium.Env, psi: Tensor) -> None:
        """Make an environment that of a task (k,), before its reset."""


def start_seeds(n: int, generator: torch.Generator) -> Tensor:
    """n states (n, 1): the seeds of the resets."""
    return torch.randint(2**31, (n, 1), generator=generator).double()


def require_reset(idle: Sequence[int]) -> None:
    """Refuse a step while some lanes are idle.

    Raises:
        ValueError: names the first of them.
    """
    if idle:
        raise ValueError(
            f"step: expected that every lane was reset before, got {list(idle[:5])} that were not"
        )


class GymnasiumSimulator:
    """(M, N) lanes, one environment of the family each, from the lane's first reset on.

    A state is the seed of the environment's reset. An environment that raises is closed; its lane gets another at its
    next reset. The others go back to the family when nothing refers to the simulator any more, or by `close`.
    """

    def __init__(
        self,
        family: HasEnvironments,
        shape: tuple[int, int],
        dtype: torch.dtype,
        psi: Tensor | None = None,
        *,
        first_lane: int = 0,
    ) -> None:
        """
        Args:
            psi: (M, k), for environments that are told their task.
            first_lane: what messages call the first lane.
        """
        self.shape, self._psi = shape, psi
        self._family, self._pool, self._first_lane = family, family.env_pool, first_lane
        self._lanes: dict[int, gymnasium.Env] = {}
        self._obs = torch.zeros(*shape, family.obs_size, dtype=dtype)
        weakref.finalize(
            self, _give_back, self._pool, self._lanes
        ).atexit = False  # the pool closes them then

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n seeds (n, 1)."""
        return start_seeds(n, generator)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`. What an environment raises has a note of its lane, its task and itself."""
        self._obs = self._obs.clone()
        rows = self._obs.view(-1, self._obs.shape[-1])
        for i, seed in zip(lanes.flatten().nonzero()[:, 0].tolist(), states[:, 0].tolist(), strict=True):
            with self._closing_what_raises(i):
                if not self.is_ready(i):
                    self._lanes[i] = self._pool.take(self._family.make_one)
                env = self._lanes[i]
                if self._psi is not None:
                    self._family.tell_psi(env, self._psi[i // self.shape[1]])
                rows[i] = flat(env.observation_space, env.reset(seed=int(seed))[0])
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. Actions are clamped to the environment's box.

        Raises:
            ValueError: a lane was not reset since the simulator was made, its environment raised, or all were closed.
        """
        num_lanes = self.shape[0] * self.shape[1]
        require_reset([i for i in range(num_lanes) if not self.is_ready(i)])
        actions = act.detach().reshape(num_lanes, -1).numpy()
        seen = []
        for i, env in enumerate([self._lanes[i] for i in range(num_lanes)]):
            with self._closing_what_raises(i):
                action = action_of(env.action_space, actions[i])
                seen.append(flat(env.observation_space, env.step(action)[0]))
        self._obs = torch.stack(seen).to(self._obs.dtype).view(self._obs.shape)
        return self._obs

    def close(self) -> None:
        """Give the environments back to the family; a reset takes others."""
        _give_back(self._pool, self._lanes)

    def is_ready(self, lane: int) -> bool:
        """Whether a lane was reset, and its environment is open."""
        return lane in self._lanes and self._pool.has_open(self._lanes[lane])

    @contextmanager
    def _closing_what_raises(self, lane: int) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            env = self._lanes.pop(lane, None)
            told = "" if self._psi is None else f", psi {self._psi[lane // self.shape[1]].tolist()}"
            error.add_note(f"{self._family.name}, lane {self._first_lane + lane}{told}, environment {env}")
            if env is not None:
                self._pool.discard(env)
            raise


def _give_back(pool: EnvPool, lanes: dict[int, gymnasium.Env]) -> None:
    pool.give_back(lanes.values())
    lanes.clear()
