"""What a study asks of whatever starts its jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Resources:
    """What each process of a job needs."""

    num_cores: int = 1
    memory_gb: float | None = None
    """None: nothing is asked for."""
    num_gpus: float = 0.0
    max_processes: int | None = None
    """Of one job, which run on one machine; None: as many as are free, of the engine `local` alone."""


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    job: str
    number: int
    """From 1 up, over all starts of the study."""
    words: tuple[str, ...]
    """The command line; the first is a module that is run as `python -m` runs it."""
    folder: Path
    """Of the job; see `admrl.studies.pulse`."""
    seconds: float
    """After this time without a sign of life it is given up."""
    num_processes: int = 1
    """That it starts."""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / f"attempt-{self.number}.log"

    def command(self) -> list[str]:
        """The process to start, with OMP_NUM_THREADS=1; when the one that calls this ends, it stops as by Ctrl-C."""
        worker = (str(self.folder.absolute()), str(self.number), str(self.seconds), str(os.getpid()))
        return [sys.executable, "-m", "admrl.studies.worker", *worker, *self.words]


class Engine(Protocol):
    """Starts attempts, and says how they ended."""

    def submit(self, attempt: Attempt) -> None:
        """Start it, soon. Of an older attempt of this job, if there is one, nothing is said any more."""

    def poll(self) -> Mapping[str, int]:
        """Exit codes by job of the attempts that have ended since the last call; negative: by that signal."""

    def cancel(self, job: str) -> None:
        """Ask its attempt to stop, as Ctrl-C does; `poll` says when it has."""

    def logs(self, job: str) -> str:
        """The end of the output of its newest attempt."""
