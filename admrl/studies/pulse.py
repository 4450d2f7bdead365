"""What an attempt says of itself, in a file of its own that it renews: who it is, that it lives, how it ended.

newest             the number of the newest attempt, by the driver, before it starts (`admrl.storage.fence`)
attempt-N.json     host, process, since when; after its end also the exit code
attempt-N.log      its output

Nobody else writes attempt-N.json, and no attempt begins twice. Whoever is killed renews it no longer: it is then
taken for dead after some seconds, or at once where the same host sees that the process is gone. Clocks of the hosts
that share a folder must agree within these seconds.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from admrl.storage.fence import end_group, newest_attempt

NEWEST = "newest"
RENEWALS = 12  # while a silent attempt is not given up
LENGTH = 400  # characters of the file, so that its end can be written over its beginning
SILENT = -1000  # in place of an exit code: no sign of life


class NotNewest(ValueError):
    """This attempt may not run; the message says why."""


class Pulse:
    """Of this process, the group that it leads, and the attempt that it is."""

    def __init__(self, folder: Path, number: int, seconds: float) -> None:
        """
        Raises:
            NotNewest: a newer attempt was started, or this one was.
            OSError: its file cannot be written.
        """
        self.file, self.newest = folder / f"attempt-{number}.json", folder / NEWEST
        self._folder, self._number, self._seconds = folder, number, seconds
        self._who = {
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": seconds,
        }
        if (newest := newest_attempt(self.newest)) > number:
            raise NotNewest(f"attempt {number} comes too late: attempt {newest} was started")
        try:
            with open(self.file, "x", encoding="utf-8") as file:
                file.write(self._text(None))
        except FileExistsError:
            raise NotNewest(f"attempt {number} of this job was started before") from None
        self._ended = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def wait_for_older(self) -> None:
        """Until no older attempt lives: the driver has given them up, they may not know it yet."""
        for number in range(1, self._number):
            while (older := read_pulse(self._folder, number)) is not None and older.exit_code is None:
                time.sleep(self._seconds / RENEWALS / 4)

    def end(self, exit_code: int) -> None:
        """Say how it ended; in place, which a full disk allows."""
        self._ended.set()
        try:
            with open(self.file, "r+", encoding="utf-8") as file:
                file.write(self._text(exit_code))
        except OSError:  # the folder is out of reach: who started the process knows its exit code
            return

    def _text(self, exit_code: int | None) -> str:
        return json.dumps(self._who | {"exit_code": exit_code}).ljust(LENGTH)

    def _renew(self) -> None:
        """Whoever is given up, or cannot know whether he is, ends at once."""
        renewed = time.monotonic()
        while not self._ended.wait(self._seconds / RENEWALS):
            try:
                os.utime(self.file)
                if newest_attempt(self.newest) > self._number:
                    end_group()
                renewed = time.monotonic()
            except OSError:
                if time.monotonic() - renewed > self._seconds:
                    end_group()


class Seen(NamedTuple):  # no dataclass: they take long to import, and every attempt imports this page
    """An attempt, from outside."""

    who: str
    """For messages."""
    host: str
    exit_code: int | None
    """None: it runs; negative: killed by that signal; `SILENT`: given up."""
    age: float
    """Seconds since its last sign of life."""


def read_pulse(folder: Path, number: int) -> Seen | None:
    """How an attempt is; None: it has not begun, or its file is damaged."""
    file = folder / f"attempt-{number}.json"
    try:
        who = json.loads(file.read_bytes())
        age = time.time() - file.stat().st_mtime
        host, pid, since = str(who["host"])[:100], int(who["pid"]), str(who["since"])[:30]
        seconds, exit_code = float(who["seconds"]), who.get("exit_code")
        exit_code = None if exit_code is None else int(exit_code)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if exit_code is None:
        if host == os.uname().nodename and not is_alive(pid):
            exit_code = -signal.SIGKILL
        elif age > seconds:
            exit_code = SILENT
    return Seen(f"process {pid} on {host!r} (since {since})", host, exit_code, age)


def is_alive(pid: int) -> bool:
    """Whether a process of this host is there, if only as somebody else's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
