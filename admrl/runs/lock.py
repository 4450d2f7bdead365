"""One writer for each run folder.

The operating system holds the lock (`.lock`) and frees it when its process ends, however it ends: a killed process
leaves no lock behind. `lock.json` beside it says who has it, for the others.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from admrl.storage.files import parse_json, remove_unfinished, storage_error, write_json

LOCK, HOLDER = ".lock", "lock.json"


class RunLock:
    """Held from its making until `release`."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: another process writes there (names it), or nobody can.
            StorageError: see `write_bytes`.
        """
        self.note: str | None = None  # what was found, if the last holder died
        self._folder = folder
        self._lock = FileLock(folder / LOCK, blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{folder} is in use: {_holder(folder)} writes there; wait until it ends, or end it"
            ) from None
        except OSError as error:
            raise ValueError(f"{folder}: {storage_error(folder / LOCK, error)}") from error
        try:
            if (folder / HOLDER).exists():
                self.note = f"{_holder(folder)} ended without releasing the folder"
            for place in (folder, *(p for p in folder.iterdir() if p.is_dir())):
                remove_unfinished(place)
            who = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            write_json(folder / HOLDER, who)
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others write; releasing twice does nothing."""
        if self._lock.is_locked:
            (self._folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()


def _holder(folder: Path) -> str:
    """Whoever lock.json names."""
    try:
        who = parse_json((folder / HOLDER).read_bytes())
        return f"process {int(who['pid'])} on {str(who['host'])[:100]!r} (since {str(who['since'])[:30]})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
