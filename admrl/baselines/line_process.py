"""A program that answers lines with lines, however badly it behaves: in a limited time, with a limited size.

Three threads serve its pipes, so that a program that does not read, does not write or writes without end is noticed
within the time limit. It runs in a session of its own and is killed with all that it started. Bytes, not text: what
they mean is for whoever asks.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from typing import IO

CHUNK = 1 << 16  # bytes, the size of a pipe
ERRORS_KEPT = 2000  # bytes of the standard error, its end


class _Traffic:
    """What the threads have read and written. They hold this, not the process, which so dies with its last user."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.unread = bytearray()  # of the program's output
        self.searched = 0  # bytes of it without an end of line
        self.longest = CHUNK  # bytes that may be unread
        self.is_flooded = self.has_ended = False
        self.num_written = 0  # lines
        self.errors = bytearray()

    def pop_line(self) -> bytes | None:
        """The next whole line, without its end; call it with `changed` held."""
        end = self.unread.find(b"\n", self.searched)
        if end < 0:
            self.searched = len(self.unread)
            return None
        line = bytes(self.unread[:end])
        del self.unread[: end + 1]
        self.searched = 0
        return line


class LineProcess:
    """A started program: `ask`, then `answer` until the right line comes."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        """
        Args:
            timeout: seconds from a question to its answer, the writing of the question included.

        Raises:
            ValueError: it cannot be started.
        """
        self.name = shlex.join(map(str, command))
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # its own process group, which is killed as one
            )
        except (OSError, ValueError) as error:  # ValueError: a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{self.name}: cannot be started ({reason})") from error
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.process = process
        self._traffic, self._lines = _Traffic(), queue.SimpleQueue[bytes | None]()
        self._timeout, self._deadline, self._num_asked = timeout, 0.0, 0
        self._end = weakref.finalize(self, _kill, process, self._lines)  # also when Python ends
        self._errors_read = threading.Thread(
            target=_read_errors, args=(process.stderr, self._traffic), daemon=True
        )
        self._errors_read.start()
        for target, arguments in (
            (_read_output, (process.stdout, self._traffic)),
            (_write, (process.stdin, self._lines, self._traffic)),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def ask(self, line: bytes, longest: int) -> None:
        """Hand it a line, which a thread writes.

        Args:
            longest: bytes that its answer may have.

        Raises:
            ValueError: it was closed.
        """
        if not self._end.alive:
            raise ValueError(f"{self.name}: it was closed; start another")
        with self._traffic.changed:
            self._traffic.longest = max(longest, self._traffic.longest)
        self._num_asked += 1
        self._deadline = time.monotonic() + self._timeout
        self._lines.put(line + b"\n")

    def answer(self) -> bytes:
        """Its next line, once it has taken the whole question.

        Raises:
            ValueError: too late, without end, or the program has ended; it is killed.
        """
        traffic = self._traffic
        with traffic.changed:
            while True:
                line = traffic.pop_line() if traffic.num_written == self._num_asked else None
                if line is not None:
                    return line
                left = self._deadline - time.monotonic()
                if traffic.is_flooded or traffic.has_ended or left <= 0:
                    break
                traffic.changed.wait(left)
            was_read = traffic.num_written == self._num_asked
        if traffic.is_flooded:
            reason = f"wrote more than the {traffic.longest} bytes that an answer may have"
        elif traffic.has_ended or self.process.poll() is not None:  # what it started may hold its output open
            reason = self._end_of_output()
        elif not was_read:
            reason = f"no answer within {self._timeout:g} s; it has stopped reading its input"
        else:
            reason = f"no answer within {self._timeout:g} s; it must print one line for each that it reads, and flush"
        raise self.refusal(reason)

    def _end_of_output(self) -> str:
        try:
            return f"ended with exit code {self.process.wait(timeout=1.0)}"
        except subprocess.TimeoutExpired:
            return "closed its output; it must stay open until the end of its input"

    def refusal(self, reason: str) -> ValueError:
        """The error that ends the exchange, with the end of what the program said on its standard error; kills it."""
        self.close()
        self._errors_read.join(timeout=0.5)  # something that left the group may hold it open
        with self._traffic.changed:
            errors = self._traffic.errors.decode("utf-8", "backslashreplace").strip()
        said = f"; its standard error ends:\n{errors}" if errors else ""
        return ValueError(f"{self.name}: {reason}{said}")

    def close(self) -> None:
        """Kill the program and all that it started in its session."""
        self._end()


def _kill(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone; macOS: all are gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines.put(None)


def _write(pipe: IO[bytes], lines: queue.SimpleQueue[bytes | None], traffic: _Traffic) -> None:
    with contextlib.closing(pipe):
        while (line := lines.get()) is not None:
            # a program that has ended shows at the end of its output
            with contextlib.suppress(BrokenPipeError):
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(pipe.fileno(), rest) :]
            with traffic.changed:
                traffic.num_written += 1
                traffic.changed.notify_all()


def _read_output(pipe: IO[bytes], traffic: _Traffic) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), CHUNK):
            with traffic.changed:
                traffic.unread += chunk
                traffic.is_flooded = len(traffic.unread) > traffic.longest
                traffic.changed.notify_all()
                if traffic.is_flooded:
                    return
    with traffic.changed:
        traffic.has_ended = True
        traffic.changed.notify_all()


def _read_errors(pipe: IO[bytes], traffic: _Traffic) -> None:
    """Pass the standard error on, and keep its end."""
    with pipe:
        while chunk := os.read(pipe.fileno(), CHUNK):
            with contextlib.suppress(OSError):
                os.write(2, chunk)
            with traffic.changed:
                traffic.errors += chunk
                del traffic.errors[:-ERRORS_KEPT]
