"""A lease: a file that says who works at something, and that is renewed as long as he does.

Whoever is killed renews it no longer; it then runs out after `SECONDS`, or at once where the same host sees that the
process is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from filelock import FileLock

from admrl.storage.files import parse_json, storage_error, write_json

SECONDS, RENEWED_EVERY = 60.0, 5.0


class LeaseTaken(ValueError):
    """Somebody else has it; the message says who."""


class Lease:
    """Held, and renewed by a thread of its own, from its making until `release`."""

    def __init__(self, file: Path) -> None:
        """
        Raises:
            LeaseTaken: it is another's, and has not run out.
            StorageError: it cannot be written.
        """
        self._file, self._ended = file, threading.Event()
        try:
            with FileLock(file.with_suffix(".lock")):  # between looking and taking, nobody else does
                if (holder := holder_of(file)) is not None:
                    raise LeaseTaken(holder)
                who = {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                }
                write_json(file, who)
        except OSError as error:
            raise storage_error(file, error) from error
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        """Let others work; releasing twice does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            self._file.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            try:
                os.utime(self._file)
            except OSError:  # gone or unreachable for a moment: it runs out unless a later try succeeds
                continue


def holder_of(file: Path) -> str | None:
    """Who has the lease of a file, for messages; None: nobody, or it has run out."""
    try:
        age = time.time() - file.stat().st_mtime
        who = parse_json(file.read_bytes())
        host, pid, since = str(who["host"])[:100], int(who["pid"]), str(who["since"])[:30]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if age > SECONDS or (host == socket.gethostname() and not _is_alive(pid)):
        return None
    return f"process {pid} on {host!r} (since {since})"


def _is_alive(pid: int) -> bool:
    """Whether a process of this host is there, if only as somebody else's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
