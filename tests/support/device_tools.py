"""Commands on the stand-in device: its name is known, and jobs run in this process, where the device is."""

import pytest
import stand_in_device  # before anything is differentiated: torch counts the devices once

from admrl.devices.names import AVAILABLE
from admrl.jobs.reporter import Silent


@pytest.fixture
def standin(monkeypatch):
    """The stand-in among the devices of this machine, and its module."""
    monkeypatch.setitem(AVAILABLE, stand_in_device.NAME, lambda: 1)
    return stand_in_device


def run_jobs_here(jobs, num_workers, console):
    """`admrl.jobs.pool.run_jobs` without processes: workers would not know the stand-in."""
    return [job.function(*job.arguments, Silent()) for job in jobs]
