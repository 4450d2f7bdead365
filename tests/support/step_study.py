"""A study whose jobs take steps, save after each, and go on where they were; what comes out is known in advance, and
each step says who has made it. `python -m step_study FOLDER STEPS SILENCE` drives it over Ray.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

SECONDS = 0.25  # of a step
NUM_JOBS, NUM_WORKERS = 6, 4


def expected(folder, num_steps):
    """The outputs by path, as one machine alone would make them."""
    values = {}
    for number in range(NUM_JOBS):
        value = str(number)
        for _ in range(num_steps):
            value = _next(value)
        values[folder / "made" / str(number)] = value
    return values | {folder / "made" / "all": "\n".join(values.values())}


def steps_of(output):
    """Who has made which step of a job: host and process, in their order."""
    try:
        return json.loads(Path(f"{output}.steps").read_bytes())["by"]
    except FileNotFoundError:
        return []


def _next(value):
    return hashlib.sha256(value.encode()).hexdigest()


def _job(output, num_steps):
    from admrl.storage.files import write_json, write_text

    steps = Path(f"{output}.steps")
    state = json.loads(steps.read_bytes()) if steps.exists() else {"value": output.name, "by": []}
    while len(state["by"]) < num_steps:
        time.sleep(SECONDS)
        who = f"{os.uname().nodename} {os.getpid()}"
        state = {"value": _next(state["value"]), "by": [*state["by"], who]}
        write_json(steps, state)
    write_text(output, state["value"])


def _join(output):
    from admrl.storage.files import write_text

    write_text(output, "\n".join((output.parent / str(n)).read_text() for n in range(NUM_JOBS)))


def _drive(folder, num_steps, silence):
    from study_tools import Told, drive

    from admrl.jobs.interruption import Interrupted, deferred_signals
    from admrl.studies.engine import Resources
    from admrl.studies.graph import Job
    from admrl.studies.ray_engine import RayEngine

    class Prints(Told):
        def event(self, message):
            print(f"{time.time():.1f} {message}", flush=True)

        phase = event

    made = folder / "made"
    made.mkdir(exist_ok=True)
    jobs = [
        Job(
            f"x/{n}",
            "train",
            (num_steps,),
            ("step_study", "job", str(made / str(n)), num_steps),
            (made / str(n),),
        )
        for n in range(NUM_JOBS)
    ]
    names = tuple(job.name for job in jobs)
    jobs.append(
        Job("x/all", "compare", (), ("step_study", "join", str(made / "all")), (made / "all",), needs=names)
    )
    study = folder / "study"
    study.mkdir(exist_ok=True)
    try:
        engine = RayEngine(study, Resources())
        with deferred_signals():
            outcome = drive(
                study, jobs, engine, num_workers=NUM_WORKERS, reporter=Prints(), silence=float(silence)
            )
    except Interrupted as interrupt:
        sys.exit(interrupt.exit_code)
    sys.exit(0 if set(outcome.states.values()) == {"done"} else f"{outcome}")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "job":
        _job(Path(rest[0]), int(rest[1]))
    elif what == "join":
        _join(Path(rest[0]))
    else:
        _drive(Path(what), *rest)
