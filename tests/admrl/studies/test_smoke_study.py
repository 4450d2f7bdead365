"""A whole small study, with the real command line: numbers do not depend on workers, nor on kills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from process_tools import until
from study_tools import STUDY

from admrl.evaluation.gap_files import load_tables

RUNS = ["uniform-0", "adversarial-0"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
HELD = """\
import os, time
from pathlib import Path
from task_families.linear_quadratic import LinearQuadratic

class Held(LinearQuadratic):
    name = "held"

    def make_simulator(self, *arguments, **settings):
        folder = Path(os.environ.get("HELD", "nowhere"))
        while (folder / "hold").exists() and (folder / "f/runs/held-Held/uniform-0/metrics.csv").exists():
            time.sleep(0.01)
        return super().make_simulator(*arguments, **settings)
"""
"""A family that does nothing as long as there is a certain file, once the first training has begun."""


def study(folder, *options):
    """The command, in that folder."""
    return [sys.executable, "-m", "admrl", "study", str(folder / "toy.toml"), *options]


def run(folder, *options):
    return subprocess.run(
        study(folder, *options), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )


def kill_during_a_training(folder):
    """Start the study, and kill its driver once a training has begun, which is told of it before it goes on."""
    hold, log = folder / "hold", folder / "f/jobs/held-Held/uniform-0/attempt-1.log"
    hold.touch()
    environment = ENVIRONMENT | {"HELD": str(folder)}
    with subprocess.Popen(study(folder), cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        begun = folder / "f/runs/held-Held/uniform-0/metrics.csv"
        try:
            until(lambda: process.poll() is not None or begun.exists(), "a training has begun")
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    until(lambda: "once more leaves at once" in log.read_text(), "its training is interrupted")
    hold.unlink()


@pytest.mark.slow
def test_a_study_with_one_worker_and_one_with_two_that_is_killed_find_the_same(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        text = STUDY.format(folder="f").replace("[0, 1]", "[0]").replace("linear_quadratic", "held.py:Held")
        (folder / "toy.toml").write_text(text)
        (folder / "held.py").write_text(HELD)
    kill_during_a_training(two)
    for folder, workers in ((one, "1"), (two, "2")):
        result = run(folder, "--num-workers", workers)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "7 of 7 jobs done" in result.stdout
        assert "report: f/report/held-Held/report.html" in result.stdout
        assert (folder / "f/report/held-Held/report.html").is_file()
    assert list(two.glob("f/jobs/held-Held/uniform-0/attempt-2.log"))
    tables = [load_tables([folder / "f/runs/held-Held" / name for name in RUNS]) for folder in (one, two)]
    for mine, other in zip(*tables, strict=True):
        for field in ("psi", "num_samples", "adapted_return", "optimal_return", "episode_return"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(other, field), err_msg=field)
    again = run(two)
    assert again.returncode == 0 and "attempt" not in again.stdout
    check_a_study_of_these_runs(one)


def check_a_study_of_these_runs(folder):
    """One that trains nothing says the same of them."""
    text = STUDY.format(folder="g").replace("linear_quadratic", "held.py:Held")
    text = text.replace("seeds = [0, 1]", f"runs = {[f'f/runs/held-Held/{name}' for name in RUNS]}")
    text = text.replace("[methods.uniform]\n[methods.adversarial]\n", "")
    (folder / "toy.toml").write_text(text.replace("[2, 2]\n", "[2, 2]\nname = 'there'\n"))
    result = run(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 of 5 jobs done" in result.stdout
    report = Path("report/held-Held")
    for name in ("summary.csv", "paired.csv", "cells.csv"):
        assert (folder / "g" / report / name).read_bytes() == (folder / "f" / report / name).read_bytes(), (
            name
        )
