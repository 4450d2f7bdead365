"""VectorSimulator: lanes of an environment that steps many at once by itself, a `gymnasium.vector.VectorEnv`.

It must be able to do what a lane needs: ``reset(seed=[...], options={"reset_mask": (n,) bool})`` resets the lanes of
the mask, each by its own seed, and no other; its metadata say ``AutoresetMode.DISABLED``; it steps on after its own
terminations. An environment that is told its task finds psi (n, k) in the options of each reset. Those that gymnasium
brings (1.4: two carts and a pendulum) cannot: one seed is for all lanes, and lanes reset themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from task_families.gymnasium_lanes.env_pool import EnvPool
from task_families.gymnasium_lanes.lanes import (
    GymnasiumSimulator,
    HasEnvironments,
    require_reset,
    start_seeds,
)
from task_families.gymnasium_lanes.spaces import actions_of, flat_rows
from task_families.simulator import ActionBounds, Simulator


class HasVectors(HasEnvironments, Protocol):
    """What these lanes ask of a family; see `task_families.gymnasium_simulator.GymnasiumFamily`."""

    act_size: int
    make_many: Callable[[int], VectorEnv] | None

    @property
    def action_bounds(self) -> ActionBounds:
        """See `TaskFamily.action_bounds`."""

    def vector_pool(self, num: int) -> EnvPool:
        """The vector environments of so many lanes of this family, in this process."""


class VectorSimulator:
    """(M, N) lanes of one vector environment. A state is the seed of a lane's reset.

    An environment that raises is closed, and all lanes must be reset. Otherwise it goes back to the family when
    nothing refers to the simulator any more, or by `close`.
    """

    def __init__(
        self, family: HasVectors, shape: tuple[int, int], dtype: torch.dtype, psi: Tensor | None
    ) -> None:
        """
        Args:
            psi: (M, k), for environments that are told their task.
        """
        self.shape = shape
        num_lanes = shape[0] * shape[1]
        assert family.make_many is not None
        self._make = partial(family.make_many, num_lanes)
        self._family, self._pool = family, family.vector_pool(num_lanes)
        self._lent: list[VectorEnv] = []
        self._ready = np.zeros(num_lanes, dtype=bool)
        told = None if psi is None else psi.detach().double().repeat_interleave(shape[1], dim=0).numpy()
        self._options: dict[str, Any] = {} if told is None else {"psi": told}
        self._obs = torch.zeros(*shape, family.obs_size, dtype=dtype)
        weakref.finalize(self, _give_back, self._pool, self._lent).atexit = False

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n seeds (n, 1)."""
        return start_seeds(n, generator)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        asked = lanes.flatten().numpy()
        seeds = np.zeros(len(asked), dtype=np.int64)
        seeds[asked] = states[:, 0].numpy()
        mask = asked
        if not self._is_open():
            self._ready[:] = False
            self._lent[:] = [self._pool.take(self._make)]
            mask = np.ones_like(asked)  # those that are not asked for are reset too, and stay idle
        if not mask.any():
            return self._obs
        with self._closing_what_raises() as env:
            options = self._options | {"reset_mask": mask.copy()}
            seen = flat_rows(env, env.reset(seed=seeds.tolist(), options=options)[0])
        self._obs = self._obs.clone()
        self._obs.view(len(asked), -1)[asked] = torch.from_numpy(seen[asked]).to(self._obs.dtype)
        self._ready |= asked
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. Actions are clamped to the environment's box.

        Raises:
            ValueError: a lane was not reset since the simulator was made, its environment raised, or all were closed.
        """
        require_reset((~(self._ready & self._is_open())).nonzero()[0].tolist())
        rows = act.detach().reshape(len(self._ready), -1).numpy()
        with self._closing_what_raises() as env:
            seen = flat_rows(env, env.step(actions_of(env.single_action_space, rows))[0])
        self._obs = torch.from_numpy(seen.copy()).to(self._obs.dtype).view(self._obs.shape)
        return self._obs

    def close(self) -> None:
        """Give the environment back to the family; a reset takes another."""
        _give_back(self._pool, self._lent)

    def _is_open(self) -> bool:
        return bool(self._lent) and self._pool.has_open(self._lent[0])

    @contextmanager
    def _closing_what_raises(self) -> Iterator[VectorEnv]:
        try:
            yield self._lent[0]
        except BaseException:
            self._pool.discard(self._lent.pop())
            raise


def _give_back(pool: EnvPool, lent: list[VectorEnv]) -> None:
    pool.give_back(lent)
    lent.clear()


def check_vectors(family: HasVectors, psi: Tensor | None) -> None:
    """Refuse vector environments whose lanes are not those of `make_one`, to rounding, under the same seeds.

    Args:
        psi: (1, k), for environments that are told their task.

    Raises:
        ValueError: says what differs.
    """
    assert family.make_many is not None
    many, one = (
        family.vector_pool(3).take(partial(family.make_many, 3)),
        family.env_pool.take(family.make_one),
    )
    mode = getattr(many.metadata.get("autoreset_mode"), "name", None)  # gymnasium 1.0 has no such modes
    try:
        for name, expected, got in (
            ("num_envs", 3, many.num_envs),
            ("metadata: autoreset_mode", "DISABLED", mode),
            ("single_observation_space", one.observation_space, many.single_observation_space),
            ("single_action_space", one.action_space, many.single_action_space),
        ):
            if got != expected:
                raise ValueError(f"make_many: {name}: expected {expected}, got {got}; {_REMEDY}")
    except BaseException:
        family.vector_pool(3).discard(many)
        raise
    finally:
        family.env_pool.give_back([one])
    family.vector_pool(3).give_back([many])
    for (when, seen), (_, expected) in zip(
        _script(family, VectorSimulator(family, (1, 3), torch.float64, psi)),
        _script(family, GymnasiumSimulator(family, (1, 3), torch.float64, psi)),
        strict=True,
    ):
        if not torch.allclose(seen, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"make_many: expected the lanes of make_one, each reset by its own seed and alone; {when} they "
                f"observe {seen[0].tolist()}, not {expected[0].tolist()}; {_REMEDY}"
            )


_REMEDY = "mend it, or leave make_many out"


def _script(family: HasVectors, simulator: Simulator) -> Iterator[tuple[str, Tensor]]:
    """What three lanes observe; two have the same seed, and one is then reset."""
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    act = family.action_bounds.from_unit(torch.tensor([0.5, -0.5, 0.5], dtype=torch.float64)[None, :, None])
    act = act.expand(1, 3, family.act_size)
    yield "after a reset", simulator.reset(everywhere, torch.tensor([[5.0], [6.0], [5.0]]))
    yield "after a step", simulator.step(act)
    one = torch.tensor([[False, True, False]])
    yield "after a reset of the second", simulator.reset(one, torch.tensor([[5.0]]))
    yield "after a step that follows", simulator.step(act)
