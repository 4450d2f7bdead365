"""Processes of this machine: are they there, whose are they, stopping one; waiting for something to happen."""

import os
import signal
import time
from pathlib import Path


def until(condition, what, seconds=300.0):
    """Wait for it; how long it took. The limit is for what never comes, on however busy a machine."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.02)
    return time.monotonic() - start


def is_alive(pid):
    """Whether a process is there, and no zombie."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def stop(process):
    """SIGSTOP to a child; it does nothing any more when this returns."""
    process.send_signal(signal.SIGSTOP)
    ended = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert ended.si_code == os.CLD_STOPPED, ended


def parent_of(pid):
    return int(_stat(pid)[1])


def _stat(pid):
    """State, parent, ...: what follows the name in /proc/PID/stat."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
