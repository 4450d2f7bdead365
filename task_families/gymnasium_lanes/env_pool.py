"""EnvPool: environments that are made once and lent."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeAlias

import gymnasium
import gymnasium.vector

AnyEnv: TypeAlias = "gymnasium.Env | gymnasium.vector.VectorEnv"


class EnvPool:
    """Environments that are made once, lent to one simulator after another, and closed together.

    All are closed by `close`, when the pool is collected, and when the interpreter ends. Its containers are changed
    by atomic operations alone, so that threads and finalizers may take and give back at any time.
    """

    def __init__(self, maker: str = "make_one") -> None:
        """
        Args:
            maker: name of what makes the environments, for messages.
        """
        self.process = os.getpid()  # a fork has another; the environments stay those of its parent
        self._maker = maker
        self._open: dict[int, AnyEnv] = {}  # by id: all that were made and not closed, lent ones included
        self._free: deque[AnyEnv] = deque()
        weakref.finalize(self, _close_all, self._open, self.process)

    def take(self, make: Callable[[], AnyEnv]) -> AnyEnv:
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
                f"{self._maker}: expected a new environment at every call, got {env} again; make it in there"
            )
        self._open[id(env)] = env
        return env

    def give_back(self, envs: Iterable[AnyEnv]) -> None:
        """Whoever took them needs them no more."""
        self._free.extend([env for env in envs if self.has_open(env)])

    def discard(self, env: AnyEnv) -> None:
        """Close a lent environment that is not to be used again."""
        if self._open.pop(id(env), None) is not None:
            env.close()

    def has_open(self, env: AnyEnv) -> bool:
        """Whether the environment is of this pool and was not closed."""
        return self._open.get(id(env)) is env

    def close(self) -> None:
        """Close all, lent ones included."""
        self._free.clear()
        _close_all(self._open, self.process)


def _close_all(envs: dict[int, AnyEnv], process: int) -> None:
    if os.getpid() != process:
        return
    with ExitStack() as stack:  # closes the others too, if one fails
        while envs:
            stack.callback(envs.popitem()[1].close)
