"""Small runs in processes of their own, and how to tell whether two runs are the same, bit for bit."""

import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from process_tools import until

from admrl.config.evaluation import EvaluationConfig
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
from admrl.runs.config_file import create_run
from admrl.runs.lock import RunLock
from admrl.runs.versions import versions
from admrl.storage.files import StorageError
from admrl.storage.sealed_file import read_sealed
from admrl.training.run import Run, TrainInfo, train_run
from admrl.training.state_file import dump_state

FULL = pytest.mark.faults
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
EVALUATION = EvaluationConfig(
    num_policy_seeds=2,
    num_episodes=2,
    num_updates=3,
    num_samples=400,
    num_reference_stages=2,
    num_reference_samples=200,
    num_reference_updates=2,
)
CONTEXT = multiprocessing.get_context("forkserver")
# not this module: the server's path is not ours, and what it cannot import it leaves out without a word
PRELOADED = [
    "admrl.training.run",
    "admrl.run_kinds",
    "mujoco",
    "pytest",
    "tensorboard.compat.proto.event_pb2",
]
CONTEXT.set_forkserver_preload(PRELOADED)


class SignalAt(Silent):
    """Sends this process a signal while a step is being done; records what is reported."""

    def __init__(self, step, signum=signal.SIGTERM):
        self.step, self.signum, self.num_steps, self.events = step, signum, 0, []

    def advance(self, **metrics):
        self.num_steps += 1
        if self.num_steps == self.step:
            os.kill(os.getpid(), self.signum)

    def event(self, message):
        self.events.append(message)


def small_run(path: Path, family: str = "linear_quadratic", config=SMALL, selector="adversarial") -> Path:
    """A run folder with nothing done."""
    create_run(path, TrainInfo(family, "released", selector, "smoke", 3, config, versions()))
    return path


def train(path: Path, every: float = 0.0, reporter=None) -> None:
    """Train a run folder to its end, in this process; a checkpoint every so many seconds, 0: after every step."""
    torch.set_num_threads(1)
    train_run(Run.resume(path), reporter or Silent(), checkpoint_seconds=every)


def start(path: Path, every: float = 0.0, reporter=None):
    """`train` in another process."""
    process = CONTEXT.Process(target=train, args=(path, every, reporter))
    process.start()
    return process


def kill_at(path: Path, step: int, every: float = 0.0) -> bool:
    """Train in another process that kills itself -9 while a step is being done; False: it has ended before."""
    process = start(path, every, SignalAt(step, signal.SIGKILL))
    process.join(300)
    exitcode = process.exitcode
    assert exitcode in (0, -signal.SIGKILL), exitcode
    process.close()
    return exitcode != 0


HELD = """\
import itertools, signal, sys
from admrl.runs.saver import Saver

saves, save = itertools.count(1), Saver.save

def held(saver):
    save(saver)
    while next(saves) >= {last}:
        signal.pause()

Saver.save = held
sys.argv = {words}
from admrl.cli import main
main()
"""
"""A command line that trains until it has saved so often, and then waits."""


def kill_command(words, path: Path, last: int = 20, **options) -> None:
    """Start `admrl WORDS`, which trains into a folder, and kill it -9 in whatever instant from its second checkpoint
    on. It cannot have ended by then, as it waits once it has saved `last` times."""
    code = HELD.format(last=last, words=["admrl", *map(str, words), "--checkpoint-seconds", "0"])
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, **options)
    try:
        until(lambda: process.poll() is not None or num_checkpoints(path) > 1, "two checkpoints")
        assert process.poll() is None, "it has ended"
    finally:
        process.kill()
        process.wait()


def num_checkpoints(path: Path) -> int:
    """That are there now, older ones have been deleted."""
    return len(list(path.glob("checkpoints/*.ckpt")))


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


def save_in_a_loop(path: Path) -> None:
    """In a process that is killed: save a finished run again and again."""
    run = Run.resume(path)
    while True:
        run.save()


def train_with_small_files(path: Path, num_bytes: int) -> None:
    """In a process of its own: train where no file may be larger; ends with 7 if that is a clear error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    try:
        train(path)
    except StorageError as error:
        assert "cannot write" in str(error) and "File too large" in str(error)
        os._exit(7)


def hold_lock(path: Path, ready) -> None:
    """In a process that is killed: be the writer of a run."""
    lock = RunLock(path)
    ready.set()
    signal.pause()
    lock.release()


def race_for_lock(path: Path, go, done, answers) -> None:
    """In several processes: try to be the writer, all at once, answer whether it worked."""
    go.wait()
    try:
        lock = RunLock(path)
    except ValueError:
        answers.put(False)
    else:
        answers.put(True)
        done.wait(300)  # until everybody has tried
        lock.release()


class Memory(Silent):
    """Resident memory at the beginning of every task, in bytes."""

    def __init__(self):
        self.sizes = []

    def phase(self, name):
        if "zero-shot" in name:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))


def measure_memory(path: Path, answers) -> None:
    """In a process of its own: train, answer the memory at every task and the number of open files."""
    memory = Memory()
    train(path, every=30.0, reporter=memory)
    answers.put((memory.sizes, len(os.listdir("/proc/self/fd"))))


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
