"""Ctrl-C and SIGTERM: finish the current step, save, leave. A second one leaves at once.

Signals belong to the process, and so does the note that one has come. Long work asks `check_interruption` between
its steps, after it has saved; without `deferred_signals` nothing is noted and Python's own rules apply.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from admrl.jobs.reporter import Reporter

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: int | None = None


class Interrupted(KeyboardInterrupt):
    """The work stopped between two steps, because a signal came. The message says how to go on."""

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message, signum)
        self.message, self.signum = message, signum

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM: what shells and schedulers expect."""
        return 128 + self.signum


def interruption() -> int | None:
    """The signal that has come, or None."""
    return _received


def check_interruption() -> None:
    """Stop here if a signal has come.

    Raises:
        Interrupted: a signal has come.
    """
    if _received is not None:
        raise Interrupted(signum=_received)


class Interruptible:
    """Passes everything on to a reporter, and stops the work at its next report once a signal has come.

    For work that saves its parts when they are done, and nothing between.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def phase(self, name: str) -> None:
        """See `Reporter.phase`."""
        check_interruption()
        self._reporter.phase(name)

    def advance(self, **metrics: float) -> None:
        """See `Reporter.advance`."""
        check_interruption()
        self._reporter.advance(**metrics)

    def event(self, message: str) -> None:
        """See `Reporter.event`."""
        self._reporter.event(message)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM is only noted; the second ends the process as if nobody had asked."""
    global _received
    before = {signum: signal.signal(signum, _note) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _received = None


def follow_orders_only() -> None:
    """In a worker process: leave Ctrl-C to the parent; SIGTERM, however often, is noted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _note_quietly)


def _note(signum: int, frame: FrameType | None) -> None:
    _note_quietly(signum, frame)
    for other in SIGNALS:  # the second one ends the process also in the middle of a long computation
        signal.signal(other, signal.SIG_DFL)
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    name = signal.Signals(signum).name
    text = f"{show_cursor}\n{name}: finishing this step, then saving; once more leaves at once\n"
    os.write(2, text.encode())  # print may not be called while it is being called


def _note_quietly(signum: int, frame: FrameType | None) -> None:
    global _received
    _received = signum
