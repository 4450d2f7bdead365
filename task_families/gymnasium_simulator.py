"""GymnasiumFamily: a task family on any gymnasium environment whose dynamics its seed determines.

Every lane is an environment of its own, stepped in a Python loop: slower than a batched simulator, but everything
else of this package then applies. The environment's own rewards and terminations are not used. Observations are
flattened by `gymnasium.spaces.utils.flatten`: a box of shape (3, 2) is (6,) here, in C order, a Discrete(4) is one of
four, a Dict its parts in its order. Of an action of a Discrete(n), n numbers, the largest chooses.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from task_families.family import TaskFamily, numpy_reward
from task_families.gymnasium_lanes.env_pool import EnvPool
from task_families.gymnasium_lanes.held import Held
from task_families.gymnasium_lanes.lanes import GymnasiumSimulator
from task_families.gymnasium_lanes.processes import ProcessSimulator
from task_families.gymnasium_lanes.spaces import check_spaces, sizes_of
from task_families.gymnasium_lanes.vector_lanes import VectorSimulator, check_vectors
from task_families.simulator import Simulator
from task_families.task_space import TaskSpace


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
    num_processes: int | None = 1
    """How many processes step the lanes. 1: this process steps one after another. None: as many as threads of the
    simulator are asked for. More than 1 is for idle cores, and steps of many milliseconds."""
    make_many: Callable[[int], VectorEnv] | None = None
    """A function, or a method, of a number of lanes that makes a vector environment; it then steps the lanes of every
    simulator that has several. See `task_families.gymnasium_lanes.vector_lanes`."""
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
    def held(self) -> Held:
        """What this family holds open in this process."""
        held = self.__dict__.get("_held")
        if held is None or held.process != os.getpid():
            held = self._held = Held(self.name)
        return held

    @property
    def env_pool(self) -> EnvPool:
        """The environments of this family, in this process."""
        return self.held.env_pool

    def vector_pool(self, num: int) -> EnvPool:
        """The vector environments of so many lanes of this family, in this process."""
        return self.held.vector_pools[num]

    def close(self) -> None:
        """Close all environments, those of simulators that are still in use, too, and end the processes."""
        self.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

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
        """See `TaskFamily.make_simulator`; num_threads processes, where `num_processes` does not say how many.

        Raises:
            ValueError: the environment's spaces are none that fit, or not those that the family declares; see
                `check_spaces`, `check_vectors`. Or psi is missing, or `num_processes` is no number of processes.
        """
        family, told, num_lanes = self._checked(), self._told(psi, shape[0]), shape[0] * shape[1]
        if self.make_many is not None and num_lanes > 1:
            return VectorSimulator(family, shape, dtype, told)
        num = num_threads if self.num_processes is None else self.num_processes
        if num < 1:
            raise ValueError(f"num_processes: expected None or a number from 1 on, got {num}")
        if (num := min(num, num_lanes)) > 1:
            return ProcessSimulator(family, self.held.lane_processes, shape, dtype, told, num)
        return GymnasiumSimulator(family, shape, dtype, told)

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
            if self.make_many is not None:
                check_vectors(self, self._told(self.first_psi[None], 1))
            self._has_checked_spaces = True
        return self


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
        num_processes: int | None = 1,
        make_many: Callable[[int], VectorEnv] | None = None,
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
            num_processes: that step the lanes; see `GymnasiumFamily.num_processes`.
            make_many: see `GymnasiumFamily.make_many`.
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
        self.num_processes, self.make_many = num_processes, make_many
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
