"""Of several attempts at one job, only the newest one may write.

Whoever starts attempts puts the number of the newest one into a file before it starts. A process that works under an
older number (its machine was cut off, or slept, and it was given up) ends before its next write, together with the
processes that it has started.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "ADMRL_ATTEMPT"  # NUMBER FILE; processes that are started inherit it


def set_fence(number: int, file: Path) -> None:
    """This process, and those that it starts from now on, are attempt `number`; `file` holds that of the newest."""
    os.environ[VARIABLE] = f"{number} {file.absolute()}"


def check_fence() -> None:
    """Return if this process may write; if a newer attempt was started, kill this process and its group, at once.

    Raises:
        OSError: the file cannot be read: nobody knows, so nothing may be written.
    """
    attempt = present_attempt()
    if attempt is not None and newest_attempt(attempt[1]) > attempt[0]:
        end_group()


def present_attempt() -> tuple[int, Path] | None:
    """What `set_fence` was told; None: this process is no attempt."""
    number, _, file = os.environ.get(VARIABLE, "").partition(" ")
    return (int(number), Path(file)) if number else None


def newest_attempt(file: Path) -> int:
    """The number in the file.

    Raises:
        OSError: it cannot be read, or is damaged.
    """
    try:
        return int(file.read_text(encoding="utf-8"))
    except ValueError:
        raise OSError(0, f"{file} is damaged") from None


def end_group() -> None:
    """Kill this process and what it has started: nothing of it may write any more."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
