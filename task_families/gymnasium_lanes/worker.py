"""What a process of lanes does: it steps some lanes of each simulator one after another, as `lanes` does.

Requests are tuples (released, what, number, ...): simulators that nobody needs any more; what to do; the simulator.

    reset  (first_lane, num_lanes, dtype, psi), lanes (n,) bool, seeds       psi (n, k) or None
    step   actions (n, A)

It answers each with the observations of its lanes (n, S), or with a `Failure`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import numpy as np
import torch

from task_families.gymnasium_lanes.lanes import GymnasiumSimulator, HasEnvironments

SECONDS_TO_CLOSE = 5.0  # that environments have to close once nobody needs their process


@dataclass(frozen=True)
class Failure:
    """What an environment, or the code of its family, raised."""

    error: str  # kind and message, and what is noted on it
    is_value_error: bool
    trace: str
    ready: tuple[bool, ...] = ()  # which lanes of the simulator may still be stepped

    @classmethod
    def of(cls, error: BaseException, ready: tuple[bool, ...] = ()) -> Failure:
        """Everything in words: another process may not know the exception's class."""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        text = f"{type(error).__name__}: {error}{notes}"
        return cls(text, isinstance(error, ValueError), traceback.format_exc(), ready)


def serve(connection: Connection) -> None:
    """Step lanes for another process until it says that nothing more comes, or ends.

    The first message is the family; all its environments are closed in the end. Ctrl-C is left to the other
    process; SIGTERM ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        try:
            family = connection.recv()
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # whatever a user's module raises when it is imported
            connection.send(Failure.of(error))
            return
        try:
            connection.send(None)
            lanes = _Lanes(family)
            while (request := connection.recv()) is not None:
                connection.send(lanes.answer(*request))
        finally:
            family.close()
    except (EOFError, ConnectionError):  # the other process has ended
        return


def _leave(signum: int, frame: FrameType | None) -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a second one would come while environments are being closed
    sys.exit(128 + signum)


def _end_with_parent() -> None:
    """No orphan, whatever an environment is busy with."""
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == number:
        parent.join(1.0)
    time.sleep(SECONDS_TO_CLOSE)
    os._exit(1)


@dataclass
class _Lanes:
    family: HasEnvironments
    simulators: dict[int, GymnasiumSimulator] = field(default_factory=dict)

    def answer(self, released: list[int], what: str, number: int, *arguments: Any) -> np.ndarray | Failure:
        for old in released:
            if (simulator := self.simulators.pop(old, None)) is not None:
                simulator.close()
        try:
            if what == "step":
                return self.simulators[number].step(torch.from_numpy(arguments[0])[:, None])[:, 0].numpy()
            return self._reset(number, *arguments)
        except Exception as error:
            return Failure.of(error, self._ready(number))

    def _reset(
        self, number: int, made_of: tuple[Any, ...], lanes: np.ndarray, seeds: np.ndarray
    ) -> np.ndarray:
        if number not in self.simulators:
            first_lane, num_lanes, dtype, psi = made_of
            told = None if psi is None else torch.from_numpy(psi)
            self.simulators[number] = GymnasiumSimulator(
                self.family, (num_lanes, 1), dtype, told, first_lane=first_lane
            )
        rows = self.simulators[number].reset(torch.from_numpy(lanes)[:, None], torch.from_numpy(seeds))
        return rows[:, 0].numpy()

    def _ready(self, number: int) -> tuple[bool, ...]:
        simulator = self.simulators.get(number)
        return () if simulator is None else tuple(simulator.is_ready(i) for i in range(simulator.shape[0]))
