"""How far a study is, as anybody who sees its folder can tell."""

import io
import os
import time

import pytest
from rich.console import Console
from study_tools import chain

from admrl.jobs import progress
from admrl.jobs.display import Display, JobReporter
from admrl.jobs.progress import Progress, ProgressFile, progress_file, read_progress
from admrl.storage import fence
from admrl.studies.pulse import Pulse
from admrl.studies.status import clock, statuses, summary
from admrl.studies.store import Store


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A store, jobs, and the first job's attempt, which is this process."""
    (tmp_path / "made").mkdir()
    jobs = chain(tmp_path / "made")
    store = Store(tmp_path / "study", "toy")
    store.drive().release()
    attempt = store.begin(jobs[0], store.records(jobs)["x/a"], store.records(jobs))
    monkeypatch.setenv(fence.VARIABLE, f"1 {attempt.folder / 'newest'}")
    return store, jobs, attempt


def test_a_running_job_says_where_it_is_and_when_it_will_end(study):
    store, jobs, attempt = study
    everything = {job.name for job in jobs}
    assert statuses(jobs, store, everything)[0].state == "lost"
    pulse = Pulse(attempt.folder, 1, 60.0)
    assert statuses(jobs, store, everything)[0].host == os.uname().nodename
    display = Display(Console(file=io.StringIO()), {"one": 30, "two": 10})
    for name in ("one", "two"):
        reporter = JobReporter(name, display.handle)
        reporter.phase(f"phase of {name}")
        for _ in range(5):
            reporter.advance(real_samples=700)
    display._file._noted -= 10
    display.phase("two", "the last phase")
    before = time.time()
    row = statuses(jobs, store, everything)[0]
    after = time.time()
    assert (row.state, row.phase, row.real_samples, row.share) == ("running", "the last phase", 1400, 0.25)
    started = store.records(jobs)["x/a"].started
    assert 4 * (before - started) - 1e-3 <= row.ends - started <= 4 * (after - started) + 1e-3
    pulse.end(0)
    assert statuses(jobs, store, {"x/b"})[0].job == "x/b"
    assert summary(statuses(jobs, store, everything)) == "4 jobs: 3 waiting, 1 lost"


def test_progress_is_written_by_attempts_alone_and_now_and_then(study, monkeypatch):
    _, _, attempt = study
    monkeypatch.setattr(progress, "NOTED_EVERY", 3600.0)
    file = ProgressFile()
    file.note(Progress("first", 1, 10, None))
    file.note(Progress("second", 2, 10, 5.0))
    assert read_progress(attempt.folder, 1) == Progress("first", 1, 10, None)
    for damaged in ("", "[]", '{"phase": 1}', "[" * 100_000):
        progress_file(attempt.folder, 1).write_text(damaged)
        assert read_progress(attempt.folder, 1) is None
    progress_file(attempt.folder, 1).unlink()
    monkeypatch.delenv(fence.VARIABLE)
    ProgressFile().note(Progress("third", 1, 10, None))
    assert read_progress(attempt.folder, 1) is None


def test_a_time_of_another_day_has_a_date():
    now = time.time()
    assert len(clock(now)) == 5 and len(clock(now - 3 * 86400)) == 11
