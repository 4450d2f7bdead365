"""The lease of a study's driver: a file that says who drives, and that is renewed as long as he does.

Whoever is killed renews it no longer; it then runs out after `SECONDS`, or at once where the same host sees that the
process is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from admrl.storage.files import parse_json, storage_error, write_json
from admrl.studies.pulse import is_alive

SECONDS, RENEWED_EVERY = 60.0, 5.0


class LeaseTaken(ValueError):
    """Somebody else has it; the message says who."""


class Lease:
    """Held, and renewed by a thread of its own, from its making until `release`.

    A process that was asleep for so long that another one has taken its lease ends at once.
    """

    def __init__(self, file: Path) -> None:
        """
        Raises:
            LeaseTaken: it is another's, and has not run out.
            StorageError: it cannot be written.
        """
        self._file, self._ended = file, threading.Event()
        self._lock = FileLock(file.with_suffix(".lock"))
        self._who = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            with self._lock:  # between looking and taking, nobody else does
                if (holder := holder_of(file)) is not None:
                    raise LeaseTaken(holder)
                write_json(file, self._who)
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
                with self._lock:
                    there = _read(self._file)
                    if self._ended.is_set():  # asked after reading: once it is released, others may take it
                        return
                    if there is not None and there != self._who:
                        print(
                            f"error: {self._file} is held by {_named(there)} by now",
                            file=sys.stderr,
                            flush=True,
                        )
                        os._exit(1)
                    os.utime(self._file)
            except OSError:  # unreachable for a moment: it runs out unless a later try succeeds
                continue


def holder_of(file: Path) -> str | None:
    """Who has the lease of a file, for messages; None: nobody, or it has run out."""
    who = _read(file)
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return None
    if who is None or age > SECONDS or (who["host"] == socket.gethostname() and not is_alive(who["pid"])):
        return None
    return _named(who)


def _read(file: Path) -> dict[str, Any] | None:
    """What a lease says; None: there is none, or it is damaged."""
    try:
        who = parse_json(file.read_bytes())
        return {"host": str(who["host"]), "pid": int(who["pid"]), "since": str(who["since"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _named(who: dict[str, Any]) -> str:
    return f"process {who['pid']} on {who['host'][:100]!r} (since {who['since'][:30]})"
