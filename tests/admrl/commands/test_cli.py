"""The command line as a user meets it: help, mistakes, a whole small run, interruption."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_tools import prepared
from imports import output_and_loaded
from process_tools import until

from admrl.cli import main, parse
from admrl.commands.evaluate import Evaluate
from admrl.commands.quickstart import Quickstart
from admrl.commands.session import thread_warning
from admrl.commands.train import Train
from admrl.config.presets import PRESETS, preset_config
from admrl.evaluation.evaluate_runs import evaluate_gaps
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.worst_gap import RunGap
from admrl.jobs.reporter import Silent
from admrl.training.run import load_run, prepare_run, train_run

ENVIRONMENT = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


def script(*arguments):
    """The command line as code."""
    return f"import sys; sys.argv = ['admrl', *{arguments!r}]\nfrom admrl.cli import main; main()"


def admrl(*arguments, cwd=None, code=""):
    """Run the command line in a fresh interpreter, after some code."""
    command = [sys.executable, "-c", f"{code}\n{script(*arguments)}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=300)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["quickstart"],
        ["train"],
        ["train-baseline"],
        ["train-baseline", "crl"],
        ["train-baseline", "promp"],
        ["evaluate"],
        ["heatmap"],
        ["compare"],
        ["reference"],
        ["study"],
        ["search-worst"],
        ["gradcheck"],
        ["export"],
    ],
)
def test_help_has_a_sentence_for_every_option_and_needs_no_torch(command):
    shown, loaded = output_and_loaded(script(*command, "--help"), ("torch",), env=ENVIRONMENT)
    assert loaded == []
    blocks = shown.split("│ --")[1:]
    assert not command or len(blocks) >= (1 if command in (["heatmap"], ["compare"]) else 4)
    for block in blocks:
        words = block.split("│")[1:]
        assert any(len(w.split()) >= 2 for w in words) or len(block.split("│")[0].split()) > 3, block


def test_a_reader_that_leaves_is_no_error_to_report():
    """`admrl train --help | head`"""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; sys.argv = ['admrl', 'train', '--help']\nfrom admrl.cli import main; main()"
    with os.fdopen(write, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--family", "hoper2d"], "did you mean 'hopper2d'"),
        (["train", "--selector", "adverserial"], "did you mean 'adversarial'"),
        (["train", "--preset", "lapto"], "did you mean 'laptop'"),
        (["train", "--variant", "papr"], "did you mean 'paper'"),
        (["train", "--sed", "3"], "--seed"),
        (["train", "--seed", "-3"], "--seed: expected 0 to 2^62 - 1, got -3"),
        (["train", "--config.num-tasks", "-3"], "--config.num-tasks: expected 1 to 100000, got -3"),
        (["train", "--config.slbo.num-samples", "-200"], "--config.slbo.num-samples: expected"),
        (["train", "--config.slbo.num-samples", "4001"], "nearest: 4000"),
        (["train", "--config.first-psi", "3", "1.5"], "--config.first-psi: target velocity = 3 m/s"),
        (
            ["train", "--config.first-psi", "1", "1.5", "1"],
            "--config.first-psi: expected 2 numbers a task (target velocity, target height), got 3",
        ),
        (
            ["train", "--config.tasks-per-round", "7"],
            "--config.num-tasks: expected a multiple of --config.tasks-per-round (7)",
        ),
        (["train", "--num-threads", "0"], "--num-threads: expected 1 to 1024, got 0"),
        (["train", "--num-threads", "100000"], "--num-threads: expected 1 to 1024, got 100000"),
        (["train-baseline", "rl2", "--num-threads", "100000"], "--num-threads: expected 1 to 1024"),
        (["train", "--config.search.objective", "cvr"], "did you mean 'cvar'"),
        (
            [
                "train",
                "--selector",
                "screened",
                "--config.search.screen-by",
                "disagreement",
                "--config.dynamics.num-members",
                "1",
            ],
            "disagreement needs at least 2 members",
        ),
        (["evaluate", "nowhere"], "not a run folder"),
        (["evaluate", "nowhere", "--objective", "wrst"], "did you mean 'worst'"),
        (["evaluate", "nowhere", "--alpha", "0"], "--alpha: expected above 0 and at most 1, got 0"),
        (
            ["evaluate", "nowhere", "--temperature", "nan"],
            "--temperature: expected a positive number, got nan",
        ),
        (["search-worst", "nowhere"], "not a run folder"),
        (
            ["search-worst", "nowhere", "--search", "defalt"],
            "replay, mixture, default (did you mean 'default'",
        ),
        (["search-worst", "nowhere", "--search", "screened"], "chooses tasks in a training"),
        (["search-worst", "nowhere", "--scale", "rato"], "did you mean 'ratio'"),
        (
            ["search-worst", "nowhere", "--budget", "5"],
            "--num-probes: expected at most the budget of 5, got 12",
        ),
        (["search-worst", "nowhere", "--difference", "-1"], "--difference: expected 0"),
        (["evaluate"], "at least one run folder"),
        (["train", "--out", "x" * 300], "xxx: File name too long; choose another path"),
        (["train", "--resume", "x" * 300], "xxx/config.json: File name too long"),
        (["evaluate", "x" * 300], "xxx/config.json: File name too long"),
        (["heatmap", "nowhere", "--out", "x" * 300 + ".png"], "xxx.png: File name too long"),
        (["compare", "a", "b", "--names", "a", ""], "--names: expected a name for every run, got ('a', '')"),
        (["heatmap", "nowhere"], "run: admrl evaluate nowhere"),
        (["compare", "nowhere"], "run: admrl evaluate nowhere"),
        (["compare"], "at least one run folder"),
        (["reference", "--family", "hoper2d"], "did you mean 'hopper2d'"),
        (["reference", "--methods", "sacc"], "did you mean 'sac'"),
        (["reference", "--seeds"], "--seeds: expected at least one"),
        (["reference", "--tasks", "tasks.csv"], "no such file"),
        (["reference", "--config.num-samples", "300"], "nearest: 400"),
        (["heatmap", "nowhere", "--out", "x.exe"], ".png, .pdf, .svg"),
        (["quickstart", "--grid", "1", "4"], "expected at least 2 2"),
        (["frobnicate"], "quickstart, train, train-baseline, evaluate, heatmap"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["admrl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    out, err = capfd.readouterr()
    assert message in " ".join((out + err).split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


def test_missing_mujoco_names_the_remedy(tmp_path):
    result = admrl("train", cwd=tmp_path, code="import sys; sys.modules['mujoco'] = None")
    assert result.returncode == 2
    assert 'pip install "gymnasium[mujoco]' in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_existing_run_is_never_overwritten(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("precious")
    for command in (["train", "--out", str(run)], ["quickstart", "--out", str(run)]):
        result = admrl(*command)
        assert result.returncode == 2 and "nothing was changed" in result.stderr
    assert (run / "config.json").read_text() == "precious"


@pytest.mark.slow
def test_train_evaluate_heatmap(tmp_path):
    """The three commands on real MuJoCo, smallest preset."""
    out = tmp_path / "run"
    result = admrl("train", "--preset", "smoke", "--seed", "3", "--out", str(out))
    assert result.returncode == 0, result.stderr
    for name in (
        "config.json",
        "tasks.json",
        "metrics.csv",
        "checkpoints",
        "replay",
        "tensorboard",
    ):
        assert (out / name).exists(), name
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 3 and config["versions"]["mujoco"]
    assert len(json.loads((out / "tasks.json").read_text())) == preset_config("smoke", "population").num_tasks
    small = ["--config.num-updates", "2", "--config.num-samples", "800", "--config.num-episodes", "4"]
    small += ["--config.num-reference-samples", "400", "--config.num-reference-updates", "2"]
    result = admrl("evaluate", str(out), "--grid", "2", "2", *small)
    assert result.returncode == 0, result.stderr
    assert "population" in result.stdout and "worst gap" in result.stdout
    for options, message in (
        (["--grid", "6"], "expected 2 positive counts"),
        (["--grid", "2", "2", "--config.num-episodes", "5"], "another `name`"),
        (["--grid", "2", "2", "--name", "a/b"], "name: expected letters"),
        (["--reference", str(tmp_path / "none.json")], "no such file"),
        ([str(out)], "is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(parse(["evaluate", str(out), *options, *(small if len(options) < 5 else [])]))
    result = admrl("heatmap", str(out), "--out", str(tmp_path / "gap.png"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "gap.png").stat().st_size > 10_000
    resumed = admrl("train", "--resume", str(out))
    assert resumed.returncode == 2 and "done already" in resumed.stderr


@pytest.mark.slow
def test_search_worst(tmp_path):
    """On real MuJoCo, smallest preset: a report that can be read again, films, a replay command that parses."""
    out = tmp_path / "run"
    result = admrl("train", "--preset", "smoke", "--selector", "uniform", "--out", str(out))
    assert result.returncode == 0, result.stderr
    small = ["--config.num-updates", "1", "--config.num-samples", "800", "--config.num-episodes", "2"]
    small += ["--config.num-reference-samples", "400", "--config.num-reference-updates", "1"]
    small += ["--config.num-reference-stages", "1", "--config.num-policy-seeds", "2"]
    small += ["--budget", "5", "--batch", "3", "--num-probes", "3", "--top", "1"]
    result = admrl("search-worst", str(out), *small)
    assert result.returncode == 0, result.stderr
    data = json.loads((out / "worst" / "worst.json").read_text())
    report = data["report"]
    assert report["num_evaluations"] == 5 and report["bound"]["num_probes"] == 3
    assert data["search_policies"] == 5 * 2 and data["confirm_policies"] == len(report["tasks"]) * 2 * (1 + 4)
    for task, replay in zip(report["tasks"], data["replay"], strict=True):
        assert task["low"] <= task["gap"] <= task["high"] and task["gradient_norm"] >= 0
        command = parse(shlex.split(replay)[1:])
        assert torch.equal(torch.tensor(command.psi), torch.tensor(task["psi"])) and command.run == out
    assert "95% confidence" in result.stdout and "admrl render --run" in result.stdout
    assert (out / "worst" / "worst-1.gif").exists() or "no film" in result.stderr
    again = admrl("search-worst", str(out))
    assert again.returncode == 2 and "already holds a report" in again.stderr
    # the same command goes on after an interruption: what was evaluated is taken from the files
    batches, text = sorted((out / "worst" / "batches").iterdir()), (out / "worst" / "worst.json").read_text()
    assert len(batches) == 2 + 2
    written = [file.stat().st_mtime_ns for file in batches]
    for damaged in (False, True):
        (out / "worst" / "worst.json").unlink()
        if damaged:
            batches[-1].write_bytes(batches[-1].read_bytes()[:-9])
        result = admrl("search-worst", str(out), *small, "--no-film")
        assert result.returncode == 0, result.stderr
        assert json.loads((out / "worst" / "worst.json").read_text()) == json.loads(text)
        same = [file.stat().st_mtime_ns == t for file, t in zip(batches, written, strict=True)]
        assert same == [True] * 3 + [not damaged]
        assert ("is evaluated again" in result.stdout) == damaged
    # other settings are evaluated anew
    (out / "worst" / "worst.json").unlink()
    assert admrl("search-worst", str(out), *small, "--no-film", "--scale", "ratio").returncode == 0
    assert batches[0].stat().st_mtime_ns > written[0]
    # a task asked for twice says something new, and the same calls say the same
    run, config = load_run(out), parse(["search-worst", str(out), *small]).config
    psi = torch.tensor([report["tasks"][0]["psi"]])
    gap, same = RunGap(run, config, 0), RunGap(run, config, 0)
    first, second = gap(psi), gap(psi)
    assert not torch.equal(first, second)
    assert torch.equal(first, same(psi)) and torch.equal(second, same(psi))


@pytest.mark.slow
def test_interrupting_says_how_to_go_on_and_resuming_finishes(tmp_path):
    out = tmp_path / "run"
    script = (
        "import sys; sys.argv = ['admrl', 'train', '--preset', 'smoke', '--config.num-tasks', '100000', "
        f"'--out', {str(out)!r}]\nfrom admrl.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    until(lambda: process.poll() is not None or (out / "tasks.json").exists(), "a task is done")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"admrl train --resume {out}" in errors and "Traceback" not in errors
    done = len(json.loads((out / "tasks.json").read_text()))
    assert 1 <= done < 100_000
    config = json.loads((out / "config.json").read_text())
    config["config"]["num_tasks"] = done + 2  # a round: no need to wait for all of them
    (out / "config.json").write_text(json.dumps(config))
    assert admrl("train", "--resume", str(out)).returncode == 0
    assert len(json.loads((out / "tasks.json").read_text())) == done + 2
    rows = (out / "metrics.csv").read_text().splitlines()[1:]
    steps = [int(row.split(",")[0]) for row in rows]
    assert steps == list(range(1, len(rows) + 1)), "no row twice, none missing"


def test_preset_sets_the_defaults_and_options_override_them():
    train = parse(["train", "--preset", "paper", "--config.num-tasks", "7"])
    assert isinstance(train, Train)
    assert train.config.dynamics.hidden_sizes == (1000, 1000) and train.config.num_tasks == 7
    assert parse(["train", "--selector", "uniform"]).config == PRESETS["laptop"]
    assert isinstance(parse(["quickstart"]), Quickstart)
    assert parse(["evaluate", "a", "b", "--grid", "3", "4"]).grid == (3, 4)
    assert isinstance(parse(["evaluate", "a"]), Evaluate)


SECOND_PART = """
import itertools, pathlib, time
from admrl.evaluation.part_store import PartStore
from admrl.jobs.interruption import check_interruption

parts, save = itertools.count(1), PartStore.save

def held(store, *arguments):
    if next(parts) == 2:
        (pathlib.Path(__file__).parent / "second").touch()
        while True:
            check_interruption()
            time.sleep(0.01)
    save(store, *arguments)

PartStore.save = held
if __name__ == "__main__":
"""
"""A script whose worker does not come to the end of its second part."""


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(tmp_path):
    """Finished batches are kept and not computed again, and the numbers are those of one without interruption."""
    out = tmp_path / "run"
    config = replace(PRESETS["smoke"], num_tasks=1)
    train_run(
        prepare_run(
            out,
            family="hopper2d",
            variant="released",
            selector="uniform",
            preset="smoke",
            seed=0,
            config=config,
        ),
        Silent(),
    )
    options = [str(out), "--grid", "2", "4", "--num-workers", "1", "--config.num-reference-stages", "0"]
    options += ["--config.num-policy-seeds", "1", "--config.num-updates", "6", "--config.num-samples", "800"]
    options += ["--config.num-episodes", "2", "--config.tasks-per-batch", "2"]
    (tmp_path / "script.py").write_text(SECOND_PART + textwrap.indent(script("evaluate", *options), "    "))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    until(lambda: process.poll() is not None or (tmp_path / "second").exists(), "the second part")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "goes on from there" in errors and "Traceback" not in errors
    kept = {file: file.stat().st_mtime_ns for file in out.glob("evaluation/*/*.part")}
    assert len(kept) == 1 and not (out / "gaps").exists()
    assert admrl("evaluate", *options).returncode == 0
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())
    resumed = GapTable.load(out / "gaps" / "grid-2x4.json")
    whole = evaluate_gaps([load_run(out)], (2, 4), parse(["evaluate", *options]).config)[0]
    np.testing.assert_array_equal(resumed.episode_return, whole.episode_return)


@pytest.mark.parametrize(
    ("num_threads", "load", "warns"), [(1, 9.0, False), (2, 0.4, False), (2, 1.0, True), (3, 0.0, True)]
)
def test_threads_that_would_wait_for_each_other_are_warned_of(monkeypatch, num_threads, load, warns):
    monkeypatch.setattr("admrl.commands.session.num_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    assert bool(thread_warning(num_threads)) == warns
