"""GymnasiumFamily: a task family on any gymnasium environment whose dynamics its seed determines.

Every lane is an environment of its own, stepped in a Python loop: slower than a batched simulator, but everything
else of this package then applies. The environment's own rewards and terminations are not used. Observations are
flattened by `gymnasium.spaces.utils.flatten`: a box of shape (3, 2) is (6,) here, in C order, a Discrete(4) is one of
four, a Dict its parts in its order. Of an action of a Discrete(n), n numbers, the largest chooses.
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

from task_families.family import TaskFamily, numpy_reward
from task_families.simulator import Simulator
from task_families.task_space import TaskSpace


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

    def __init__(
        self, family: GymnasiumFamily, shape: tuple[int, int], dtype: torch.dtype, psi: Tensor | None = None
    ) -> None:
        """
        Args:
            psi: (M, k), for environments that are told their task.
        """
        self.shape, self._psi = shape, psi
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
        idle = [i for i in range(num_lanes) if not self._is_ready(i)]
        if idle:
            raise ValueError(f"step: expected that every lane was reset before, got {idle[:5]} that were not")
        actions = act.detach().reshape(num_lanes, -1).numpy()
        seen = []
        for i in range(num_lanes):
            with self._closing_what_raises(i) as env:
                action = action_of(env.action_space, actions[i])
                seen.append(flat(env.observation_space, env.step(action)[0]))
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


def flat(space: spaces.Space, obs: Any) -> Tensor:
    """An observation of any space that `gymnasium.spaces.utils.flatten` knows -> (S,), in its order."""
    if isinstance(space, spaces.Box):
        return torch.as_tensor(np.asarray(obs).reshape(-1))
    return torch.as_tensor(np.asarray(spaces.utils.flatten(space, obs), dtype=np.float64))


def action_of(space: spaces.Space, numbers: np.ndarray) -> Any:
    """What the environment is given for the numbers (A,) of an action: clamped to its box, or the largest chooses."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) + int(numbers.argmax())
    assert isinstance(space, spaces.Box)  # `check_spaces`
    return np.clip(numbers.reshape(space.shape), space.low, space.high).astype(space.dtype)


class GymnasiumFamily(TaskFamily):
    """A subclass sets the sizes, the box, the reward and the limits of actions, and makes one environment.

    The family owns its environments: at most as many as lanes were in use at once, each used again for other tasks
    and simulators. They are closed by `close`, at the end of a ``with`` block, when the family is collected, and when
    the interpreter ends; a closed family makes new ones if it is used again. Copies, pickles and other processes have
    environments of their own.
    """

    psi_attributes: tuple[str, ...] = ()
    """Where the dynamics depend on psi: attributes of the environment that are set before every reset, one for each
    task parameter; or a single one, which is given all of them (k,) if there are several."""
    _has_checked_spaces = False

    @abstractmethod
    def make_one(self) -> gymnasium.Env:
        """A new environment without a time limit.

        It is used for many episodes and tasks: everything that lasts beyond ``reset(seed=...)`` would show in them.
        """

    def tell_psi(self, env: gymnasium.Env, psi: Tensor) -> None:
        """Make an environment that of a task (k,), before its reset: sets `psi_attributes` of the innermost one."""
        inner, values = env.unwrapped, psi.double().tolist()
        if len(self.psi_attributes) == 1 and len(values) > 1:
            setattr(inner, self.psi_attributes[0], np.array(values))
            return
        for name, value in zip(self.psi_attributes, values, strict=True):
            setattr(inner, name, value)

    def _told(self, psi: Tensor | None, num_tasks: int) -> Tensor | None:
        """psi (M, k), where environments are told it."""
        return self.require_psi(psi, num_tasks) if self.psi_changes_dynamics else None

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
        """See `TaskFamily.reset`; one environment is reset n times, of the first task if it is told one."""
        psi = self._told(self.first_psi[None], 1)
        simulator = GymnasiumSimulator(self._checked(), (1, 1), torch.float64, psi)
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
            ValueError: the environment's spaces are none that fit, or not those that the family declares; see
                `check_spaces`. Or psi is missing.
        """
        return GymnasiumSimulator(self._checked(), shape, dtype, self._told(psi, shape[0]))

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
    """Refuse an environment whose spaces do not fit, or are not those that the family declares.

    Raises:
        ValueError: names the space, what was expected, and the wrapper that helps.
    """
    seen, acted = env.observation_space, env.action_space
    obs_size, act_size, low, high = sizes_of(seen, acted)
    for name, size, num, space in (
        ("obs_size", family.obs_size, obs_size, seen),
        ("act_size", family.act_size, act_size, acted),
    ):
        if num != size:
            raise ValueError(
                f"{name}: expected {num}, the numbers in the environment's {space}, got {size}; set {name} = {num}"
            )
    bounds = family.action_bounds
    if not (_agree(bounds.low, low) and _agree(bounds.high, high)):
        raise ValueError(
            f"act_low, act_high: expected the limits of the environment's action space, {_limits(low, high)}, "
            f"got {_limits(bounds.low, bounds.high)}; set act_limit, or act_low and act_high (None: no limit), or "
            "change the environment's with gymnasium.wrappers.RescaleAction"
        )


def sizes_of(seen: spaces.Space, acted: spaces.Space) -> tuple[int, int, Tensor, Tensor]:
    """Numbers in an observation and in an action, and the limits of the latter (A,) float64.

    Raises:
        ValueError: names a space that does not fit, what was expected, and the wrapper that helps.
    """
    try:
        obs_size = int(spaces.utils.flatdim(seen))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"observation_space: expected one of a fixed number of numbers, got {seen}; wrap the environment of "
            "make_one in gymnasium.wrappers.TransformObservation with a function that makes a Box's of them"
        ) from error
    if isinstance(acted, spaces.Discrete):
        one = torch.ones(int(acted.n), dtype=torch.float64)
        return obs_size, len(one), -one, one
    if not isinstance(acted, spaces.Box) or not np.issubdtype(acted.dtype, np.floating):
        raise ValueError(
            f"action_space: expected a Box of real numbers or a Discrete, got {acted}; wrap the environment of "
            "make_one in gymnasium.wrappers.TransformAction with a function that makes its actions of a Box's"
        )
    low, high = (torch.as_tensor(end.reshape(-1)).double() for end in (acted.low, acted.high))
    return obs_size, len(low), low, high


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-6, atol=0.0)  # theirs may be rounded to float32


def _limits(low: Tensor, high: Tensor) -> str:
    return f"{low.tolist()} to {high.tolist()}"


class EnvFamily(GymnasiumFamily):
    """A family of any environment and a reward, in one expression; sizes and limits are read off its spaces.

    A function of the user's that returns one is a family for the command line: ``--family tasks.py:my_family``. What
    is given as functions are functions of a module, so that other processes find them.
    """

    def __init__(
        self,
        name: str,
        env: str | Callable[..., gymnasium.Env],
        box: TaskSpace,
        reward: Callable[[Tensor, Tensor, Tensor, Tensor], Any],
        *,
        terminated: Callable[[Tensor], Tensor] | None = None,
        first_psi: Tensor | None = None,
        psi_attributes: tuple[str, ...] = (),
        psi_arguments: tuple[str, ...] = (),
        reward_has_gradient: bool = True,
        horizon: int = 200,
        gamma: float = 0.99,
    ) -> None:
        """
        Args:
            name: letters, digits and _.
            env: an id of gymnasium's, whose time limit is left out; or a function that makes a new environment.
            reward: r_psi(s, a, s') as in `TaskFamily.reward`; of numpy arrays, if it has no gradient.
            terminated: as `TaskFamily.terminated`; None: nowhere.
            first_psi: (k,); None: 0.3 of the way from the box's middle to its upper corner.
            psi_attributes: where the dynamics depend on psi; see `GymnasiumFamily.psi_attributes`.
            psi_arguments: the same for arguments with which `env` makes an environment of a task.
            reward_has_gradient: whether torch can differentiate the reward.
        """
        told = bool(psi_attributes or psi_arguments)
        own = {
            "name": name,
            "source": "its user",
            "formula": f"{getattr(reward, '__name__', 'reward')}(s, a, s')",
        }
        vars(self).update(own, psi_changes_dynamics=told, reward_has_gradient=reward_has_gradient)
        super().__init__()
        if psi_attributes and psi_arguments:
            raise ValueError("psi_attributes, psi_arguments: expected one of them, got both")
        for names in (psi_attributes, psi_arguments):
            if names and len(names) not in (1, box.size):
                raise ValueError(f"psi_attributes: expected 1 or {box.size} names, got {names}")
        self.box, self.horizon, self.gamma = box, horizon, gamma
        middle = box.from_unit(torch.full((box.size,), 0.3).to(box.low))
        self.first_psi = box.project(middle[None])[0] if first_psi is None else first_psi
        self.psi_attributes, self._arguments = psi_attributes, psi_arguments
        self._env, self._reward, self._ends = env, reward, terminated
        one = self.env_pool.take(self.make_one)
        self.obs_size, self.act_size, low, high = sizes_of(one.observation_space, one.action_space)
        self.act_low, self.act_high = low, high
        vars(self)["picks_largest"] = isinstance(one.action_space, spaces.Discrete)
        self.env_pool.give_back([one])

    def make_one(self) -> gymnasium.Env:
        """See `GymnasiumFamily`."""
        env = self._made(self.first_psi)
        return _Remade(env, tuple(self.first_psi.tolist())) if self._arguments else env

    def _made(self, psi: Tensor) -> gymnasium.Env:
        values: list[Any] = psi.double().tolist()
        if len(self._arguments) == 1 and len(values) > 1:
            values = [np.array(values)]
        settings = dict(zip(self._arguments, values, strict=False))
        if isinstance(self._env, str):
            return gymnasium.make(self._env, max_episode_steps=-1, disable_env_checker=True, **settings)
        return self._env(**settings)

    def tell_psi(self, env: gymnasium.Env, psi: Tensor) -> None:
        """See `GymnasiumFamily`; one that takes its task when it is made is made anew within its wrapper."""
        if self._arguments:
            assert isinstance(env, _Remade)
            env.remake(lambda: self._made(psi), tuple(psi.tolist()))
        else:
            super().tell_psi(env, psi)

    def reward(self, psi: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """See `TaskFamily`."""
        if self.reward_has_gradient:
            return self._reward(psi, obs, act, next_obs)
        return numpy_reward(self._reward, psi, obs, act, next_obs)

    def terminated(self, next_obs: Tensor) -> Tensor:
        """See `TaskFamily`."""
        unstable = super().terminated(next_obs)
        return unstable if self._ends is None else unstable | self._ends(next_obs)


class _Remade(gymnasium.Wrapper):
    """An environment that is made anew, and the old one closed, when its task changes."""

    def __init__(self, env: gymnasium.Env, key: tuple[float, ...]) -> None:
        super().__init__(env)
        self.env: gymnasium.Env = env
        self._key = key

    def remake(self, make: Callable[[], gymnasium.Env], key: tuple[float, ...]) -> None:
        """Nothing happens if it is of that task already."""
        if key != self._key:
            new = make()  # first: if that fails, the old one is still there to be closed
            self.env.close()
            self.env, self._key = new, key
