"""Which jobs are started when, what stays done, and what is refused; by an engine that has done all at once."""

import json

import pytest
from study_tools import InOneGo, Told, chain, drive, note_job

from admrl.studies.driver import check_unchanged
from admrl.studies.store import Store


class Makes(InOneGo):
    """Makes the outputs, too."""

    def __init__(self, jobs, exit_codes=None):
        super().__init__(exit_codes)
        self._jobs = {job.name: job for job in jobs}

    def submit(self, attempt):
        super().submit(attempt)
        if not self.exit_codes.get(attempt.job):
            for path in self._jobs[attempt.job].outputs:
                path.write_text("made")


def started(engine):
    return [attempt.job for attempt in engine.attempts]


def states(folder, jobs):
    store = Store(folder, "toy")
    return list(store.states(jobs, store.records(jobs)).values())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made").mkdir()
    return tmp_path / "study"


@pytest.fixture
def jobs(folder):
    return chain(folder.parent / "made")


def test_jobs_are_started_after_those_that_they_need(folder, jobs):
    engine, told = Makes(jobs), Told()
    outcome = drive(folder, jobs, engine, reporter=told)
    assert started(engine) == ["x/a", "x/b", "x/c", "x/d"]
    assert set(outcome.states.values()) == {"done"} and outcome.failures == ()
    assert told.num_steps == 4 and told.phases[-1] == "4 of 4 jobs done"


def test_no_more_processes_than_workers(folder, jobs):
    many = [note_job(folder.parent / "made", f"x/{n}") for n in range(7)]
    engine = Makes(many)
    drive(folder, many, engine, num_workers=3)
    assert (engine.most, len(engine.attempts)) == (3, 7)


def test_a_job_of_many_processes_takes_those_that_are_free(folder):
    from dataclasses import replace

    wide = replace(note_job(folder.parent / "made", "x/wide"), max_workers=9)
    narrow = [note_job(folder.parent / "made", f"x/{n}") for n in range(2)]
    engine = Makes([wide, *narrow])
    drive(folder, [narrow[0], wide, narrow[1]], engine, num_workers=4)
    assert engine.attempts[1].words[-2:] == ("--num-workers", "3")
    assert engine.most == 2, "the third waited"


def test_what_is_done_stays_done_and_what_is_new_is_added(folder, jobs):
    drive(folder, jobs, Makes(jobs))
    again = Makes(jobs)
    drive(folder, jobs, again)
    assert started(again) == []
    new = note_job(folder.parent / "made", "x/e")
    from dataclasses import replace

    wider = (*jobs[:2], new, replace(jobs[2], needs=("x/a", "x/b", "x/e")), jobs[3])
    assert states(folder, wider) == ["done", "done", "waiting", "outdated", "outdated"]
    engine = Makes(wider)
    drive(folder, wider, engine)
    assert started(engine) == ["x/e", "x/c", "x/d"]


def test_trainings_are_added_to_a_reference_and_none_is_taken_away(folder, jobs):
    from dataclasses import replace

    def having(*trainings):
        return (replace(jobs[0], trainings=trainings), *jobs[1:])

    drive(folder, having("slbo 0"), Makes(jobs))
    more = having("slbo 0", "slbo 1")
    assert states(folder, more) == ["outdated", "done", "outdated", "outdated"]
    engine = Makes(more)
    drive(folder, more, engine)
    assert started(engine) == ["x/a", "x/c", "x/d"]
    with pytest.raises(ValueError, match="x/a: --trainings: slbo 0 slbo 1 then, slbo 1 now"):
        check_unchanged(having("slbo 1"), Store(folder, "toy"))


def test_an_output_that_is_gone_is_made_again_and_what_was_made_from_it(folder, jobs):
    drive(folder, jobs, Makes(jobs))
    jobs[2].outputs[0].unlink()
    engine = Makes(jobs)
    drive(folder, jobs, engine)
    assert started(engine) == ["x/c", "x/d"]


def test_only_some_jobs(folder, jobs):
    engine = Makes(jobs)
    outcome = drive(folder, jobs, engine, wanted={"x/b", "x/c"})
    assert started(engine) == ["x/b"] and outcome.states["x/c"] == "waiting"


def test_a_job_that_fails_three_times_is_reported_and_the_rest_goes_on(folder, jobs):
    engine, told = Makes(jobs, {"x/a": 1}), Told()
    more = (*jobs, note_job(folder.parent / "made", "x/z", needs=("x/b",)))
    engine = Makes(more, {"x/a": 1})
    outcome = drive(folder, more, engine, reporter=told)
    assert started(engine).count("x/a") == 3 and started(engine).count("x/z") == 1
    assert [attempt.number for attempt in engine.attempts if attempt.job == "x/a"] == [1, 2, 3]
    (failure,) = outcome.failures
    assert (failure.job, failure.exit_code, failure.end) == ("x/a", 1, "the log of x/a")
    assert failure.log.endswith("jobs/x/a/attempt-3.log")
    assert len(told.events) == 3 and "failed 3 times (exit code 1)" in told.events[-1]
    assert [outcome.states[f"x/{name}"] for name in "abcdz"] == [
        "failed",
        "done",
        "waiting",
        "waiting",
        "done",
    ]
    mended = Makes(more)
    drive(folder, more, mended)
    assert started(mended) == ["x/a", "x/c", "x/d"] and mended.attempts[0].number == 4


def test_a_training_that_is_refused_because_it_had_finished_is_done(folder, jobs):
    from dataclasses import replace

    begun = folder.parent / "begun"
    job = replace(jobs[0], begun=begun)
    engine = InOneGo({"x/a": 2})
    job.outputs[0].touch()
    (failure,) = drive(folder, [job], engine, is_finished=lambda job: True).failures
    assert failure.exit_code == 2 and len(engine.attempts) == 1, "not begun: refused, which is not repeated"
    begun.touch()
    outcome = drive(folder, [job], engine, is_finished=lambda job: True)
    assert outcome.states == {"x/a": "done"} and len(engine.attempts) == 2


def test_what_is_refused_is_not_repeated_and_what_was_interrupted_is_no_failure(folder, jobs):
    told = Told()
    engine = Makes(jobs, {"x/a": 2})
    outcome = drive(folder, jobs, engine, reporter=told)
    assert started(engine) == ["x/a", "x/b"] and outcome.failures[0].exit_code == 2
    assert "was refused (exit code 2)" in told.events[-1]

    class StopsFourTimes(Makes):
        def submit(self, attempt):
            self.exit_codes = {"x/a": (130, 143, -2, -15, 0)[min(started(self).count("x/a"), 4)]}
            super().submit(attempt)

    engine, told = StopsFourTimes(jobs), Told()
    outcome = drive(folder, jobs, engine, reporter=told)
    assert started(engine) == ["x/a"] * 5 + ["x/c", "x/d"] and told.events == []
    assert set(outcome.states.values()) == {"done"}


def test_changed_settings_are_refused_by_name_before_anything_is_lost(folder, jobs):
    drive(folder, jobs, Makes(jobs))
    made = folder.parent / "made"
    now = (note_job(made, "x/a", settings=("--seed", "3")), *jobs[1:])
    store = Store(folder, "toy")
    with pytest.raises(ValueError, match=r"x/a: --seed: nothing then, 3 now\n.*--discard x/a$") as refused:
        check_unchanged(now, store)
    assert "x/b" not in str(refused.value) and jobs[0].outputs[0].read_text() == "made"
    store.discard(now[0])
    assert not jobs[0].outputs[0].exists()
    check_unchanged(now, store)
    assert states(folder, now) == ["waiting", "done", "outdated", "outdated"]
    engine = Makes(now)
    drive(folder, now, engine)
    assert started(engine) == ["x/a", "x/c", "x/d"] and engine.attempts[0].number == 2


def test_changed_settings_of_what_has_made_nothing_are_fine(folder, jobs):
    drive(folder, jobs, InOneGo({"x/a": 1}), wanted={"x/a"})
    now = (note_job(folder.parent / "made", "x/a", settings=("--seed", "3")), *jobs[1:])
    check_unchanged(now, Store(folder, "toy"))


def test_a_folder_that_holds_something_else(folder, jobs):
    drive(folder, jobs, Makes(jobs))
    with pytest.raises(ValueError, match="holds the study 'toy', not 'other'; nothing was changed"):
        Store(folder, "other")
    with pytest.raises(ValueError, match="expected an empty folder or that of a study"):
        Store(folder.parent, "toy")
    (folder / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study.json is damaged"):
        Store(folder, "toy")


@pytest.mark.parametrize("text", ["", "[]", '{"settings": []}', '{"attempt": "two"}', "\xff"])
def test_a_damaged_record_is_named(folder, jobs, text):
    drive(folder, jobs, Makes(jobs))
    file = folder / "jobs" / "x" / "a" / "record.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"record.json is damaged: .*; remove it"):
        Store(folder, "toy").records(jobs)
    file.unlink()
    assert states(folder, jobs)[0] == "waiting"


def test_jobs_that_are_no_longer_in_the_file_are_known(folder, jobs):
    drive(folder, jobs, Makes(jobs))
    assert Store(folder, "toy").strangers(jobs[1:]) == ["x/a"]
    record = json.loads((folder / "jobs" / "x" / "a" / "record.json").read_text())
    assert (record["state"], record["attempt"], record["exit_code"]) == ("done", 1, 0)
