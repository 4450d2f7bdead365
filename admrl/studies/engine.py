"""What a study asks of whatever starts its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    job: str
    number: int
    """From 1 up, over all starts of the study."""
    words: tuple[str, ...]
    """The command line; the first is a module that is run as `python -m` runs it."""
    lease: Path
    """Held and renewed by the running attempt (`admrl.studies.lease`)."""
    log: Path
    """Where its output goes."""


class Engine(Protocol):
    """Starts attempts, at most one of a job at a time, and says how they ended."""

    def submit(self, attempt: Attempt) -> None:
        """Start it, soon."""

    def poll(self) -> Mapping[str, int]:
        """Exit codes by job of the attempts that have ended since the last call; negative: by that signal."""

    def cancel(self, job: str) -> None:
        """Ask its attempt to stop, as Ctrl-C does; `poll` says when it has."""

    def logs(self, job: str) -> str:
        """The end of the output of its newest attempt."""
