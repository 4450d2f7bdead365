"""How long the jobs of a study would take: one of each sort is begun, in a folder that is thrown away, and stopped.

The first seed of every training of a family, the evaluation of what it has reached, and the reference run for some
seconds each, alone; the share of their steps that is done by then says how long the whole takes. Steps are not
equally long (the first task's differ from the last's), so the sum may be wrong by a third, and more where a training
is stopped early by its own rules. What was solved for runs that are there already stays in their folders, and counts.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from admrl.jobs.interruption import check_interruption
from admrl.jobs.progress import read_progress
from admrl.jobs.reporter import Reporter
from admrl.studies.description import Study
from admrl.studies.engine import Attempt, Resources
from admrl.studies.graph import Job, expand
from admrl.studies.local import LocalEngine

MEASURED = ("train", "reference", "cells")
LOOKED_EVERY = 0.2  # seconds
AT_MOST = 5  # times the seconds that were asked for, until the first step is done


def cpu_seconds(study: Study, seconds: float, reporter: Reporter) -> dict[str, float | None]:
    """By job; None: it did not come far enough. Tables and reports are not measured and not in it.

    Args:
        seconds: that each sort of job runs.
        reporter: is told of each; one step for each of `sorts`.

    Raises:
        Interrupted: a signal came.
    """
    measured: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="admrl-calibration-") as folder:
        short = _short(study, Path(folder))
        for job in sorts(short):
            reporter.phase(f"calibration: {job.name}")
            measured[job.name] = _measure(job, Path(folder), seconds)
            reporter.advance()
    return {job.name: measured[_stand_in(job, study)] for job in expand(study) if job.kind in MEASURED}


def sorts(study: Study) -> list[Job]:
    """One of each sort of job that is measured: those of the first seed."""
    return [job for job in expand(_short(study, study.folder)) if job.kind in MEASURED]


def _short(study: Study, folder: Path) -> Study:
    return replace(study, folder=folder, report=folder / "report", seeds=study.seeds[:1])


def _stand_in(job: Job, study: Study) -> str:
    """Whose measurement counts: all trainings of a method are as long as its first one, and so are their cells."""
    is_of_training = job.kind == "train" or bool(job.needs)
    return re.sub(r"-\d+(?=(-cells)?$)", f"-{study.seeds[0]}", job.name) if is_of_training else job.name


def _measure(job: Job, folder: Path, seconds: float) -> float | None:
    """How long it takes, by what it has done after some seconds."""
    place = folder / "jobs" / job.name
    for path in (place, *(path.parent for path in job.outputs)):
        path.mkdir(parents=True, exist_ok=True)
    (place / "newest").write_text("1")
    engine = LocalEngine(folder, Resources())
    begun = time.monotonic()
    engine.submit(Attempt(job.name, 1, job.command(1), place, 3600.0))
    points: list[tuple[float, float]] = []  # seconds, share of steps
    try:
        while True:
            check_interruption()
            elapsed = time.monotonic() - begun
            if ended := engine.poll():
                return elapsed if ended[job.name] == 0 else None
            progress = read_progress(place, 1)
            share = progress.num_done / progress.num_steps if progress and progress.num_steps else 0.0
            if share > 0 and (not points or points[-1][1] < share):
                points.append((elapsed, share))
            if elapsed > (seconds if len(points) > 1 else AT_MOST * seconds):
                return _extrapolated(points)
            time.sleep(LOOKED_EVERY)
    finally:
        engine.cancel(job.name)
        while job.name in engine.running:
            engine.poll()
            time.sleep(LOOKED_EVERY)


def _extrapolated(points: Sequence[tuple[float, float]]) -> float | None:
    """Seconds of all steps, as fast as those between the first and the last point; the start-up is in it."""
    if not points:
        return None
    (first, share), (last, now) = points[0], points[-1]
    if now <= share:
        return last / now
    return first + (1 - share) * (last - first) / (now - share)
