"""How far a study is, job by job, from its folder alone: any machine that sees the folder can ask."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from admrl.jobs.progress import read_progress
from admrl.number_text import counted
from admrl.studies.graph import Job
from admrl.studies.store import LOST, RUNNING, WAITING, Record, Store


@dataclass(frozen=True)
class JobStatus:
    """A job."""

    job: str
    kind: str
    state: str
    """See `admrl.studies.store.STATES`."""
    attempt: int
    """0: none."""
    seconds: float | None
    """Of its newest attempt; None: there is none, or nobody knows."""
    log: str | None
    host: str | None = None
    """Of a running attempt, as what follows."""
    phase: str | None = None
    real_samples: float | None = None
    """That it has drawn, as it says itself; a few seconds old."""
    share: float | None = None
    """Of its steps that are done, since the attempt began."""
    ends: float | None = None
    """Expected, if it goes on as fast as it has; seconds since 1970."""


def statuses(jobs: Sequence[Job], store: Store, wanted: Collection[str]) -> list[JobStatus]:
    """One for each job that is wanted.

    Args:
        jobs: all of the study.

    Raises:
        ValueError: a damaged file; names it.
    """
    records = store.records(jobs)
    states = store.states(jobs, records)
    if store.is_driven:  # what seems lost is starting, or the driver sees to it
        states = {name: RUNNING if state == LOST else state for name, state in states.items()}
    return [_status(job, states[job.name], records[job.name], store) for job in jobs if job.name in wanted]


def _status(job: Job, state: str, record: Record, store: Store) -> JobStatus:
    log = str(store.log(job.name, record.attempt)) if record.attempt else None
    seconds = None if state in (LOST, WAITING) else round(record.seconds, 1)
    status = JobStatus(job.name, job.kind, state, record.attempt, seconds, log)
    seen = store.seen(job.name, record) if state == RUNNING else None
    if seen is None or seen.exit_code is not None:
        return status
    progress = read_progress(store.log(job.name, record.attempt).parent, record.attempt)
    if progress is None:
        return replace(status, host=seen.host)
    share = min(1.0, progress.num_done / progress.num_steps) if progress.num_steps > 0 else 0.0
    ends = record.started + record.seconds / share if share > 0 else None
    return replace(
        status,
        host=seen.host,
        phase=progress.phase,
        real_samples=progress.real_samples,
        share=round(share, 4),
        ends=ends,
    )


def summary(rows: Sequence[JobStatus]) -> str:
    """How many jobs are in which state."""
    number = Counter(row.state for row in rows)
    return f"{counted(len(rows), 'job')}: " + ", ".join(f"{n} {state}" for state, n in number.most_common())


def clock(seconds: float) -> str:
    """A time of day, with the date where it is not today."""
    there, today = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if there[:3] == today[:3] else "%m-%d %H:%M", there)
