"""Commands on the stand-in device: its name is known, and jobs run in this process, where the device is."""

from dataclasses import replace
from functools import partial

import pytest
import stand_in_device  # before anything is differentiated: torch counts the devices once
import torch
from command_tools import run_command
from fault_tools import SMALL

import admrl.training.run
from admrl.commands.train import Train
from admrl.config.training import ResolveConfig, SlboConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.devices.names import AVAILABLE
from admrl.jobs.reporter import Silent
from admrl.training.state import new_state

TINY = replace(
    SMALL,
    num_tasks=2,
    num_zero_shot=1,
    slbo=SlboConfig(num_stages=1, num_iterations=1, num_samples=100),
    virtual=VirtualTrainingConfig(num_model_steps=5, num_policy_updates=2, num_samples=200),
    gradient=TaskGradientConfig(
        num_samples=400,
        num_extra_episodes=2,
        resolve=ResolveConfig(num_updates=1, num_replicates=2, num_virtual_episodes=1),
    ),
    search=replace(SMALL.search, num_screen_samples=200, num_screen_updates=1, num_probe_samples=200),
)
"""Of two tasks, each with every phase."""


@pytest.fixture
def standin(monkeypatch):
    """The stand-in among the devices of this machine, and its module."""
    monkeypatch.setitem(AVAILABLE, stand_in_device.NAME, lambda: 1)
    return stand_in_device


def run_jobs_here(jobs, num_workers, console):
    """`admrl.jobs.pool.run_jobs` without processes: workers would not know the stand-in."""
    return [job.function(*job.arguments, Silent()) for job in jobs]


@pytest.fixture(scope="module")
def double():
    """Runs are in double precision: in single precision whole trainings enlarge rounding to per cents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admrl.training.run, "new_state", partial(new_state, dtype=torch.float64))
        yield


def train(path, device="cpu", config=TINY, selector="adversarial", **options):
    """A run of `admrl train`."""
    family, preset = "linear_quadratic", "smoke"
    run_command(Train(family, selector, preset, out=path, config=config, device=device, **options))
    return path
