"""ProcessSimulator: lanes that are stepped in several processes; and LaneProcesses, those of a family.

Bit-identical to lanes that are stepped one after another: each process runs that very code (`worker`) on some of the
lanes, with environments of its own, and their seeds, tasks and actions come from here. gymnasium's AsyncVectorEnv is
not used: it has one process for each environment, and tells none which task it is of.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count, pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from task_families.gymnasium_lanes.lanes import HasEnvironments, require_reset, start_seeds
from task_families.gymnasium_lanes.worker import SECONDS_TO_CLOSE, Failure, serve


class LaneProcesses:
    """The processes that step lanes of one family: started when lanes are first reset, used for all its simulators.

    They are ended by `close`, with this object, when the interpreter ends, and by themselves soon after the process
    that started them has ended, however it did. They end too if an answer is not waited for (Ctrl-C), or if one of
    them ends: the next reset starts others.
    """

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of the family.
        """
        self.process = os.getpid()  # a fork has another; the processes stay those of its parent
        self.lock = threading.RLock()  # of one exchange: threads may share a family
        self._name = name
        self._workers: list[_Worker] = []
        weakref.finalize(self, _end_all, self._workers, self.process)

    def started(self, family: HasEnvironments, num: int) -> list[_Worker]:
        """The first num processes, started where they are not.

        Raises:
            ValueError: the family cannot be sent to another process, or not be made there; or this process is a fork.
            RuntimeError: a process ended as it was started.
        """
        if os.getpid() != self.process:
            raise ValueError(
                f"{self._name}: a simulator with processes does not survive a fork; make another in the new process"
            )
        if len(self._workers) < num:
            _check_sendable(family)
            fresh = [_Worker(self._name) for _ in range(num - len(self._workers))]
            self._workers += fresh
            for answer in self.exchange([(worker, family) for worker in fresh]):
                if answer is not None:
                    self.close()
                    raise ValueError(
                        f"{self._name}: another process cannot make this family; its class and functions must be "
                        f"those of a module that can be imported there: {answer.error}"
                    ) from _There(answer.trace)
        return self._workers[:num]

    def exchange(self, requests: Sequence[tuple[_Worker, Any]]) -> list[Any]:
        """All answers, in order.

        Raises:
            RuntimeError: a process has ended.
        """
        try:
            for worker, request in requests:
                worker.send(request)
            return [worker.receive() for worker, _ in requests]
        except BaseException:  # answers that may still come would be taken for others
            self.close(at_once=True)
            raise

    def has(self, workers: Sequence[_Worker]) -> bool:
        """Whether these are there, and are of this family."""
        is_here = bool(workers) and os.getpid() == self.process
        return is_here and all(worker in self._workers for worker in workers)

    def close(self, *, at_once: bool = False) -> None:
        """End the processes, once their environments are closed.

        Args:
            at_once: they may be in the middle of something.
        """
        with self.lock:
            _end_all(self._workers, self.process, at_once)


class ProcessSimulator:
    """(M, N) lanes in several processes, an equal share in each; see `GymnasiumSimulator`, which each of them has.

    What an environment raises there is raised here as one message, which names the lane, the task and the
    environment, once all processes have answered: lanes of others have then been stepped.
    """

    def __init__(
        self,
        family: HasEnvironments,
        processes: LaneProcesses,
        shape: tuple[int, int],
        dtype: torch.dtype,
        psi: Tensor | None,
        num_processes: int,
    ) -> None:
        """
        Args:
            psi: (M, k), for environments that are told their task.
            num_processes: at most as many as there are lanes.
        """
        self.shape = shape
        self._family, self._processes, self._number = family, processes, next(_NUMBERS)
        num_lanes = shape[0] * shape[1]
        ends = [num_lanes * j // num_processes for j in range(num_processes + 1)]
        self._shares = [slice(*pair) for pair in pairwise(ends)]
        told = None if psi is None else psi.detach().repeat_interleave(shape[1], dim=0).numpy()
        self._made_of = [
            (share.start, share.stop - share.start, dtype, None if told is None else told[share])
            for share in self._shares
        ]
        self._names = [_name(share, shape[1], psi) for share in self._shares]
        self._workers: list[_Worker] = []
        self._ready = np.zeros(num_lanes, dtype=bool)
        self._obs = torch.zeros(*shape, family.obs_size, dtype=dtype)
        weakref.finalize(self, _release, self._workers, self._number).atexit = False

    def start_states(self, n: int, generator: torch.Generator) -> Tensor:
        """n seeds (n, 1)."""
        return start_seeds(n, generator)

    def reset(self, lanes: Tensor, states: Tensor) -> Tensor:
        """See `Simulator.reset`.

        Raises:
            RuntimeError, ValueError: an environment raised, or a process ended; see `LaneProcesses.exchange`.
        """
        asked = lanes.flatten().numpy()
        seeds = np.zeros((len(asked), 1))
        seeds[asked] = states.numpy()
        self._obs = self._obs.clone()
        rows = self._obs.view(len(asked), -1)
        with self._processes.lock:
            if not self._processes.has(self._workers):
                self._ready[:] = False
                self._workers[:] = self._processes.started(self._family, len(self._shares))
            requests = {
                j: ("reset", self._number, self._made_of[j], asked[share], seeds[share][asked[share]])
                for j, share in enumerate(self._shares)
                if asked[share].any()
            }
            for j, seen in self._answers(requests).items():
                ids = asked[self._shares[j]].nonzero()[0]
                rows[ids + self._shares[j].start] = torch.from_numpy(seen[ids])
                self._ready[ids + self._shares[j].start] = True
        return self._obs

    def step(self, act: Tensor) -> Tensor:
        """See `Simulator.step`. Actions are clamped to the environment's box.

        Raises:
            ValueError: a lane was not reset since the simulator was made, its environment raised, or all were closed.
            RuntimeError: an environment raised, or a process ended; see `LaneProcesses.exchange`.
        """
        actions = act.detach().reshape(len(self._ready), -1).numpy()
        with self._processes.lock:
            if not self._processes.has(self._workers):
                self._ready[:] = False
            require_reset((~self._ready).nonzero()[0].tolist())
            requests = {j: ("step", self._number, actions[share]) for j, share in enumerate(self._shares)}
            seen = self._answers(requests)
        self._obs = torch.from_numpy(np.concatenate(list(seen.values()))).view(self._obs.shape)
        return self._obs

    def close(self) -> None:
        """Give the environments back to the family; a reset takes others."""
        _release(self._workers, self._number)

    def _answers(self, requests: dict[int, tuple[Any, ...]]) -> dict[int, np.ndarray]:
        """What each share answers to its request."""
        sent = []
        for j, request in requests.items():
            self._workers[j].lanes = self._names[j]
            sent.append((self._workers[j], (self._workers[j].released_ones(), *request)))
        answers = dict(zip(requests, self._processes.exchange(sent), strict=True))
        failures = {j: answer for j, answer in answers.items() if isinstance(answer, Failure)}
        for j, failure in failures.items():
            self._ready[self._shares[j]] = failure.ready or False
        for failure in failures.values():
            kind = ValueError if failure.is_value_error else RuntimeError
            raise kind(f"{failure.error}, in another process") from _There(failure.trace)
        return answers


def _name(share: slice, num_lanes: int, psi: Tensor | None) -> str:
    """Lanes and tasks of a share, for messages; num_lanes of each task."""
    first, last = share.start, share.stop - 1
    told = "" if psi is None else f", psi {psi[first // num_lanes : last // num_lanes + 1].tolist()}"
    return f"lanes {first} to {last}{told:.200}"


class _Worker:
    """One process, and the way to it."""

    def __init__(self, name: str) -> None:
        if multiprocessing.current_process().daemon:
            raise ValueError(
                f"{name}: a daemonic process, one of multiprocessing.Pool for example, may start none for lanes; "
                "use one process: num_threads=1"
            )
        # threads of torch, locks and windows do not survive a fork
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._name, self._has_answered = name, False
        self.lanes = "its lanes"  # that it is asked for, for messages
        self.released: deque[int] = deque()  # simulators; finalizers, which may come at any time, append

    def released_ones(self) -> list[int]:
        """The simulators that were released since this was last asked."""
        return [self.released.popleft() for _ in range(len(self.released))]

    def send(self, request: Any) -> None:
        try:
            self._connection.send(request)
        except ConnectionError as error:
            raise RuntimeError(self._how_it_ended()) from error

    def receive(self) -> Any:
        try:
            # not for ever: a child of the process may hold its end of the connection open
            while not self._connection.poll(1.0):
                if not self._process.is_alive() and not self._connection.poll():
                    raise EOFError
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(self._how_it_ended()) from error
        self._has_answered = True
        return answer

    def _how_it_ended(self) -> str:
        self._process.join(SECONDS_TO_CLOSE)  # it has closed its end of the connection
        code = self._process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"
        text = f"{self._name}: a process that steps {self.lanes} ended ({how})"
        if self._has_answered:
            return f"{text}; its own messages, if any, are above. The next reset starts another"
        return (
            f"{text} as it was started; its own messages are above. A script that starts processes must do so behind "
            'if __name__ == "__main__":'
        )

    def ask_to_end(self, at_once: bool) -> None:
        if at_once:
            self._process.terminate()
        with suppress(OSError):
            self._connection.send(None)
        self._connection.close()

    def end(self) -> None:
        self._process.join(SECONDS_TO_CLOSE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


_NUMBERS = count()  # of simulators


class _There(Exception):
    """The traceback of another process, as the cause of what is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _check_sendable(family: HasEnvironments) -> None:
    try:
        ForkingPickler.dumps(family)
    except Exception as error:  # whatever a user's family raises, or what it holds
        raise ValueError(
            f"{family.name}: expected a family that can be sent to another process, got {error}; make it of classes "
            "and functions of a module, or use one process: num_threads=1"
        ) from error


def _release(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        worker.released.append(number)
    workers.clear()


def _end_all(workers: list[_Worker], process: int, at_once: bool = False) -> None:
    if os.getpid() != process:
        return
    ending = [workers.pop() for _ in range(len(workers))]
    for worker in ending:
        worker.ask_to_end(at_once)
    for worker in ending:
        worker.end()
