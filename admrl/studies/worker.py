"""The process of an attempt: `python -m admrl.studies.worker LEASE PARENT MODULE ARGUMENTS...`

Runs MODULE as `python -m` does, under a lease that it renews. When the process that started it is gone, it interrupts
itself, as Ctrl-C would: a training saves and ends, and nobody goes on writing where another driver may start anew.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from admrl.studies.lease import Lease, LeaseTaken

LOOKED_EVERY = 1.0  # seconds


def main() -> None:
    """Run the module that the command line names; its exit code is ours."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs start with it ignored
    lease_file, parent, module, *arguments = sys.argv[1:]
    try:
        lease = Lease(Path(lease_file))
    except LeaseTaken as holder:
        sys.exit(f"error: another attempt of this job is running: {holder}")
    try:
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        lease.release()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKED_EVERY)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
