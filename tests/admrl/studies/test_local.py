"""Real processes that do next to nothing: they are killed, interrupted and left alone, and nothing is lost."""

import json
import multiprocessing
import os
import signal
import subprocess

import pytest
from process_tools import is_alive, until
from study_tools import chain, drive, drive_in_a_process, note_job, note_module, num_starts

from admrl.studies.engine import Resources
from admrl.studies.local import LocalEngine
from admrl.studies.store import Store

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    note_module(tmp_path, monkeypatch)
    (tmp_path / "made").mkdir()
    return tmp_path / "study"


def driver_of(folder, jobs):
    """A driver in a process of its own; and where it says how it ended."""
    said = CONTEXT.Queue()
    process = CONTEXT.Process(target=drive_in_a_process, args=(folder, jobs, said), daemon=True)
    process.start()
    return process, said


def state(folder, jobs, number=0):
    store = Store(folder, "toy")
    return list(store.states(jobs, store.records(jobs)).values())[number]


def worker_of(folder, job):
    """The process of a running attempt."""
    return json.loads((folder / "jobs" / job.name / "attempt-1.json").read_text())["pid"]


def test_a_chain_of_processes(folder):
    jobs = chain(folder.parent / "made")
    outcome = drive(folder, jobs)
    assert set(outcome.states.values()) == {"done"}
    assert all(num_starts(job) == 1 and job.outputs[0].read_text() == "done" for job in jobs)
    assert not (folder / "driver.json").exists()


def test_a_process_that_fails_shows_the_end_of_its_log(folder):
    (folder.parent / "made" / "broken").touch()
    jobs = chain(folder.parent / "made", a="fail")
    outcome = drive(folder, jobs)
    (failure,) = outcome.failures
    assert (failure.job, failure.exit_code, failure.end) == ("x/a", 1, "it does not work")
    assert [num_starts(job) for job in jobs] == [3, 1, 0, 0]
    (folder.parent / "made" / "broken").unlink()
    assert set(drive(folder, jobs).states.values()) == {"done"}
    assert [num_starts(job) for job in jobs] == [4, 1, 1, 1]


def test_a_worker_that_is_killed_is_started_again_by_its_driver(folder):
    jobs = chain(folder.parent / "made", a="wait")
    process, said = driver_of(folder, jobs)
    until(lambda: state(folder, jobs) == "running" and num_starts(jobs[0]) == 1, "started")
    os.kill(worker_of(folder, jobs[0]), signal.SIGKILL)
    until(lambda: num_starts(jobs[0]) == 2, "started again")
    (folder.parent / "made" / "go").touch()
    assert said.get(timeout=300) == 0
    process.join()
    assert [num_starts(job) for job in jobs] == [2, 1, 1, 1]


def test_a_driver_that_is_killed_takes_its_workers_with_it_and_the_next_one_goes_on(folder):
    jobs = chain(folder.parent / "made", a="wait")
    process, _ = driver_of(folder, jobs)
    until(lambda: num_starts(jobs[0]) == 1 and state(folder, jobs, 1) == "done", "started")
    worker = worker_of(folder, jobs[0])
    with pytest.raises(ValueError, match=rf"is in use: process {process.pid} on .* drives the study there"):
        Store(folder, "toy").drive()
    process.kill()
    process.join()
    until(lambda: not is_alive(worker), "the worker ends with its driver")
    assert state(folder, jobs) == "lost"
    (folder.parent / "made" / "go").touch()
    assert set(drive(folder, jobs).states.values()) == {"done"}
    assert [num_starts(job) for job in jobs] == [2, 1, 1, 1]


def test_an_attempt_that_outlives_its_driver_is_waited_for_and_counts(folder):
    jobs = chain(folder.parent / "made", a="wait")
    store = Store(folder, "toy")
    store.drive().release()
    command = store.begin(jobs[0], store.records(jobs)["x/a"], store.records(jobs)).command()
    with subprocess.Popen(command) as left:
        until(lambda: state(folder, jobs) == "running" and num_starts(jobs[0]) == 1, "started")
        process, said = driver_of(folder, jobs)
        until(lambda: state(folder, jobs, 1) == "done", "the others go on")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
            assert "attempt 1 of this job was started before" in second.stderr.read()
        assert num_starts(jobs[0]) == 1
        (folder.parent / "made" / "go").touch()
        assert said.get(timeout=300) == 0
        process.join()
        assert left.wait() == 0
    assert num_starts(jobs[0]) == 1, "it said itself how it ended"


def test_an_attempt_that_ends_between_two_drivers_is_done(folder):
    jobs = chain(folder.parent / "made", b="fail")
    (folder.parent / "made" / "broken").touch()
    store = Store(folder, "toy")
    store.drive().release()
    for job in jobs[:2]:
        command = store.begin(job, store.records(jobs)[job.name], store.records(jobs)).command()
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == (job.name == "x/b")
    (folder.parent / "made" / "broken").unlink()
    assert set(drive(folder, jobs).states.values()) == {"done"}
    assert [num_starts(job) for job in jobs] == [1, 2, 1, 1]


def test_ctrl_c_stops_what_runs_and_the_same_command_goes_on(folder):
    jobs = chain(folder.parent / "made", a="wait", b="wait")
    process, said = driver_of(folder, jobs)
    until(lambda: all(num_starts(job) == 1 for job in jobs[:2]), "started")
    workers = [worker_of(folder, job) for job in jobs[:2]]
    os.kill(process.pid, signal.SIGINT)
    assert said.get(timeout=300) == 130
    process.join()
    assert not any(map(is_alive, workers)) and not (folder / "driver.json").exists()
    assert [state(folder, jobs, n) for n in range(4)] == ["interrupted", "interrupted", "waiting", "waiting"]
    (folder.parent / "made" / "go").touch()
    assert set(drive(folder, jobs).states.values()) == {"done"}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(num_cores=9999), r"engine.num_cores: a process asks for 9999, and this machine has \d"),
        (Resources(memory_gb=1e6), r"engine.memory_gb: a process asks for 1e\+06, and this machine has \d"),
        (Resources(num_gpus=0.5), "engine.num_gpus: got 0.5, and the engine `local` shares no GPUs out"),
    ],
)
def test_what_this_machine_has_not(folder, resources, expected):
    with pytest.raises(ValueError, match=expected):
        LocalEngine(folder, resources)


def test_one_job_of_a_folder_with_a_space(folder):
    made = folder.parent / "it's made"
    made.mkdir()
    drive(folder.parent / "it's a study", [note_job(made, "x/a")])
    assert (made / "x-a").read_text() == "done"
