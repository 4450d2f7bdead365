"""Training into a run folder: what happens is written down, and a checkpoint is never far behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from admrl.checkpoints import Checkpoint
from admrl.config import MetaTrainConfig, check_saving
from admrl.files import DamagedFileError
from admrl.interruption import check_interruption, interruption
from admrl.meta_state import MetaState, new_state
from admrl.meta_training import meta_train
from admrl.reporting import Reporter
from admrl.run_lock import RunLock
from admrl.run_log import METRICS, LogPosition, RunLog
from admrl.run_store import (
    Run,
    RunInfo,
    check_seed,
    create_run,
    open_run,
    save_records,
    save_state,
    versions,
)
from admrl.state_file import plain_number
from admrl.task_progress import num_steps_left
from task_families.registry import make

CHECKPOINT_SECONDS, KEEP_CHECKPOINTS = 30.0, 3
MAX_COST = 0.01  # share of the time that checkpoints between the ends of phases may take


def prepare_run(
    path: Path,
    *,
    family: str,
    variant: str,
    selector: str,
    preset: str,
    seed: int,
    config: MetaTrainConfig,
) -> Run:
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
        StorageError: the folder cannot be written.
    """
    check_seed(seed)
    made = make(family, variant=variant)
    state = new_state(made, selector, config, seed)
    info = RunInfo(made.name, variant, selector, preset, seed, config, versions())
    create_run(path, info)
    return Run(path, info, made, state)


def resume_run(path: Path) -> Run:
    """A run folder to write into, at its newest sound checkpoint or at the beginning if it has none.

    Raises:
        ValueError: not a run folder, damaged files, or another process writes there.
    """
    if not path.is_dir():
        return open_run(path)  # says what is wrong
    lock = RunLock(path)
    try:
        return open_run(path, lock=lock)
    except BaseException:
        lock.release()
        raise


def train_run(
    run: Run,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
) -> None:
    """Train until the run is finished, saving after every phase and between steps.

    Args:
        checkpoint_seconds: time between two checkpoints of one phase, longer where saving is slow; 0: every step.

    Raises:
        ValueError: another process writes into the folder.
        StorageError: a file cannot be written; says which checkpoint is good.
        Interrupted: a signal came (`admrl.interruption`), and the present state is saved.
    """
    check_saving(checkpoint_seconds, keep_checkpoints)
    with writing(run, reporter, keep_checkpoints) as log:
        if run.checkpoint is not None:
            save_records(run)  # it may have been killed between the two
        saver = Saver(run, log, checkpoint_seconds)
        meta_train(
            run.family,
            run.state,
            run.info.config,
            num_threads=num_threads,
            reporter=log,
            on_step=saver.after_step,
            on_phase=saver.after_phase,
            on_task=lambda _: save_records(run),
        )


@contextmanager
def writing(
    run: Any, reporter: Reporter, keep_checkpoints: int, *, columns: tuple[str, ...] = METRICS
) -> Iterator[RunLog]:
    """The log of a run of any kind, whose lock is held inside and released at the end.

    Raises:
        ValueError: another process writes into the folder, or has done so since the run was opened.
    """
    run.store.keep = keep_checkpoints
    if run.lock is None:
        run.lock = RunLock(run.path)
    try:
        loaded = [run.checkpoint.number] if run.checkpoint else []
        if run.store.numbers()[-1:] != loaded:
            raise ValueError(f"{run.path}: another process has trained it meanwhile; load it again")
        with RunLog(run.path, reporter, log_position(run.checkpoint), columns=columns) as log:
            for note in run.notes:
                log.event(note)
            if run.checkpoint is not None:
                log.event(f"going on from checkpoint {run.checkpoint.number}")
            yield log
    finally:
        run.lock.release()
        run.lock = None


class Saver:
    """Decides when a checkpoint is due."""

    def __init__(self, run: Any, log: RunLog, every: float, save: Callable[..., None] = save_state) -> None:
        """save: writes a checkpoint of the run, with the log's position beside it."""
        self._run, self._log, self._every, self._save = run, log, every, save
        self._last, self._cost = time.monotonic(), 0.0
        self.seconds = 0.0  # spent on saving, in all

    def after_step(self, state: Any) -> None:
        """Save if it is time, or if a signal has come; then stop."""
        wait = max(self._every, self._cost / MAX_COST) if self._every else 0.0
        if interruption() is not None or time.monotonic() - self._last >= wait:
            self.save()
        check_interruption()

    def after_phase(self, state: MetaState) -> None:
        """Always save: a crash never costs more than the phase."""
        self.save()
        if not self._run.finished:
            check_interruption()

    def save(self) -> None:
        """Write a checkpoint."""
        started = time.monotonic()
        self._save(self._run, log=self._log.position().to_dict())
        self._last = time.monotonic()
        self._cost = self._last - started
        self.seconds += self._cost


def log_position(checkpoint: Checkpoint | None) -> LogPosition | None:
    """Where the log stood at a checkpoint.

    Raises:
        DamagedFileError: the checkpoint does not say it in numbers.
    """
    if checkpoint is None or "log" not in checkpoint.meta:
        return None
    try:
        log = checkpoint.meta["log"]
        size, num_rows = (int(plain_number(log[name], name)) for name in ("size", "num_rows"))
        return LogPosition(max(size, 0), max(num_rows, 0), plain_number(log["seconds"], "seconds"))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"checkpoint {checkpoint.number}: its log position: {error}") from error


def train_job(path: Path, reporter: Reporter) -> None:
    """`train_run` of a run folder, in another process."""
    train_run(resume_run(path), reporter)


def num_train_steps(config: MetaTrainConfig, num_tasks_done: int = 0) -> int:
    """Steps of the tasks that are left, for progress bars."""
    return num_steps_left(config, num_tasks_done, None)


def steps_left(run: Run) -> int:
    """Steps that a run still has to do, for progress bars."""
    return num_steps_left(run.info.config, len(run.state.records), run.state.progress)
