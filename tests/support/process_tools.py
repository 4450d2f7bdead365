"""Processes of this machine that others have started: are they there, whose are they; waiting for something."""

import time
from pathlib import Path


def until(condition, what, seconds=60.0):
    """Wait for it; how long it took."""
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


def parent_of(pid):
    return int(_stat(pid)[1])


def _stat(pid):
    """State, parent, ...: what follows the name in /proc/PID/stat."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
