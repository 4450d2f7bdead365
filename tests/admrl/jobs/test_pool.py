"""Jobs in other processes: what is said when one of these is killed."""

import os
import signal

import pytest
from rich.console import Console

from admrl.jobs.pool import Job, WorkerDied, run_jobs


def killed(reporter):
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out


def test_a_process_that_was_killed_is_one_message():
    """It was a BrokenProcessPool, and on the command line a traceback."""
    with pytest.raises(WorkerDied, match=r"one of the processes was killed.*the same command goes on"):
        run_jobs([Job("job", killed, (), 1)], 1, Console(quiet=True))
