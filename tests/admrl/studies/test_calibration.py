"""How long a study would take, from some seconds of it."""

import time
from pathlib import Path

import pytest
from study_tools import STUDY, Told

from admrl.jobs.interruption import Interrupted
from admrl.studies import calibration
from admrl.studies.calibration import _extrapolated, cpu_seconds, sorts
from admrl.studies.description import read_study
from admrl.studies.graph import expand


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(STUDY.format(folder="f"))
    return read_study(tmp_path / "toy.toml")


def test_the_rest_is_as_fast_as_what_was_seen_and_the_start_counts_once():
    assert _extrapolated([(3.0, 0.1), (4.0, 0.2), (5.0, 0.3)]) == pytest.approx(3 + 9)
    assert _extrapolated([(3.0, 0.1)]) == pytest.approx(30)
    assert _extrapolated([]) is None


def test_one_job_of_each_sort_is_measured_and_stands_for_the_others(study, monkeypatch, tmp_path):
    seconds = {
        "linear_quadratic/uniform-0": 7.0,
        "linear_quadratic/adversarial-0": None,
        "linear_quadratic/reference": 11.0,
        "linear_quadratic/uniform-0-cells": 13.0,
        "linear_quadratic/adversarial-0-cells": 17.0,
    }
    assert [job.name for job in sorts(study)] == list(seconds)
    seen = []
    monkeypatch.setattr(calibration, "_measure", lambda job, folder, _: seen.append(job) or seconds[job.name])
    told = Told()
    assert cpu_seconds(study, 1.0, told) == {
        "linear_quadratic/uniform-0": 7.0,
        "linear_quadratic/uniform-1": 7.0,
        "linear_quadratic/adversarial-0": None,
        "linear_quadratic/adversarial-1": None,
        "linear_quadratic/reference": 11.0,
        "linear_quadratic/uniform-0-cells": 13.0,
        "linear_quadratic/uniform-1-cells": 13.0,
        "linear_quadratic/adversarial-0-cells": 17.0,
        "linear_quadratic/adversarial-1-cells": 17.0,
    }
    assert told.num_steps == 5 and not (tmp_path / "f").exists()
    assert all("f/" not in word for job in seen for word in job.words), "nothing is in the study's folder"


def test_a_real_training_is_measured_and_stopped(study, tmp_path):
    """Whether it is done by then or not, it takes about as long as it takes."""
    job = sorts(study)[0]
    begun = time.monotonic()
    whole = calibration._measure(job, tmp_path / "whole", 1000.0)
    assert whole is not None and 0 < whole <= time.monotonic() - begun


def test_what_fails_and_what_does_not_come_to_its_first_step_is_unknown(study, tmp_path, monkeypatch):
    from dataclasses import replace

    job = sorts(study)[0]
    assert calibration._measure(replace(job, words=("admrl", "nothing")), tmp_path / "a", 60.0) is None
    sleeps = ("timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep(600)")
    assert calibration._measure(replace(job, words=sleeps), tmp_path / "b", 0.01) is None
    monkeypatch.setattr(calibration, "check_interruption", _interrupt)
    with pytest.raises(Interrupted):
        calibration._measure(job, tmp_path / "c", 60.0)


def _interrupt():
    raise Interrupted


def test_every_job_but_tables_and_reports_has_an_estimate(study):
    from dataclasses import replace

    assert {job.kind for job in expand(study)} - {job.kind for job in sorts(study)} == {"evaluate", "compare"}
    there = replace(study, methods=(), seeds=(), runs=(Path("old/uniform-7"),))
    _, cells = sorts(there)
    assert cells.words[2] == "old/uniform-7" and cells.name == "linear_quadratic/uniform-7-cells"
