"""What a study costs beside its jobs: starting them, recording them, and saying how far it is.

Claim: 10 000 jobs that do nothing take five minutes on two idle cores, the driver stays below 500 MB, and their
status is known within two seconds. And: a study of laptop-size jobs, one after the other, takes at most 3 % more CPU
time than the same commands by hand (--by-hand N: both, N times in turn; minutes each).

    python benchmarks/studies.py [--quick] [--json FILE] [--num-workers 2] [--num-jobs 10000] [--by-hand 0]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from admrl.jobs.reporter import Silent
from admrl.studies.description import read_study
from admrl.studies.driver import Driver
from admrl.studies.engine import Resources
from admrl.studies.graph import Job, expand
from admrl.studies.local import LocalEngine
from admrl.studies.store import DONE, Store

LAPTOP = """\
folder = "{folder}"
families = ["hopper2d"]
seeds = [0]
grid = [2, 2]

[methods.adversarial]
config.num_tasks = 2

[reference]
config = {{ num_stages = 1, num_iterations = 3, num_updates = 5 }}

[evaluation]
num_policy_seeds = 1
num_stages = 0
"""
"""A study of jobs of the size that one runs on a laptop, as few as there can be."""
ADMRL = [sys.executable, "-m", "admrl"]


def one_by_one(file: Path) -> None:
    """The commands of a study, as one types them."""
    for job in expand(read_study(file)):
        for path in job.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        _call([*ADMRL, *job.command(1)[1:]])


def as_study(file: Path) -> None:
    """The study, with one worker."""
    _call([*ADMRL, "study", str(file), "--num-workers", "1"])


def _call(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def seconds_of(way: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """CPU and wall time of a way to do the study LAPTOP."""
    file = folder / f"{way.__name__}.toml"
    file.write_text(LAPTOP.format(folder=folder / way.__name__))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    way(file)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - begun


def idle_jobs(number: int) -> list[Job]:
    """Jobs that print a month of a calendar, every hundredth after the hundred before it; their output is a folder
    that is there already."""
    jobs: list[Job] = []
    for n in range(number):
        needs = tuple(job.name for job in jobs[n - 100 : n]) if n and n % 100 == 0 else ()
        words = ("calendar", "2026", "1")
        jobs.append(Job(f"idle/{n}", "train", words, words, (Path("/"),), needs=needs))
    return jobs


def main() -> None:
    """Run them, and print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--num-jobs", type=int, default=10_000)
    parser.add_argument("--by-hand", type=int, default=0)
    options = parser.parse_args()
    number = 40 if options.quick else options.num_jobs
    jobs = idle_jobs(number)
    rows = []

    def note(name: str, value: float, unit: str) -> None:
        rows.append({"name": name, "value": value, "unit": unit, "threads": options.num_workers})
        print(f"{name:<40}{value:>10.3f} {unit}", flush=True)

    for n in range(options.by_hand):
        for way in (one_by_one, as_study) if n % 2 == 0 else (as_study, one_by_one):
            with tempfile.TemporaryDirectory() as folder:
                cpu, wall = seconds_of(way, Path(folder))
            note(f"laptop jobs, {way.__name__}, CPU time", cpu, "s")
            note(f"laptop jobs, {way.__name__}, wall time", wall, "s")
            note("load after it", os.getloadavg()[0], "")
    if options.by_hand:
        return _save(rows, options.json)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "study", "idle")
        lease = store.drive()
        driver = Driver(
            jobs,
            store,
            LocalEngine(store.folder, Resources()),
            num_workers=options.num_workers,
            wanted={job.name for job in jobs},
            reporter=Silent(),
            is_finished=lambda job: False,
        )
        started = time.perf_counter()
        outcome = driver.run()
        seconds = time.perf_counter() - started
        lease.release()
        assert set(outcome.states.values()) == {DONE}
        note(f"{number} jobs that do nothing", seconds, "s")
        note("a job, beside the others", seconds / number, "s")
        note("driver's own CPU time", time.process_time(), "s")
        note("driver, peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB")
        note(
            "largest worker, peak memory", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, "MB"
        )
        sizes = [file.stat().st_size for file in store.folder.rglob("*") if file.is_file()]
        note("files of a job, in the shared folder", len(sizes) / number, "")
        note("bytes of a job, in the shared folder", sum(sizes) / number, "B")
        started = time.perf_counter()
        states = store.states(jobs, store.records(jobs))
        note(f"status of {len(states)} jobs", time.perf_counter() - started, "s")
    _save(rows, options.json)


def _save(rows: list[dict[str, object]], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
