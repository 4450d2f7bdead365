"""Signals: the present step is saved, the message says how to go on, and going on gives the same run."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from fault_tools import FULL, SMALL, SignalAt, assert_same_run, fingerprint, small_run, train
from process_tools import until

from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.training.run import Run, TrainInfo


def num_steps(run_fingerprint):
    return len(run_fingerprint["metrics"]) - 1


@pytest.mark.parametrize("all_steps", [False, pytest.param(True, marks=FULL)])
def test_stopping_at_a_step_of_every_phase_and_going_on_gives_the_same(tmp_path, clean, all_steps):
    _, expected, _ = clean()
    total = num_steps(expected)
    # 1: sampling of the first task, 7: zero-shot, 12: SLBO, 20: gradient
    for step in range(1, total - 1) if all_steps else (1, 7, 12, 20):
        path = small_run(tmp_path / f"run-{step}")
        with pytest.raises(Interrupted) as stopped, deferred_signals():
            train(path, every=1e6, reporter=SignalAt(step))
        assert stopped.value.exit_code == 143
        before = Run.open(path)
        assert before.checkpoint.meta["log"]["num_rows"] == step, (
            "the present step is saved, not an earlier one"
        )
        with pytest.raises(Interrupted), deferred_signals():  # resuming, interrupted again
            train(path, every=1e6, reporter=SignalAt(1, signal.SIGINT))
        train(path, every=1e6)
        assert_same_run(expected, fingerprint(path))


@pytest.mark.slow
def test_stopping_at_a_step_of_a_screened_run_and_going_on_gives_the_same(tmp_path):
    """Screening draws virtual samples, random numbers and real episodes of its own, between two tasks."""
    whole = small_run(tmp_path / "whole", selector="screened")
    train(whole)
    expected = fingerprint(whole)
    screening = [int(row[0]) for row in expected["metrics"][1:] if "screening" in row[1]]
    assert screening, "the run has screened"
    for step in (screening[0], screening[-1], screening[-1] + 1, 3):
        path = small_run(tmp_path / f"run-{step}", selector="screened")
        with pytest.raises(Interrupted), deferred_signals():
            train(path, every=1e6, reporter=SignalAt(step))
        train(path, every=1e6)
        assert_same_run(expected, fingerprint(path))


def checkpoint_names(path):
    return {file.name for file in path.glob("checkpoints/*.ckpt")}


ENDLESS = """
import os
from admrl.solving import virtual_training

fit = virtual_training.fit_or_restore

def endless(*arguments):
    os.write(2, b"the fit has begun\\n")
    while True:
        fit(*arguments)

virtual_training.fit_or_restore = endless
"""


def command_line(path, code=""):
    """Train by the command line, after some code."""
    arguments = ["admrl", "train", "--resume", str(path), "--checkpoint-seconds", "0"]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; sys.argv = {arguments!r}\nfrom admrl.cli import main; main()",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def read_until(process, words):
    """What it says on its standard error, up to the line with these words."""
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, signum, code):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=100_000))  # days
    with command_line(path) as process:
        until(lambda: process.poll() is not None or checkpoint_names(path), "a step is done")
        process.send_signal(signum)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert f"admrl train --resume {path}" in errors and "Traceback" not in errors
    assert "once more leaves at once" in errors
    assert Run.open(path).notes == [] and not (path / "lock.json").exists()


@pytest.mark.parametrize("num_attempts", [1, pytest.param(5, marks=FULL)])
def test_a_second_signal_leaves_at_once_with_valid_files(tmp_path, num_attempts):
    """The second one meets the step that the first one waits for, and that never ends."""
    for attempt in range(num_attempts):
        path = small_run(tmp_path / f"run-{attempt}")
        with command_line(path, ENDLESS) as process:
            read_until(process, "the fit has begun")
            process.send_signal(signal.SIGTERM)
            read_until(process, "once more leaves at once")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGTERM, errors
        run = Run.open(path)
        assert run.notes == [] and run.checkpoint is not None


def test_run_info_is_what_the_tools_think(clean):
    """The clean run has every phase: the numbers of steps that the tests above aim at."""
    rows = clean()[1]["metrics"][1:]
    phases = [row[1].split(": ")[1] for row in rows]
    assert phases[0] == "SLBO" and phases[6] == "zero-shot" and phases[11] == "SLBO"
    assert phases[19] == "task gradient"
    assert isinstance(Run.open(clean()[0]).info, TrainInfo)
