"""The process of an attempt: `python -m admrl.studies.worker FOLDER NUMBER SECONDS PARENT MODULE ARGUMENTS...`

Runs MODULE as `python -m` does, and says that it lives and how it ended (`admrl.studies.pulse`). When the process
that started it is gone, it interrupts itself, as Ctrl-C would: a training saves and ends, and nobody goes on writing
where another driver may start anew.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from admrl.storage.fence import set_fence
from admrl.studies.pulse import NotNewest, Pulse

LOOKED_EVERY = 1.0  # seconds


def main() -> None:
    """Run the module that the command line names; its exit code is ours."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs start with it ignored
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # what it starts ends with it
    folder, number, seconds, parent, module, *arguments = sys.argv[1:]
    try:
        pulse = Pulse(Path(folder), int(number), float(seconds))
    except NotNewest as error:
        sys.exit(f"error: {error}")
    exit_code = 1
    try:
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
        pulse.wait_for_older()
        set_fence(int(number), pulse.newest)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        exit_code = 128 + signal.SIGINT
        raise
    finally:
        pulse.end(exit_code)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKED_EVERY)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
