"""What has been done of a study, in its folder; only the one who drives the study writes.

study.json              the study's name
driver.json             lease of the one who drives it
jobs/JOB/record.json    settings, newest attempt, how it ended, which results of other jobs it was made from

and beside it what the attempts say of themselves, see `admrl.studies.pulse`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from admrl.storage.files import (
    TEMPORARY,
    expect,
    make_folder,
    parse_json,
    plain_count,
    plain_number,
    remove_unfinished,
    storage_error,
    write_json,
    write_text,
)
from admrl.studies.engine import Attempt
from admrl.studies.graph import Job
from admrl.studies.lease import Lease, LeaseTaken, holder_of
from admrl.studies.pulse import NEWEST, Seen, read_pulse

STUDY, DRIVER, RECORD = "study.json", "driver.json", "record.json"
RUNNING, DONE, FAILED, INTERRUPTED, DISCARDED = "running", "done", "failed", "interrupted", "discarded"
WAITING, OUTDATED, LOST, CHANGED = "waiting", "outdated", "lost", "changed"
STATES = (DONE, RUNNING, WAITING, OUTDATED, LOST, INTERRUPTED, FAILED, CHANGED)


@dataclass(frozen=True)
class Record:
    """What is known of a job: its newest attempt."""

    settings: tuple[str, ...] = ()
    attempt: int = 0
    state: str = DISCARDED
    """Running, done, failed, interrupted, or discarded: there is no result and none is being made."""
    started: float = 0.0
    ended: float = 0.0
    """Seconds since 1970; when it is done, also what tells its result from others."""
    exit_code: int = 0
    trainings: tuple[str, ...] = ()
    needs: dict[str, float] = field(default_factory=dict)
    """`ended` of the jobs that it needed, when it was started."""

    @property
    def seconds(self) -> float:
        """How long the attempt took, or has taken by now."""
        return (time.time() if self.state == RUNNING else self.ended) - self.started


class Store:
    """The folder of a study."""

    def __init__(self, folder: Path, name: str, silence: float = 60.0) -> None:
        """
        Args:
            silence: seconds; an attempt that shows no sign of life for so long is given up.

        Raises:
            ValueError: the folder holds another study, or something else.
        """
        self.folder, self.name, self._silence = folder, name, silence
        self._check_study()

    def drive(self) -> Lease:
        """Make the folder, if need be, and become the one who writes there; the caller releases the lease.

        Raises:
            ValueError: another process drives this study.
            StorageError: the folder cannot be written.
        """
        make_folder(self.folder)
        try:
            lease = Lease(self.folder / DRIVER)
        except LeaseTaken as holder:
            raise ValueError(
                f"{self.folder} is in use: {holder} drives the study there; wait until it ends, or end it. Its "
                "progress: admrl study FILE --status"
            ) from None
        try:
            self._check_study()  # another one may have been faster
            remove_unfinished(self.folder)
            if not (self.folder / STUDY).exists():
                write_json(self.folder / STUDY, {"study": self.name})
        except BaseException:
            lease.release()
            raise
        return lease

    def records(self, jobs: Iterable[Job]) -> dict[str, Record]:
        """What is known of the jobs, by name; an empty record where nothing is.

        Raises:
            ValueError: a damaged file; names it.
        """
        return {job.name: self._read(job.name) for job in jobs}

    def begin(
        self, job: Job, record: Record, records: Mapping[str, Record], num_processes: int = 1
    ) -> Attempt:
        """The next attempt of a job, on record; from now on no older one writes anything.

        Raises:
            StorageError: it cannot be written.
        """
        place = self._place(job.name)
        number = record.attempt + 1
        while (
            place / f"attempt-{number}.json"
        ).exists():  # after a power failure the record may be an older one
            number += 1
        new = Record(
            job.settings,
            number,
            RUNNING,
            started=time.time(),
            trainings=job.trainings,
            needs={name: records[name].ended for name in job.needs},
        )
        self.write(job.name, new)
        write_text(place / NEWEST, str(new.attempt), flush=False)
        words = job.command(num_processes)
        return Attempt(job.name, new.attempt, words, place, self._silence, num_processes)

    def write(self, job: str, record: Record) -> None:
        """Put a record in place; how an attempt ended survives a power failure.

        Raises:
            StorageError: it cannot be written.
        """
        make_folder(self._place(job))
        write_json(self._place(job) / RECORD, asdict(record), flush=record.state != RUNNING)

    def discard(self, job: Job) -> None:
        """Delete what a job has made. Its logs stay.

        Raises:
            ValueError: an attempt of it is running.
            StorageError: a file cannot be deleted.
        """
        record = self._read(job.name)
        if (seen := self.seen(job.name, record)) is not None and seen.exit_code is None:
            raise ValueError(f"{job.name} is running: {seen.who}; wait until it ends")
        self.write(job.name, Record(attempt=record.attempt))
        for path in (*job.outputs, *job.work):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error

    def seen(self, job: str, record: Record) -> Seen | None:
        """What the newest attempt of a job says of itself; None: it has not begun."""
        return read_pulse(self._place(job), record.attempt)

    def log(self, job: str, attempt: int) -> Path:
        """The output of an attempt."""
        return self._place(job) / f"attempt-{attempt}.log"

    def states(self, jobs: Sequence[Job], records: Mapping[str, Record]) -> dict[str, str]:
        """The state of each job, one of `STATES`, as far as its newest attempt tells.

        Args:
            jobs: each after those that it needs.
        """
        states: dict[str, str] = {}
        for job in jobs:
            states[job.name] = self._state(job, records, states)
        return states

    @property
    def is_driven(self) -> bool:
        """Whether somebody drives the study: what seems lost may then be starting."""
        return holder_of(self.folder / DRIVER) is not None

    def strangers(self, jobs: Sequence[Job]) -> list[str]:
        """Jobs that have a record and are no longer in the study."""
        known, root = {job.name for job in jobs}, self.folder / "jobs"
        found = sorted(file.parent.relative_to(root).as_posix() for file in root.glob(f"*/*/{RECORD}"))
        return [name for name in found if name not in known]

    def _state(self, job: Job, records: Mapping[str, Record], states: Mapping[str, str]) -> str:
        record = records[job.name]
        if record.state == DISCARDED:
            return WAITING
        if record.settings != job.settings or not set(record.trainings) <= set(job.trainings):
            return CHANGED if any(path.exists() for path in (*job.outputs, *job.work)) else WAITING
        if record.state == RUNNING:
            seen = self.seen(job.name, record)
            return RUNNING if seen is not None and seen.exit_code is None else LOST
        if record.state != DONE:
            return record.state
        is_new = all(
            states[name] == DONE and record.needs.get(name) == records[name].ended for name in job.needs
        )
        is_same = (set(record.trainings), record.needs.keys()) == (set(job.trainings), set(job.needs))
        is_there = all(path.exists() for path in job.outputs)
        return DONE if is_new and is_same and is_there else OUTDATED

    def _read(self, job: str) -> Record:
        file = self._place(job) / RECORD
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
        try:
            return _record(parse_json(content))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}; remove it, and the job starts anew") from error

    def _place(self, job: str) -> Path:
        return self.folder / "jobs" / job

    def _check_study(self) -> None:
        file = self.folder / STUDY
        if not file.exists():
            if self.folder.exists() and (not self.folder.is_dir() or not self._is_empty()):
                raise ValueError(
                    f"folder: expected an empty folder or that of a study, got {self.folder}; nothing was changed. "
                    "Name another one in the file"
                )
            return
        try:
            there = str(parse_json(file.read_bytes())["study"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if there != self.name:
            raise ValueError(
                f"folder: {self.folder} holds the study {there!r:.60}, not {self.name!r}; nothing was changed. Name "
                f"another folder in the file, or the study: name = {there!r:.60}"
            )

    def _is_empty(self) -> bool:
        """But for what a driver writes first, and may be writing."""
        first = {STUDY, DRIVER, Path(DRIVER).with_suffix(".lock").name}
        return all(p.name in first or p.name.startswith(TEMPORARY) for p in self.folder.iterdir())


def _record(data: Any) -> Record:
    """A record of plain data, every value checked.

    Raises:
        ValueError, TypeError, KeyError: something does not fit.
    """
    return Record(
        settings=tuple(expect(word, str, "settings") for word in expect(data["settings"], list, "settings")),
        attempt=plain_count(data["attempt"], "attempt"),
        state=expect(data["state"], str, "state"),
        started=plain_number(data["started"], "started"),
        ended=plain_number(data["ended"], "ended"),
        exit_code=expect(data["exit_code"], int, "exit_code"),
        trainings=tuple(
            expect(word, str, "trainings") for word in expect(data["trainings"], list, "trainings")
        ),
        needs={
            name: plain_number(value, name) for name, value in expect(data["needs"], dict, "needs").items()
        },
    )
