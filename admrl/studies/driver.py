"""Driving a study: every job is started once those that it needs are done, until nothing is left to do.

What is done stays done. An attempt that fails is repeated, three times at each start of the study, unless its command
refused what it was asked for; one that shows no sign of life is given up, and repeated, too; one that was
interrupted, or killed with its driver, goes on. What does not depend on a failed job goes on.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from admrl.jobs.interruption import Interrupted, interruption
from admrl.jobs.reporter import Reporter
from admrl.number_text import counted
from admrl.storage.files import make_folder, remove_unfinished
from admrl.studies.engine import Engine
from admrl.studies.graph import KINDS, Job
from admrl.studies.local import end_of
from admrl.studies.pulse import SILENT
from admrl.studies.store import CHANGED, DONE, FAILED, INTERRUPTED, LOST, RUNNING, Record, Store

MAX_FAILURES = 3
REFUSED = 2  # exit code of a command that was asked for what it cannot do
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of an attempt that was asked to stop: it goes on."""
LOOKED_EVERY, PULSES_EVERY = 0.01, 1.0  # seconds: at the engine; at what attempts say of themselves
AT_LEAST_EVERY = 0.2  # seconds: at the engine, which is looked at less often as long as nothing ends
LATE = 5.0  # seconds: the engine says nothing of an attempt that has ended


@dataclass(frozen=True)
class Failure:
    """A job that failed as often as it may."""

    job: str
    exit_code: int
    """Of the last attempt; negative: by that signal; or `admrl.studies.pulse.SILENT`."""
    log: str
    """Its file."""
    end: str
    """The last lines of it."""


@dataclass(frozen=True)
class Outcome:
    """What a start of a study came to."""

    states: dict[str, str]
    """By job, see `admrl.studies.store.STATES`."""
    failures: tuple[Failure, ...]


def check_unchanged(jobs: Sequence[Job], store: Store) -> None:
    """Refuse a study whose settings have changed since some of its jobs were begun, before anything is done.

    Raises:
        ValueError: names these jobs, what has changed, and the remedies.
    """
    records = store.records(jobs)
    states = store.states(jobs, records)
    changed = [job for job in jobs if states[job.name] == CHANGED]
    if not changed:
        return
    lines = [f"{job.name}: {_difference(_words(records[job.name]), _words(job))}" for job in changed]
    shown = [*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])]
    kinds = [kind for kind in KINDS if any(job.kind == kind for job in changed)]
    whole = {job.name for job in jobs if job.kind in kinds} == {job.name for job in changed}
    words = kinds if whole else [job.name for job in changed]
    raise ValueError(
        "expected the settings that the study was begun with, got others for:\n  "
        + "\n  ".join(shown)
        + "\nNothing was changed. Name another folder in the file, undo the change, or throw away what these jobs "
        f"made: admrl study FILE --discard {' '.join(words)}"
    )


class Driver:
    """Goes through the jobs of a study; whoever makes it holds the store's lease."""

    def __init__(
        self,
        jobs: Sequence[Job],
        store: Store,
        engine: Engine,
        *,
        num_workers: int,
        max_processes: int | None = None,
        wanted: set[str],
        reporter: Reporter,
        is_finished: Callable[[Job], bool],
    ) -> None:
        """
        Args:
            jobs: all of the study, each after those that it needs.
            num_workers: processes that run at the same time.
            max_processes: of one job; None: as many as are free.
            wanted: names of the jobs that may be started.
            reporter: is told of every job; one step each.
            is_finished: whether a training that was refused has nothing left to do: it was killed at its very end.
        """
        self._store, self._engine = store, engine
        self._num_workers, self._wanted = num_workers, wanted
        self._max_processes = max_processes or num_workers
        self._reporter, self._is_finished = reporter, is_finished
        self._records = store.records(jobs)
        self._states = store.states(jobs, self._records)
        self._running: dict[str, int] = {}  # job: its processes
        self._others = {
            name for name in wanted if self._states[name] == RUNNING
        }  # started by an earlier driver
        self._looked = time.monotonic()
        self._submitted: set[str] = set()
        self._unwritten: dict[str, Record] = {}  # how attempts ended, as long as others are started first
        self._num_failures: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._by_name = {job.name: job for job in jobs}
        self._left = {
            job.name: job
            for job in jobs
            if job.name in wanted and self._states[job.name] not in (DONE, CHANGED)
        }

    def run(self) -> Outcome:
        """Everything that can be done.

        Raises:
            Interrupted: a signal came, within `admrl.jobs.interruption.deferred_signals`; all attempts have stopped.
            StorageError: a file of the study cannot be written; running attempts are interrupted, too.
        """
        for name in self._wanted:
            if self._states[name] == DONE:
                self._reporter.advance()
            exit_code = self._exit_code(name) if self._states[name] == LOST else None
            if exit_code is not None and exit_code >= 0:  # it ended after its driver
                self._end(name, exit_code)
        try:
            self._loop()
        except BaseException:
            self._stop()
            raise
        num_done = sum(self._states[name] == DONE for name in self._wanted)
        self._reporter.phase(f"{num_done} of {counted(len(self._wanted), 'job')} done")
        return Outcome(self._states, tuple(self._failures))

    def _loop(self) -> None:
        self._start()
        self._write()
        pause = LOOKED_EVERY
        while self._running or self._others:
            if (signum := interruption()) is not None:
                raise Interrupted(signum=signum)
            ended = self._ended()
            for name, exit_code in ended.items():
                self._end(name, exit_code)
            if ended:
                self._start()
                self._write()
                pause = LOOKED_EVERY
            else:
                time.sleep(pause)
                pause = min(1.05 * pause, AT_LEAST_EVERY)

    def _ended(self) -> dict[str, int]:
        """Exit codes of attempts that have ended, also of those of which the engine says nothing, or that another
        driver has left."""
        ended = {name: code for name, code in self._engine.poll().items() if name in self._running}
        if ended or time.monotonic() - self._looked < PULSES_EVERY:
            return ended
        self._looked = time.monotonic()
        codes = {name: self._exit_code(name) for name in (*self._running, *self._others)}
        return {name: code for name, code in codes.items() if code is not None}

    def _exit_code(self, name: str) -> int | None:
        """What the newest attempt of a job says of its end; None: it runs, has not begun, or has only just ended."""
        seen = self._store.seen(name, self._records[name])
        if seen is None or (seen.age < LATE and name in self._running):
            return None
        return seen.exit_code

    def _start(self) -> None:
        """Start what can be started, in the order of the jobs."""
        for job in tuple(self._left.values()):
            free = self._num_workers - sum(self._running.values())
            if free < 1:
                return
            if not self._can_start(job):
                continue
            self._submit(job, min(free, job.max_workers or 1, self._max_processes))

    def _can_start(self, job: Job) -> bool:
        return (
            job.name not in self._running
            and self._states[job.name] != RUNNING
            and self._num_failures[job.name] < MAX_FAILURES
            and all(self._states[name] == DONE for name in job.needs)
        )

    def _submit(self, job: Job, num_workers: int) -> None:
        for path in job.outputs:
            make_folder(path.parent)
        if job.begun is not None and not job.begun.exists():
            remove_unfinished(job.begun.parent)  # of an attempt that was killed before it had begun
        self._unwritten.pop(job.name, None)
        attempt = self._store.begin(job, self._records[job.name], self._records, num_workers)
        self._records |= self._store.records([job])
        self._reporter.phase(job.name if attempt.number == 1 else f"{job.name}, attempt {attempt.number}")
        self._engine.submit(attempt)
        self._submitted.add(job.name)
        self._running[job.name], self._states[job.name] = num_workers, RUNNING

    def _end(self, name: str, exit_code: int) -> None:
        """Put on record how an attempt ended."""
        self._running.pop(name, None)
        self._others.discard(name)
        record = replace(self._records[name], ended=time.time(), exit_code=exit_code)
        if exit_code == 0 or (exit_code == REFUSED and self._was_finished(self._by_name[name])):
            self._put(name, replace(record, state=DONE))
        elif exit_code in STOPPED:
            self._put(name, replace(record, state=INTERRUPTED))
        else:
            self._put(name, replace(record, state=FAILED))
            self._fail(name, record)

    def _fail(self, name: str, record: Record) -> None:
        """Repeat it, unless that is in vain; tell either."""
        self._num_failures[name] = (
            MAX_FAILURES if record.exit_code == REFUSED else self._num_failures[name] + 1
        )
        log, how = self._store.log(name, record.attempt), ended_by(record.exit_code)
        if self._num_failures[name] < MAX_FAILURES:
            self._reporter.event(f"{name}: attempt {record.attempt} failed ({how}), see {log}")
            return
        end = self._engine.logs(name) if name in self._submitted else end_of(log)
        self._failures.append(Failure(name, record.exit_code, str(log), end))
        times = "was refused" if record.exit_code == REFUSED else f"failed {MAX_FAILURES} times"
        self._reporter.event(f"{name}: {times} ({how}), see {log}")

    def _was_finished(self, job: Job) -> bool:
        return job.begun is not None and job.begun.exists() and self._is_finished(job)

    def _put(self, name: str, record: Record) -> None:
        self._unwritten[name] = record
        self._records[name], self._states[name] = record, record.state
        if record.state == DONE:
            self._left.pop(name, None)
            self._reporter.advance()

    def _write(self) -> None:
        """Put on the disk how attempts ended: that takes long, and a driver that is killed before is told by them."""
        while self._unwritten:
            name = next(iter(self._unwritten))
            self._store.write(name, self._unwritten[name])
            del self._unwritten[name]

    def _stop(self) -> None:
        """Interrupt all attempts, and wait until they have saved and ended."""
        self._others.clear()
        for name in self._running:
            self._engine.cancel(name)
        while self._running:
            for name, exit_code in self._ended().items():
                self._running.pop(name)
                record = replace(self._records[name], ended=time.time(), exit_code=exit_code)
                self._put(name, replace(record, state=INTERRUPTED if exit_code else DONE))
            self._write()
            time.sleep(LOOKED_EVERY)


def ended_by(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code == SILENT:
        return "no sign of life"
    return f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"


def _words(what: Job | Record) -> tuple[str, ...]:
    """Settings and trainings, as options."""
    return (*what.settings, *(["--trainings", *what.trainings] if what.trainings else []))


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    """The options that two command lines do not have in common."""
    old, new = _by_option(before), _by_option(now)
    flags = [flag for flag in {**old, **new} if old.get(flag) != new.get(flag)]
    changes = [f"{flag}: {old.get(flag, 'nothing')} then, {new.get(flag, 'nothing')} now" for flag in flags]
    return "; ".join(changes) or "the same options in another order"


def _by_option(words: Sequence[str]) -> dict[str, str]:
    """Values by option; what stands before the first is the command."""
    values: dict[str, list[str]] = {"command": []}
    flag = "command"
    for word in words:
        if word.startswith("--") or word.startswith("sha256 "):
            flag = word.partition(" ")[0]
            values[flag] = []
        if word != flag:
            values[flag].append(word)
    return {flag: " ".join(found) or "given" for flag, found in values.items()}
