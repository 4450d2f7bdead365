"""What attempts say of themselves, and that of two attempts only the newer one writes: real processes."""

import json
import os
import signal
import subprocess

import pytest
from process_tools import stop, until
from study_tools import Told, chain, drive, note_job, note_module, num_starts

from admrl.studies import pulse as pulses
from admrl.studies.engine import Attempt, Resources
from admrl.studies.local import LocalEngine
from admrl.studies.pulse import SILENT, NotNewest, Pulse, read_pulse
from admrl.studies.store import Store

SILENCE = 1.2  # seconds


@pytest.fixture
def made(tmp_path, monkeypatch):
    note_module(tmp_path, monkeypatch)
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "newest").write_text("1")
    return tmp_path


def attempt(job, folder, number, seconds=SILENCE):
    """Attempt of a job of the module `note`, on record as the newest one."""
    folder.mkdir(exist_ok=True)
    (folder / "newest").write_text(str(number))
    return Attempt(job.name, number, job.words, folder, seconds)


def test_a_pulse_from_outside(folder):
    assert read_pulse(folder, 1) is None
    pulse = Pulse(folder, 1, 3600.0)
    seen = read_pulse(folder, 1)
    assert seen.exit_code is None and f"process {os.getpid()} on" in seen.who
    os.utime(pulse.file, (1, 1))
    assert read_pulse(folder, 1).exit_code == SILENT
    pulse.end(3)
    assert read_pulse(folder, 1).exit_code == 3
    with pytest.raises(NotNewest, match="attempt 1 of this job was started before"):
        Pulse(folder, 1, 3600.0)
    (folder / "newest").write_text("3")
    with pytest.raises(NotNewest, match="attempt 2 comes too late: attempt 3 was started"):
        Pulse(folder, 2, 3600.0)


def test_a_pulse_is_renewed(folder, monkeypatch):
    monkeypatch.setattr(pulses, "RENEWALS", 72_000)  # every 0.05 s
    pulse = Pulse(folder, 1, 3600.0)
    os.utime(pulse.file, (1, 1))
    until(lambda: read_pulse(folder, 1).exit_code is None, "it is renewed")
    pulse.end(0)


def test_a_process_that_is_gone_is_dead_at_once_and_a_damaged_file_says_nothing(folder):
    file = folder / "attempt-1.json"
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    who = {"host": os.uname().nodename, "pid": gone.pid, "since": "then", "seconds": 60.0}
    file.write_text(json.dumps(who))
    assert read_pulse(folder, 1).exit_code == -signal.SIGKILL
    file.write_text(json.dumps(who | {"host": "elsewhere"}))
    assert read_pulse(folder, 1).exit_code is None
    for damaged in ("", "[]", "{}", "[" * 100_000, json.dumps(who | {"exit_code": "zero"})):
        file.write_text(damaged)
        assert read_pulse(folder, 1) is None


@pytest.mark.parametrize(("what", "exit_code"), [("quick", 0), ("fail", 1)])
def test_an_attempt_says_how_it_ended(made, what, exit_code):
    (made / "broken").touch()
    job = note_job(made, "x/a", what=what)
    command = attempt(job, made / "job", 1).command()
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == exit_code
    assert read_pulse(made / "job", 1).exit_code == exit_code


def test_an_attempt_that_was_given_up_ends_when_it_wakes(made):
    """It slept through its silence; the next attempt waits until it is taken for dead, and is alone."""
    job = note_job(made, "x/a", what="wait")
    with subprocess.Popen(attempt(job, made / "job", 1).command()) as older:
        until(lambda: num_starts(job) == 1, "started")
        stop(older)
        (made / "go").touch()
        newer = subprocess.run(attempt(job, made / "job", 2).command())
        assert newer.returncode == 0
        assert job.outputs[0].read_text() == "done" and num_starts(job) == 2
        last_sign, started = (
            file.stat().st_mtime for file in (made / "job" / "attempt-1.json", made / "x-a.starts")
        )
        assert started - last_sign > SILENCE - 0.02, "file times are up to 0.01 s late"
        (made / "go").unlink()
        older.send_signal(signal.SIGCONT)
        assert older.wait(timeout=300) == -signal.SIGKILL
    assert read_pulse(made / "job", 1).exit_code == -signal.SIGKILL


WRITES = """\
import signal, subprocess, sys, time
from pathlib import Path

from admrl.storage.files import write_text

output, go = Path(sys.argv[1]), Path(sys.argv[2])
if len(sys.argv) == 3:
    write_text(output, "first")
    code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    sys.exit(subprocess.call([sys.executable, "-c", code, __file__, *sys.argv[1:], "child"]))
while not go.exists():
    time.sleep(0.01)
write_text(output, "of the dead")
"""


def test_no_process_of_an_attempt_that_was_given_up_writes_a_file(made, tmp_path):
    """Its renewals are far apart: the write itself finds out, in a process that the attempt has started."""
    (tmp_path / "writes.py").write_text(WRITES)
    output, go = made / "output", made / "go"
    job = Attempt("x/a", 1, ("writes", str(output), str(go)), made / "job", 3600.0)
    attempt(note_job(made, "x/a"), made / "job", 1)
    with subprocess.Popen(job.command()) as older:
        until(output.exists, "the first write is fine")
        (made / "job" / "newest").write_text("2")
        go.touch()
        assert older.wait(timeout=300) == -signal.SIGKILL
    assert output.read_text() == "first"
    assert not list(made.glob("output.*"))


def test_a_silent_attempt_is_repeated_by_its_driver(tmp_path, made):
    """The process is stopped, and has been silent for years; the engine sees it running."""
    jobs = chain(made, a="wait")
    told, study = Told(), tmp_path / "study"

    class Stops(LocalEngine):
        def submit(self, attempt):
            super().submit(attempt)
            if attempt.job == "x/a" and attempt.number == 1:
                until(lambda: num_starts(jobs[0]) == 1, "started")
                stop(self._processes["x/a"])
                os.utime(attempt.folder / "attempt-1.json", (1, 1))
                (made / "go").touch()

    outcome = drive(study, jobs, Stops(study, Resources()), reporter=told)
    assert set(outcome.states.values()) == {"done"} and num_starts(jobs[0]) == 2
    assert len(told.events) == 1 and "x/a: attempt 1 failed (no sign of life)" in told.events[0]


def test_an_end_of_which_the_engine_says_nothing(tmp_path, made, monkeypatch):
    monkeypatch.setattr("admrl.studies.driver.LATE", 0.1)

    class Mute(LocalEngine):
        def poll(self):
            super().poll()
            return {}

    study = tmp_path / "study"
    jobs = chain(made)
    outcome = drive(study, jobs, Mute(study, Resources()))
    assert set(outcome.states.values()) == {"done"} and [num_starts(job) for job in jobs] == [1] * 4


def test_an_attempt_of_which_the_record_knows_nothing(tmp_path, made):
    """A power failure may bring an older record back."""
    job = note_job(made, "x/a")
    study = tmp_path / "study"
    drive(study, [job])
    record = study / "jobs" / "x" / "a" / "record.json"
    record.unlink()
    assert set(drive(study, [job]).states.values()) == {"done"}
    assert json.loads(record.read_text())["attempt"] == 2 and num_starts(job) == 2


def test_a_job_that_runs_is_not_discarded(tmp_path, made):
    job = note_job(made, "x/a", what="wait")
    store = Store(tmp_path / "study", "toy")
    store.drive().release()
    command = store.begin(job, store.records([job])["x/a"], {}).command()
    with subprocess.Popen(command) as running:
        until(lambda: num_starts(job) == 1, "started")
        with pytest.raises(ValueError, match=r"x/a is running: process .*; wait until it ends"):
            store.discard(job)
        (made / "go").touch()
        running.wait()
    store.discard(job)
