"""A disk without room: a clear error from every kind of write, and training goes on once there is room."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from fault_tools import (
    CONTEXT,
    EVALUATION,
    FULL,
    SignalAt,
    assert_same_run,
    fingerprint,
    small_run,
    train,
    train_with_small_files,
)

from admrl.evaluation.evaluator import Adapted
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.part_store import PartStore
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.runs.config_file import create_run
from admrl.runs.lock import RunLock
from admrl.runs.log import RunLog
from admrl.storage.files import StorageError, write_bytes
from admrl.training.run import Run


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 4 MB, and a function that fills it to the last byte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip() or 'not root'}")

    def fill(leave=0):
        ballast = folder / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        if leave:
            os.truncate(ballast, ballast.stat().st_size - leave)
        return ballast

    yield folder, fill
    subprocess.run(["umount", str(folder)], check=True)


def tiny_table():
    return GapTable(
        "m",
        "f",
        "v",
        ("x",),
        ("m",),
        np.zeros((1, 1)),
        np.zeros(1, int),
        np.zeros((1, 1, 1, 2)),
        np.zeros(1),
        ("a",),
    )


def writers(folder, run, log):
    """Every kind of write, by name."""
    store = PartStore(run, EVALUATION, 0)
    part = Adapted(np.zeros((1, 1, 1, 2000)), np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 1)))

    def metrics():
        for _ in range(2000):
            log.advance(return_model=1.0)
        log.position()

    return {
        "checkpoint": lambda: run.save(),
        "tasks.json": lambda: run.save_records(),
        "metrics.csv": metrics,
        "events.jsonl": lambda: [log.event("x" * 200) for _ in range(100)],
        "evaluation": lambda: store.save([(0, 0)], 0, part),
        "gaps.json": lambda: tiny_table().save(run.path / "gaps.json"),
        "config.json": lambda: create_run(folder / "other", run.info),
        "lock": lambda: RunLock(folder / "other"),
        "figure": lambda: write_bytes(run.path / "gap.png", b"x" * 5000),
    }


def test_disk_full_in_every_kind_of_write_is_a_clear_error(tiny_disk, clean):
    folder, fill = tiny_disk
    path = shutil.copytree(clean()[0], folder / "run")
    (folder / "other").mkdir()
    run = Run.open(path)
    number, tasks = run.checkpoint.number, (path / "tasks.json").read_bytes()
    log = RunLog(run.path, Silent(), None, columns=())
    kinds = writers(folder, run, log)
    ballast = fill()
    for name, write in kinds.items():
        with pytest.raises(
            (StorageError, ValueError), match=r"cannot write .*(No space left|disk full)"
        ) as error:
            write()
        if name == "checkpoint":
            assert f"{number:06d}.ckpt" in str(error.value), "names the last good checkpoint"
    assert (path / "tasks.json").read_bytes() == tasks
    assert Run.open(path).checkpoint.number == number and Run.open(path).notes == []
    assert not list(path.rglob(".tmp-*"))
    ballast.unlink()
    with log:
        pass
    run.save()
    assert Run.open(path).checkpoint.number == number + 1


@pytest.mark.parametrize("kilobytes", [100, *(pytest.param(k, marks=FULL) for k in range(0, 600, 40))])
def test_disk_full_during_training_and_resuming_once_there_is_room(tiny_disk, clean, kilobytes):
    folder, fill = tiny_disk
    _, expected, _ = clean()
    path = small_run(folder / "run")
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(5))
    good = Run.open(path).checkpoint.number
    ballast = fill(leave=1024 * kilobytes)
    with pytest.raises((StorageError, ValueError), match="cannot write"):
        train(path)
    assert Run.open(path).checkpoint.number >= good and Run.open(path).notes == []
    ballast.unlink()
    train(path)
    assert_same_run(expected, fingerprint(path))


@pytest.mark.slow
def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path, clean):
    """No root needed: a write fails in the middle of a checkpoint."""
    _, expected, _ = clean()
    path = small_run(tmp_path / "run")
    for limit in (60_000, 130_000):  # the first checkpoint of all fails; one of a later task fails
        process = CONTEXT.Process(target=train_with_small_files, args=(path, limit))
        process.start()
        process.join(60)
        assert process.exitcode == 7
        assert Run.open(path).notes == [] and not list(path.rglob(".tmp-*"))
    train(path)
    assert_same_run(expected, fingerprint(path))
