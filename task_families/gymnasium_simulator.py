"""GymnasiumFamily: a task family on any gymnasium environment whose dynamics its seed determines.

Every lane is an environment of its own, stepped in a Python loop: slower than a batched simulator, but everything
else of this package then applies. The environment's own rewards and terminations are not used. Boxes of any shape
are flattened in C order, as `gymnasium.spaces.utils.flatten` does: an observation of shape (3, 2) is (6,) here.
"""

from __future__ import annotations

import os
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from task_families.family import TaskFamily
from task_families.simulator import Simulator


class EnvPool:
    """Environments that are made once, lent to one simulator after another, and closed together.

    All are closed by `close`, when the pool is collected, and when the interpreter ends. Its containers are changed
    by atomic operations alone, so that threads and finalizers may take and give back at any time.
    """

    def __init__(self) -> None:
        self.process = os.getpid()  # a fork has another; the environments stay those of its parent
        self._open: dict[
            int, gymnasium.Env
        ] = {}  # by id: all that were made and not closed, lent ones included
        self._free: deque[gymnasium.Env] = deque()
        weakref.finalize(self, _close_all, self._open, self.process)

    def take(self, make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
        """A free environment, or a new one; reset it, whatever it was used for before.

        Raises:
            ValueError: what was made is not new.
        """
        try:
            return self._free.pop()
        except IndexError:
            env = make()
        if self.has_open(env):
            raise ValueError(
                f"make_one: expected a new environment at every call, got {env} again; make it in there"
            )
        self._open[id(env)] = env
        return env

    def give_back(self, envs: Iterable[gymnasium.Env]) -> None:
        """Whoever took them needs them no more."""
        self._free.extend([env for env in envs if self.has_open(env)])

    def discard(self, env: gymnasium.Env) -> None:
        """Close a lent environment that is not to be used again."""
        if self._open.pop(id(env), None) is not None:
            env.close()

    def has_open(self, env: gymnasium.Env) -> bool:
        """Whether the environment is of this pool and was not closed."""
        return self._open.get(id(env)) is env

    def close(self) -> None:
        """Close all, lent ones included."""
        self._free.clear()
        _close_all(self._open, self.process)


def _close_all(envs: dict[int, gymnasium.Env], process: int) -> None:
    if os.getpid() != process:
        return
    with ExitStack() as stack:  # closes the others too, if one fails
        while envs:
            stack.callback(envs.popitem()[1].close)


class GymnasiumSimulator:
    """(M, N) lanes, one environment of the family each, from the lane's first reset on.

    A state is the seed of the environment's reset. An environment that raises is closed; its lane gets another at its
    next reset. The others go back to the family when nothing refers to the simulator any more, or by `close`.
    """

    def __init__(self, family: GymnasiumFamily, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape = shape
        self._family, self._pool = family, family.env_pool
        self._lanes: dict[int, gymnasium.Env] = {}
        self._obs = torch.zeros(*shape, family.obs_size, dtype=dtype)
        weakref.finalize(
            self, _give_back, self._pool, self._lanes
        ).atexit = False  # the pool closes them then

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n seeds (n, 1)."""
        return torch.randint(2**31, (n, 1), generator=generator).double()

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`."""
        self._obs = self._obs.clone()
        rows = self._obs.view(-1, self._obs.shape[-1])
        for i, seed in zip(lanes.flatten().nonzero()[:, 0].tolist(), states[:, 0].tolist(), strict=True):
            if not self._is_ready(i):
                self._lanes[i] = self._pool.take(self._family.make_one)
            with self._closing_what_raises(i) as env:
                rows[i] = flat(env.reset(seed=int(seed))[0])
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. Actions are clamped to the environment's box.

        Raises:
            ValueError: a lane was not reset since the simulator was made, its environment raised, or all were closed.
        """
        num_lanes = self.shape[0] * self.shape[1]
        idle = [i for i in range(num_lanes) if not self._is_ready(i)]
        if idle:
            raise ValueError(f"step: expected that every lane was reset before, got {idle[:5]} that were not")
        actions = act.detach().reshape(num_lanes, -1).numpy()
        seen = []
        for i in range(num_lanes):
            with self._closing_what_raises(i) as env:
                box = env.action_space
                clamped = np.clip(actions[i].reshape(box.shape), box.low, box.high).astype(box.dtype)
                seen.append(flat(env.step(clamped)[0]))
        self._obs = torch.stack(seen).to(self._obs.dtype).view(self._obs.shape)
        return self._obs

    def close(self) -> None:
        """Give the environments back to the family; a reset takes others."""
        _give_back(self._pool, self._lanes)

    def _is_ready(self, lane: int) -> bool:
        return lane in self._lanes and self._pool.has_open(self._lanes[lane])

    @contextmanager
    def _closing_what_raises(self, lane: int) -> Iterator[gymnasium.Env]:
        env = self._lanes[lane]
        try:
            yield env
        except BaseException:
            del self._lanes[lane]
            self._pool.discard(env)
            raise


def _give_back(pool: EnvPool, lanes: dict[int, gymnasium.Env]) -> None:
    pool.give_back(lanes.values())
    lanes.clear()


def flat(obs: Any) -> Tensor:
    """An observation of a box of any shape -> (S,), in the order of `gymnasium.spaces.utils.flatten`."""
    return torch.as_tensor(np.asarray(obs).reshape(-1))


class GymnasiumFamily(TaskFamily):
    """A subclass sets the sizes, the box, the reward and the limits of actions, and makes one environment.

    The family owns its environments: at most as many as lanes were in use at once, each used again for other tasks
    and simulators. They are closed by `close`, at the end of a ``with`` block, when the family is collected, and when
    the interpreter ends; a closed family makes new ones if it is used again. Copies, pickles and other processes have
    environments of their own.
    """

    _has_checked_spaces = False

    @abstractmethod
    def make_one(self) -> gymnasium.Env:
        """A new environment with box spaces and without a time limit.

        It is used for many episodes: everything that lasts beyond ``reset(seed=...)`` would show in them.
        """

    @property
    def env_pool(self) -> EnvPool:
        """The environments of this family, in this process."""
        pool = self.__dict__.get("_env_pool")
        if pool is None or pool.process != os.getpid():
            pool = self._env_pool = EnvPool()
        return pool

    def close(self) -> None:
        """Close all environments, those of simulators that are still in use, too."""
        self.env_pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_env_pool"}

    def reset(self, n: int, generator: torch.Generator) -> Tensor:
        """See `TaskFamily.reset`; one environment is reset n times."""
        simulator = GymnasiumSimulator(self._checked(), (1, 1), torch.float64)
        lane = torch.ones(1, 1, dtype=torch.bool)
        states = simulator.start_states(n, generator)
        return torch.cat([simulator.reset(lane, state)[0] for state in states[:, None]])

    def make_simulator(
        self,
        shape: tuple[int, int],
        *,
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        psi: Tensor | None = None,
    ) -> Simulator:
        """See `TaskFamily.make_simulator`; one thread, whatever num_threads says.

        Raises:
            ValueError: the environment's spaces are not boxes, or not those that the family declares; see
                `check_spaces`.
        """
        return GymnasiumSimulator(self._checked(), shape, dtype)

    def _checked(self) -> Self:
        """This family; the spaces of its environments are looked at once."""
        if not self._has_checked_spaces:
            env = self.env_pool.take(self.make_one)
            try:
                check_spaces(self, env)
            except BaseException:
                self.env_pool.discard(env)
                raise
            self.env_pool.give_back([env])
            self._has_checked_spaces = True
        return self


def check_spaces(family: TaskFamily, env: gymnasium.Env) -> None:
    """Refuse an environment whose spaces are not boxes, or not those that the family declares.

    Raises:
        ValueError: names the space, what was expected, and the wrapper that helps.
    """
    seen, acted = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box):
        raise ValueError(
            f"observation_space: expected a Box, got {seen}; wrap the environment of make_one in "
            "gymnasium.wrappers.FlattenObservation, or in TransformObservation for what that cannot flatten"
        )
    if not isinstance(acted, spaces.Box) or not np.issubdtype(acted.dtype, np.floating):
        raise ValueError(
            f"action_space: expected a Box of real numbers, got {acted}; wrap the environment of make_one in "
            f"{_action_wrapper(acted)}"
        )
    for name, size, space in (("obs_size", family.obs_size, seen), ("act_size", family.act_size, acted)):
        num = int(np.prod(space.shape))
        if num != size:
            raise ValueError(
                f"{name}: expected {num}, the numbers in the environment's {space}, got {size}; set {name} = {num}"
            )
    bounds, low, high = family.action_bounds, flat(acted.low).double(), flat(acted.high).double()
    if not (_agree(bounds.low, low) and _agree(bounds.high, high)):
        raise ValueError(
            f"act_low, act_high: expected the limits of the environment's action space, {_limits(low, high)}, "
            f"got {_limits(bounds.low, bounds.high)}; set act_limit, or act_low and act_high (None: no limit), or "
            "change the environment's with gymnasium.wrappers.RescaleAction"
        )


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-6, atol=0.0)  # theirs may be rounded to float32


def _limits(low: Tensor, high: Tensor) -> str:
    return f"{low.tolist()} to {high.tolist()}"


def _action_wrapper(space: spaces.Space) -> str:
    if isinstance(space, spaces.Discrete):
        return (
            "gymnasium.wrappers.TransformAction(env, lambda a: "
            f"{space.start} + int(a.argmax()), gymnasium.spaces.Box(-1, 1, ({space.n},))), where the largest of "
            f"{space.n} numbers chooses, and set act_size = {space.n}, act_limit = 1.0"
        )
    return "gymnasium.wrappers.TransformAction with a function that makes its actions of a Box's"
