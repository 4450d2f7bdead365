"""A real Slurm of one node: attempts end, are killed, interrupted and timed out, and nothing is lost."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import study_tools
from slurm_tools import said, slurm, until
from study_tools import STUDY, Told, chain, drive, note_module, num_starts

from admrl.evaluation.gap_files import load_tables
from admrl.storage.files import StorageError
from admrl.studies import slurm_engine, slurm_jobs
from admrl.studies.engine import Attempt, Resources
from admrl.studies.graph import Job
from admrl.studies.slurm_engine import SlurmEngine
from admrl.studies.slurm_jobs import run

pytestmark = pytest.mark.cluster
PROBE = """\
import os, signal, subprocess, sys, time
from pathlib import Path
from admrl.jobs.interruption import deferred_signals, interruption

what, place = sys.argv[1], Path(sys.argv[2])
with open(f"{place}.pids", "a") as pids:
    print(os.getpid(), file=pids)
print("said", flush=True)
if what.isdigit():
    sys.exit(int(what))
if what == "deaf":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    time.sleep(600)
child = subprocess.Popen(["sleep", "600"])
with deferred_signals():
    while not Path(f"{place}.saved").exists():
        if interruption():
            Path(f"{place}.saved").write_text(f"signal of the child: {child.poll()}")
            child.kill()
            sys.exit(130)
        time.sleep(0.05)
child.kill()
"""
"""`python -m probe EXIT_CODE PLACE`; `python -m probe train PLACE`: a training that saves when it is interrupted, and
has nothing left to do then. It has a child, as an evaluation has."""
DRIVER = """\
import sys, time
from pathlib import Path
from admrl.studies.engine import Attempt, Resources
from admrl.studies.slurm_engine import SlurmEngine

folder = Path(sys.argv[1])
(folder / "newest").write_text("1")
engine = SlurmEngine(folder, Resources(), time_limit_minutes=60)
engine.submit(Attempt("a", 1, ("probe", "1", str(folder / "a")), folder, 60.0))
while not (ended := engine.poll()):
    time.sleep(0.1)
print(ended, engine.logs("a"))
"""

STUDY_DRIVER = """\
import sys
from pathlib import Path
from study_tools import chain, drive
from admrl.studies.engine import Resources
from admrl.studies.slurm_engine import SlurmEngine

folder = Path(sys.argv[1])
drive(folder / "study", chain(folder, a="wait"), SlurmEngine(folder, Resources(), time_limit_minutes=60))
"""


@pytest.fixture(scope="module", autouse=True)
def unshared(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as unshared:
        yield unshared


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    yield tmp_path
    subprocess.run(["scancel", "--user=root"], check=True)
    until(lambda: not said("squeue", "--noheader"), "all jobs have ended")


def engine_of(folder, **options):
    return SlurmEngine(folder, Resources(), **{"time_limit_minutes": 60} | options)


def submit(engine, folder, what, *jobs, num_processes=1):
    for job in jobs:
        place = folder / "jobs" / job
        place.mkdir(parents=True, exist_ok=True)
        number = len(list(place.glob("attempt-*.json"))) + 1
        (place / "newest").write_text(str(number))
        words = ("probe", what, str(folder / job))
        engine.submit(Attempt(job, number, words, place, 60.0, num_processes))


def worker_of(folder, job):
    """Its process, once it has begun."""
    until((folder / f"{job}.pids").exists, lambda: f"{job} begins; {said('squeue')}")
    return int((folder / f"{job}.pids").read_text().split()[-1])


def ends(engine, count=1, seconds=90):
    """Exit codes of that many attempts."""
    found = {}

    def enough():
        found.update(engine.poll())
        return len(found) >= count

    until(enough, lambda: f"{found}; {said('squeue', '--states=all', '--format=%i %T %r')}", seconds)
    return found


def num_submissions(folder):
    """How many jobs and arrays there were."""
    return len(list((folder / "slurm").glob("[0-9]*.sh")))


def slurm_number(folder, job):
    """The number of the Slurm job that an attempt runs in."""
    environment = Path(f"/proc/{worker_of(folder, job)}/environ").read_bytes().split(b"\0")
    (number,) = [each.partition(b"=")[2] for each in environment if each.startswith(b"SLURM_JOB_ID=")]
    return number.decode()


def test_exit_codes_and_logs_of_an_array(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        slurm_engine, "run", lambda words: asked.append((words[0], time.monotonic())) or run(words)
    )
    engine = engine_of(folder)
    for code in range(3):
        submit(engine, folder, str(code), f"job{code}")
    assert ends(engine, 3) == {"job0": 0, "job1": 1, "job2": 2}
    times = [at for command, at in asked if command == "squeue"]
    assert len(times) >= 2 and min(np.diff(times)) > 2.9, "squeue is not called more often"
    assert engine.logs("job1") == "said"
    assert num_submissions(folder) == 1, "they were one array"
    assert not list((folder / "slurm").glob("*.pkl"))


def test_more_than_an_array_may_hold(folder):
    engine, jobs = engine_of(folder), [f"job{i}" for i in range(7)]
    submit(engine, folder, "0", *jobs)
    assert ends(engine, 7) == dict.fromkeys(jobs, 0)
    assert num_submissions(folder) == 2, "of four and of three"


def test_what_is_killed_has_a_negative_exit_code_and_is_started_again(folder):
    engine = engine_of(folder)
    submit(engine, folder, "train", "a", "b")
    engine.poll()
    os.kill(worker_of(folder, "a"), signal.SIGKILL)
    assert ends(engine) == {"a": -signal.SIGKILL}
    subprocess.run(["scancel", slurm_number(folder, "b")], check=True)
    assert ends(engine) == {"b": -signal.SIGTERM}
    assert "said" in engine.logs("b") and "ended as CANCELLED" in engine.logs("b")
    submit(engine, folder, "0", "a", "b")
    assert ends(engine, 2) == {"a": 0, "b": 0} and engine.logs("b") == "said"


def test_a_node_that_fails(folder):
    engine = engine_of(folder)
    submit(engine, folder, "train", "a")
    engine.poll()
    worker = worker_of(folder, "a")
    node = said("sinfo", "--noheader", "--format=%n").strip()
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    assert ends(engine) == {"a": -signal.SIGKILL}
    assert "ended as NODE_FAIL" in engine.logs("a")
    until(lambda: not Path(f"/proc/{worker}").exists(), "its processes end")
    subprocess.run(
        ["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True
    )  # if need be
    until(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), "the node is back")
    submit(engine, folder, "0", "a")
    assert ends(engine) == {"a": 0}


def test_cancelled_trainings_save_and_those_in_the_queue_do_not_begin(folder):
    engine = engine_of(folder)
    submit(engine, folder, "train", "a", "b", "c", "d")
    engine.poll()
    submit(engine, folder, "train", "e")
    for job in ("a", "b"):
        worker_of(folder, job)
    for job in ("a", "c", "e"):  # running; in the queue, beside d of the same array; not submitted
        engine.cancel(job)
    assert ends(engine, 3) == {"a": 130, "c": -signal.SIGTERM, "e": -signal.SIGINT}
    assert (folder / "a.saved").read_text() == "signal of the child: None"
    worker_of(folder, "d")
    for job in ("b", "d"):
        engine.cancel(job)
    assert ends(engine, 2) == {"b": 130, "d": 130}
    assert not list(folder.glob("[ce].pids"))


def test_before_the_time_limit_a_training_saves_and_the_next_attempt_goes_on(folder, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "SHORTEST", 1)
    told = Told()
    job = Job("x/a", "train", (), ("probe", "train", str(folder / "a")), (folder / "a.saved",))
    outcome = drive(folder / "study", [job], engine_of(folder, time_limit_minutes=1), reporter=told)
    assert outcome.states == {"x/a": "done"} and not outcome.failures
    assert told.phases[:2] == ["x/a", "x/a, attempt 2"]
    assert not told.events, "no failure"
    assert len((folder / "a.pids").read_text().split()) == 2


def test_a_job_that_does_not_stop_in_time_is_killed(folder, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "SHORTEST", 1)
    engine = engine_of(folder, time_limit_minutes=1)
    submit(engine, folder, "deaf", "a")
    assert ends(engine, seconds=180) == {"a": -signal.SIGKILL}
    assert "ended as TIMEOUT" in engine.logs("a")


def test_what_a_killed_driver_left_in_the_queue_does_not_begin(folder):
    before = engine_of(folder)
    submit(before, folder, "train", "a", "b", "c")
    before.poll()
    for job in ("a", "b"):
        worker_of(folder, job)
    other = engine_of(folder / "another")
    assert len(said("squeue", "--noheader", "--array").splitlines()) == 3
    engine = engine_of(folder)
    until(
        lambda: len(said("squeue", "--noheader", "--array").splitlines()) == 2, "c is gone, a and b are not"
    )
    del other, engine


def test_a_job_goes_on_without_its_driver_and_the_next_one_waits_for_it(folder, monkeypatch):
    note_module(folder, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{Path(study_tools.__file__).parent}")
    jobs = chain(folder, a="wait")
    (folder / "driver.py").write_text(STUDY_DRIVER)
    with subprocess.Popen([sys.executable, str(folder / "driver.py"), str(folder)]) as driver:
        until(lambda: num_starts(jobs[0]) and jobs[1].outputs[0].exists(), "a and b have begun")
        driver.kill()
    time.sleep(2)  # a local one would have noticed
    threading.Timer(5, (folder / "go").touch).start()
    outcome = drive(folder / "study", jobs, engine_of(folder))
    assert set(outcome.states.values()) == {"done"}
    assert num_starts(jobs[0]) == 1


def test_slurm_does_not_answer_for_a_while(folder, monkeypatch):
    engine = engine_of(folder)
    submit(engine, folder, "train", "a")
    engine.poll()
    worker_of(folder, "a")
    submit(engine, folder, "0", "b")
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue"):
        (folder / "bin" / name).write_text("#!/bin/sh\necho Unable to contact slurm controller >&2\nexit 1\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setattr(slurm_engine, "TRIED_EVERY", 1.0)
    with monkeypatch.context() as without:
        without.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        monkeypatch.setattr(engine, "_look_at", 0.0)
        with pytest.warns(UserWarning) as warnings:
            assert engine.poll() == {}
    said = "Unable to contact slurm controller; tried again until it works"
    assert sorted(str(each.message) for each in warnings) == [f"sbatch: {said}", f"squeue: {said}"]
    engine.cancel("a")
    assert ends(engine, 2) == {"a": 130, "b": 0}


def test_a_job_that_no_node_could_run_is_refused_and_others_are_not(folder):
    engine = engine_of(folder)
    submit(engine, folder, "0", "two", num_processes=2)
    submit(engine, folder, "0", "three", num_processes=3)
    submit(engine, folder, "0", "one")
    assert ends(engine, 3) == {"one": 0, "two": 0, "three": 2}
    assert re.search(
        r"with 3 process.*configuration is not available\n.*per task 3,.*\n.* 2 cores", engine.logs("three")
    )


def test_a_driver_in_a_job_of_its_own(folder):
    (folder / "driver.py").write_text(DRIVER)
    command = shlex.join([sys.executable, str(folder / "driver.py"), str(folder)])
    of_two_tasks = ["--ntasks=2", "--overcommit", "--mem=300", f"--output={folder}/said"]  # SLURM_NTASKS=2
    subprocess.run(["sbatch", "--wait", *of_two_tasks, f"--wrap={command}"], stdout=subprocess.DEVNULL)
    assert (folder / "said").read_text() == "{'a': 1} said\n"
    assert len((folder / "a.pids").read_text().split()) == 1


def test_nodes_without_our_packages(folder, monkeypatch):
    monkeypatch.setattr(slurm_engine, "RESULT_WITHIN", 5.0)
    (folder / "submitit.py").write_text("")  # hides the package from the node alone
    engine = engine_of(folder)
    submit(engine, folder, "0", "a")
    assert ends(engine) == {"a": -signal.SIGKILL}
    assert re.match(
        "Slurm: job .* ended as FAILED: .*No module named .?submitit", engine.logs("a"), re.DOTALL
    )


def test_nodes_that_do_not_see_the_present_folder(unshared, folder, monkeypatch):
    monkeypatch.setattr(slurm_engine, "RESULT_WITHIN", 5.0)
    (unshared / "here").mkdir()
    monkeypatch.chdir(unshared / "here")
    engine = engine_of(folder)
    submit(engine, folder, "0", "a")
    assert ends(engine) == {"a": -signal.SIGKILL}
    assert f"No such file or directory: '{unshared}/here'" in engine.logs("a")


def test_nodes_that_do_not_see_the_folder(unshared, folder, monkeypatch):
    monkeypatch.setattr(slurm_engine, "RESULT_WITHIN", 5.0)
    engine = engine_of(unshared)
    submit(engine, unshared, "0", "a")
    with pytest.raises(
        StorageError, match="expected a folder that all nodes of Slurm see, but nothing of job"
    ):
        ends(engine)


@pytest.mark.parametrize(
    ("resources", "options", "message"),
    [
        (
            {"num_cores": 3},
            {},
            r"configuration is not available\n  asked for: cpus per task 3, .*\n .*2 cores",
        ),
        ({"memory_gb": 2.5}, {}, "configuration is not available\n  asked for: .* mem 2560M\n .*2000 MB"),
        ({"num_gpus": 1}, {}, "asked for: .* gpus per node 1\n  there is:  main: 1 nodes"),
        ({"num_gpus": 0.5}, {}, "engine.num_gpus: Slurm gives whole GPUs, got 0.5"),
        ({}, {"time_limit_minutes": 121}, "the time limit of partition main is 2:00:00\n"),
        ({}, {"time_limit_minutes": 9}, "time_limit_minutes: expected a whole number from 10 up, got 9"),
        ({}, {"partition": "mian"}, "[Ii]nvalid partition"),
        ({"max_processes": 3}, {}, "with 3 process"),
    ],
)
def test_what_slurm_cannot_give_is_said_at_once(folder, resources, options, message):
    with pytest.raises(ValueError, match=message):
        SlurmEngine(folder, Resources(**resources), **{"time_limit_minutes": 60} | options)


def study(folder, *options):
    return [sys.executable, "-m", "admrl", "study", str(folder / "toy.toml"), *options]


def test_a_study_through_the_command_that_is_interrupted_finds_what_a_local_one_finds(folder):
    local, cluster = folder / "local", folder / "cluster"
    engine = '\n[engine]\nname = "slurm"\npartition = "main"\ntime_limit_minutes = 60\nmax_processes = 2\n'
    for place, lines in ((local, ""), (cluster, engine)):
        place.mkdir()
        (place / "toy.toml").write_text(STUDY.format(folder="f").replace("[0, 1]", "[0]") + lines)
    subprocess.run(study(local), cwd=local, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(study(cluster), cwd=cluster, stdout=subprocess.DEVNULL) as first:
        until(lambda: list(cluster.glob("f/runs/*/*/metrics.csv")), "a training has begun", 120)
        first.send_signal(signal.SIGINT)
        assert first.wait() == 130
    assert not said("squeue", "--noheader")
    subprocess.run(study(cluster), cwd=cluster, check=True, stdout=subprocess.DEVNULL)
    assert list(cluster.glob("f/jobs/linear_quadratic/*/attempt-2.log")), "it went on"
    assert (cluster / "f/report/linear_quadratic/report.html").is_file()
    runs = [f"f/runs/linear_quadratic/{name}-0" for name in ("uniform", "adversarial")]
    tables = [load_tables([place / run for run in runs]) for place in (local, cluster)]
    for mine, other in zip(*tables, strict=True):
        for field in ("psi", "num_samples", "adapted_return", "optimal_return", "episode_return"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(other, field), err_msg=field)
