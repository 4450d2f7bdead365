"""Studies of jobs that do next to nothing: a module in a folder of its own, started by the real engine or by none."""

import signal
import textwrap
from pathlib import Path

from admrl.jobs.reporter import Silent
from admrl.studies.driver import Driver
from admrl.studies.engine import Resources
from admrl.studies.graph import Job
from admrl.studies.local import LocalEngine
from admrl.studies.store import Store

STUDY = """\
folder = "{folder}"
families = ["linear_quadratic"]
seeds = [0, 1]
preset = "smoke"
grid = [2, 2]

[methods.uniform]
[methods.adversarial]

[reference]
config = {{ num_stages = 1, num_iterations = 1, num_model_steps = 2, num_updates = 2, num_samples = 400 }}

[evaluation]
num_policy_seeds = 2
num_stages = 0
config = {{ num_episodes = 2, num_updates = 2, num_samples = 800 }}
"""
NOTE = """\
import os, signal, sys, time
from pathlib import Path

what, output, *rest = sys.argv[1:]
with open(f"{output}.starts", "a") as starts:
    print(os.getpid(), *rest, file=starts)
if what == "fail" and Path(output).parent.joinpath("broken").exists():
    sys.exit("it does not work")
if what == "wait":
    while not Path(output).parent.joinpath("go").exists():
        time.sleep(0.01)
Path(output).write_text("done")
"""
"""`python -m note WHAT OUTPUT`: notes that it was started, and makes its output at once, once there is a file "go",
or only if there is none called "broken"."""


class Told(Silent):
    """Remembers what it is told."""

    def __init__(self):
        self.phases, self.events, self.num_steps = [], [], 0

    def phase(self, name):
        self.phases.append(name)

    def advance(self, **metrics):
        self.num_steps += 1

    def event(self, message):
        self.events.append(message)


class InOneGo:
    """An engine that has done what it is told at the next `poll`; exit codes by job, where they are not 0."""

    def __init__(self, exit_codes=None):
        self.exit_codes, self.attempts, self._started = exit_codes or {}, [], []
        self.most = 0  # attempts at the same time

    def submit(self, attempt):
        self.attempts.append(attempt)
        self._started.append(attempt)
        self.most = max(self.most, len(self._started))

    def poll(self):
        ended, self._started = self._started, []
        return {attempt.job: self.exit_codes.get(attempt.job, 0) for attempt in ended}

    def cancel(self, job):
        raise AssertionError("nothing runs for long")

    def logs(self, job):
        return f"the log of {job}"


def note_module(folder: Path, monkeypatch) -> None:
    """Make `python -m note` known to processes that are started from now on."""
    (folder / "note.py").write_text(textwrap.dedent(NOTE))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")


def note_job(folder: Path, name: str, *, what="quick", needs=(), kind="train", settings=()) -> Job:
    """A job of the module `note`; its output is FOLDER/NAME with - for /."""
    output = folder / name.replace("/", "-")
    words = ("note", what, str(output))
    return Job(name, kind, (what, *settings), words, (output,), needs=tuple(needs))


def chain(folder: Path, **kinds) -> tuple[Job, ...]:
    """a and b, then c, which needs both, then d; what each does, by name."""
    return tuple(
        note_job(folder, f"x/{name}", what=kinds.get(name, "quick"), needs=needs)
        for name, needs in (("a", ()), ("b", ()), ("c", ("x/a", "x/b")), ("d", ("x/c",)))
    )


def num_starts(job: Job) -> int:
    """How often a job of the module `note` was started."""
    file = Path(f"{job.outputs[0]}.starts")
    return len(file.read_text().splitlines()) if file.exists() else 0


def drive(
    folder: Path,
    jobs,
    engine=None,
    *,
    num_workers=2,
    wanted=None,
    reporter=None,
    is_finished=None,
    silence=60.0,
):
    """One start of a study in a folder."""
    store = Store(folder, "toy", silence)
    lease = store.drive()
    try:
        driver = Driver(
            jobs,
            store,
            engine or LocalEngine(folder, Resources()),
            num_workers=num_workers,
            wanted={job.name for job in jobs} if wanted is None else set(wanted),
            reporter=reporter or Told(),
            is_finished=is_finished or (lambda job: False),
        )
        return driver.run()
    finally:
        lease.release()


def drive_in_a_process(folder: Path, jobs, send) -> None:
    """`drive` as a process of its own that is killed or interrupted; says how it ended."""
    from admrl.jobs.interruption import Interrupted, deferred_signals

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with deferred_signals():
            drive(folder, jobs)
    except Interrupted as interrupt:
        send.put(interrupt.exit_code)
    else:
        send.put(0)
