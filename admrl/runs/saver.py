"""When a checkpoint is due, and the log beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from admrl.jobs.interruption import check_interruption, interruption
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.folder import RunFolder
from admrl.runs.lock import RunLock
from admrl.runs.log import LogPosition, RunLog
from admrl.storage.files import DamagedFileError, plain_number

CHECKPOINT_SECONDS, KEEP_CHECKPOINTS = 30.0, 3
MAX_COST = 0.01  # share of the time that checkpoints between the ends of phases may take


@contextmanager
def writing(
    run: RunFolder,
    reporter: Reporter,
    keep_checkpoints: int,
    *,
    columns: tuple[str, ...],
    trackers: Sequence[str] = (),
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
        with RunLog(
            run.path,
            reporter,
            log_position(run.checkpoint),
            columns=columns,
            trackers=trackers,
            settings=asdict(run.info),
        ) as log:
            for note in run.notes:
                log.event(note)
            if run.checkpoint is not None:
                log.event(f"going on from checkpoint {run.checkpoint.number}")
            yield log
    finally:
        run.release()


class Saver:
    """Decides when a checkpoint is due."""

    def __init__(self, run: RunFolder, log: RunLog, every: float) -> None:
        """every: seconds between two checkpoints of one phase; 0: every step."""
        self._run, self._log, self._every = run, log, every
        self._last, self._cost = time.monotonic(), 0.0
        self.seconds = 0.0  # spent on saving, in all

    def after_step(self, state: Any) -> None:
        """Save if it is time, or if a signal has come; then stop."""
        wait = max(self._every, self._cost / MAX_COST) if self._every else 0.0
        if interruption() is not None or time.monotonic() - self._last >= wait:
            self.save()
        check_interruption()

    def after_phase(self, state: Any) -> None:
        """Always save: a crash never costs more than the phase."""
        self.save()
        if not self._run.finished:
            check_interruption()

    def save(self) -> None:
        """Write a checkpoint."""
        started = time.monotonic()
        self._run.save(log=self._log.position().to_dict())
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
