"""The engine of this machine: a process for every attempt, one thread each."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from admrl.storage.files import storage_error
from admrl.studies.engine import Attempt, Resources

TAIL = 4000  # bytes


class LocalEngine:
    """See `admrl.studies.engine.Engine`."""

    def __init__(self, folder: Path, resources: Resources) -> None:
        """
        Args:
            folder: of the study.
            resources: this machine must have them for one process; nothing is kept free.

        Raises:
            ValueError: it has not.
        """
        num_cores, memory = (
            os.cpu_count() or 1,
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        )
        for what, asked, there in (
            ("num_cores", resources.num_cores, num_cores),
            ("memory_gb", resources.memory_gb or 0.0, memory),
        ):
            if asked > there:
                raise ValueError(
                    f"engine.{what}: a process asks for {asked:g}, and this machine has {there:.3g}; ask for less, "
                    "or take an engine of a cluster"
                )
        if resources.num_gpus:
            raise ValueError(
                f"engine.num_gpus: got {resources.num_gpus:g}, and the engine `local` shares no GPUs out; leave it "
                "out, or take an engine of a cluster"
            )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._given_up: list[subprocess.Popen[bytes]] = []
        self._logs: dict[str, Path] = {}

    def submit(self, attempt: Attempt) -> None:
        """See `Engine.submit`. The process is not of our session: Ctrl-C in a terminal reaches it by `cancel` alone.

        Raises:
            StorageError: its log cannot be written.
        """
        if (older := self._processes.pop(attempt.job, None)) is not None:
            os.killpg(older.pid, signal.SIGKILL)
            self._given_up.append(older)
        try:
            with open(attempt.log, "wb") as log:
                self._processes[attempt.job] = subprocess.Popen(
                    attempt.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        except OSError as error:
            raise storage_error(attempt.log, error) from error
        self._logs[attempt.job] = attempt.log

    @property
    def running(self) -> frozenset[str]:
        """Jobs whose newest attempt has not been said to have ended."""
        return frozenset(self._processes)

    def poll(self) -> dict[str, int]:
        """See `Engine.poll`."""
        self._given_up = [process for process in self._given_up if process.poll() is None]
        ended = {
            job: code for job, process in self._processes.items() if (code := process.poll()) is not None
        }
        for job in ended:
            del self._processes[job]
        return ended

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        if job in self._processes:
            self._processes[job].send_signal(signal.SIGINT)

    def logs(self, job: str) -> str:
        """See `Engine.logs`."""
        return end_of(self._logs[job])


def end_of(file: Path) -> str:
    """The last lines of a log; a note, if it cannot be read."""
    try:
        with open(file, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
            return log.read().decode("utf-8", "replace").strip()
    except OSError as error:
        return f"({file}: {error.strerror})"
