"""Small runs in processes of their own, and how to tell whether two runs are the same, bit for bit."""

import csv
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import torch

from admrl.config.presets import PRESETS
from admrl.config.search import SearchConfig
from admrl.config.training import (
    DynamicsConfig,
    ResolveConfig,
    SlboConfig,
    TaskGradientConfig,
    VirtualTrainingConfig,
)
from admrl.jobs.reporter import Silent
from admrl.runs.folder import create_run
from admrl.storage.sealed_file import read_sealed
from admrl.training.run import Run, TrainInfo, train_run
from admrl.training.state_file import dump_state

SMALL = replace(
    PRESETS["smoke"],
    num_tasks=3,
    num_zero_shot=2,
    slbo=SlboConfig(num_stages=2, num_iterations=2, num_samples=200),
    virtual=VirtualTrainingConfig(num_model_steps=5, num_policy_updates=2, num_samples=400),
    dynamics=DynamicsConfig(hidden_sizes=(16,), num_members=2),
    gradient=TaskGradientConfig(
        num_samples=800,
        num_extra_episodes=2,
        resolve=ResolveConfig(num_updates=1, num_replicates=2, num_virtual_episodes=1),
    ),
    search=SearchConfig(num_candidates=4, num_screen_updates=2, num_screen_samples=400, num_corrected=1),
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fault_tools", "mujoco", "tensorboard.compat.proto.event_pb2"])


def small_run(path: Path, family: str = "linear_quadratic", config=SMALL, selector="adversarial") -> Path:
    """A run folder with nothing done."""
    create_run(path, TrainInfo(family, "released", selector, "smoke", 3, config, {}))
    return path


def train(path: Path, every: float = 0.0, reporter=None) -> None:
    """Train a run folder to its end, in this process; a checkpoint every so many seconds, 0: after every step."""
    torch.set_num_threads(1)
    train_run(Run.resume(path), reporter or Silent(), checkpoint_seconds=every)


def start(path: Path, every: float = 0.0):
    """`train` in another process."""
    process = CONTEXT.Process(target=train, args=(path, every))
    process.start()
    return process


def kill_after(path: Path, seconds: float, every: float = 0.0) -> bool:
    """Train in another process and kill it -9; whether it was still running."""
    process = start(path, every)
    process.join(seconds)
    was_running = process.is_alive()
    process.kill()
    process.join()
    process.close()
    return was_running


def timed(path: Path, every: float = 0.0) -> float:
    """Train to the end in another process; the seconds that it took."""
    started = time.monotonic()
    process = start(path, every)
    process.join(300)
    assert process.exitcode == 0
    return time.monotonic() - started


def fingerprint(path: Path) -> dict:
    """Everything that a run has learned and written down, but for clock times."""
    run = Run.open(path)
    tensors, meta, rows = dump_state(run.state)
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        metrics = [[cell for i, cell in enumerate(row) if i != 2] for row in csv.reader(file)]
    return {
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "rows": {name: tensor.numpy().tobytes() for name, tensor in rows.items()},
        "meta": meta,
        "metrics": metrics,
        "tasks": (path / "tasks.json").read_text(),
    }


def assert_same_run(one: dict, other: dict) -> None:
    """Bit for bit; says what differs."""
    for part in one:
        if isinstance(one[part], dict) and part != "meta":
            differ = [
                k for k in one[part].keys() | other[part].keys() if one[part].get(k) != other[part].get(k)
            ]
            assert not differ, f"{part}: {differ}"
        assert one[part] == other[part], part


def assert_all_readable(path: Path) -> int:
    """No file of the run is half a file; the number of files that were read."""
    files = [*path.glob("checkpoints/*.ckpt"), *path.glob("replay/*.ckpt")]
    for file in files:
        read_sealed(file)
    return len(files)
