"""What a study costs beside its jobs: starting them, recording them, and saying how far it is.

Claim: 10 000 jobs that do nothing take five minutes on two idle cores, the driver stays below 500 MB, and their
status is known within two seconds.

    python benchmarks/studies.py [--quick] [--json FILE] [--num-workers 2] [--num-jobs 10000]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from admrl.jobs.reporter import Silent
from admrl.studies.driver import Driver
from admrl.studies.engine import Resources
from admrl.studies.graph import Job
from admrl.studies.local import LocalEngine
from admrl.studies.store import DONE, Store


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
    options = parser.parse_args()
    number = 40 if options.quick else options.num_jobs
    jobs = idle_jobs(number)
    rows = []

    def note(name: str, value: float, unit: str) -> None:
        rows.append({"name": name, "value": value, "unit": unit, "threads": options.num_workers})
        print(f"{name:<40}{value:>10.3f} {unit}", flush=True)

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
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
