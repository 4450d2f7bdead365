"""`admrl study`: what it prints, and what it refuses before anything is done."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_tools import prepared, run_command
from study_tools import STUDY, Told

from admrl.cli import main, parse
from admrl.commands.command import CommandFailed
from admrl.commands.study import is_finished, print_outcome
from admrl.studies.driver import Failure, Outcome
from admrl.studies.store import Record, Store


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A study file in the present folder, whose own folder is "f"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "toy.toml").write_text(STUDY.format(folder="f"))
    return tmp_path / "toy.toml"


def command(*options):
    return parse(["study", "toy.toml", *options])


def test_a_dry_run_prints_the_graph_in_80_columns_and_writes_nothing(file, capsys):
    run_command(command("--dry-run"))
    shown = capsys.readouterr().out
    assert shown.startswith("toy: 11 jobs in f (4 train, 1 reference, 4 cells, 1 evaluate, 1 compare)\n")
    assert max(map(len, shown.splitlines())) <= 80
    assert (
        "linear_quadratic/compare (compare)\n  needs linear_quadratic/evaluate\n  admrl compare f/runs"
        in shown
    )
    run_command(command("--dry-run", "--only", "train"))
    assert capsys.readouterr().out.startswith("toy: 4 jobs in f (4 train)\n")
    assert [path.name for path in file.parent.iterdir()] == ["toy.toml"]


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[3] / "examples/studies").glob("*.toml")), ids=str
)
def test_the_examples_are_studies(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry = prepared(parse(["study", str(example), "--dry-run"]))
    assert dry.study.folder == Path("runs") / example.stem
    assert len(dry.jobs) >= 4 and list(tmp_path.iterdir()) == []
    page = example.read_text()
    assert f"admrl study examples/studies/{example.name}" in page


def test_a_calibrated_dry_run_adds_up_and_says_what_it_does_not_know(file, capsys, monkeypatch):
    known = {"linear_quadratic/uniform-0": 3600.0, "linear_quadratic/uniform-1": None}
    monkeypatch.setattr("admrl.studies.calibration.cpu_seconds", lambda study, seconds, reporter: known)
    run_command(command("--dry-run", "--calibrate", "5"))
    shown = capsys.readouterr().out
    assert "linear_quadratic/uniform-0 (train, about 60.0 CPU minutes)" in shown
    assert "linear_quadratic/uniform-1 (train)" in shown
    assert shown.splitlines()[-2:] == [
        "about 1 CPU hours, without reports",
        "  and what was not measured (too short): linear_quadratic/uniform-1",
    ]


def test_status_of_what_has_not_begun_and_of_what_has(file, capsys):
    run_command(command("--status"))
    shown = capsys.readouterr().out
    assert shown.startswith("toy in f: 11 jobs: 11 waiting\n") and not (file.parent / "f").exists()
    jobs = prepared(command("--dry-run")).jobs
    store = Store(file.parent / "f", "toy")
    store.drive().release()
    record = Record(jobs[0].settings, 2, "failed", started=10.0, ended=12.5, exit_code=1)
    store.write(jobs[0].name, record)
    store.write("linear_quadratic/cem-0", record)
    run_command(command("--status", "--json"))
    status = json.loads(capsys.readouterr().out)
    assert (status["study"], status["folder"], len(status["jobs"])) == ("toy", "f", 11)
    assert status["jobs"][0] == {
        "job": "linear_quadratic/uniform-0",
        "kind": "train",
        "state": "failed",
        "attempt": 2,
        "seconds": 2.5,
        "log": "f/jobs/linear_quadratic/uniform-0/attempt-2.log",
        **dict.fromkeys(("host", "phase", "real_samples", "share", "ends")),
    }
    assert status["not_in_file"] == ["linear_quadratic/cem-0"]
    run_command(command("--status", "--only", "train"))
    shown = capsys.readouterr().out
    assert shown.startswith("toy in f: 4 jobs: 3 waiting, 1 failed\n")
    assert "no longer in the file, and left as they are: linear_quadratic/cem-0" in shown


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "num_updates = 2, num_samples = 800",
            "num_updtes = 2",
            r"/uniform-0-cells: .*--config.num-updtes, 2 \(did you mean --config.num-updates\?\)",
        ),
        (
            "{ num_stages = 1",
            "{ num_stages = 0",
            r"/reference: --config.num-stages: expected 1 to 10000, got 0",
        ),
        ("[methods.uniform]", "[methods.uniform]\nconfig.num_tasks = 'x'", "/uniform-0: .*num-tasks"),
        ("grid = [2, 2]", "grid = [2, 2, 2]", "linear_quadratic: grid: expected 2 positive counts"),
        ("grid = [2, 2]", 'tasks = "papr"', r"tasks: .*\(did you mean 'paper'\?\)"),
    ],
)
def test_what_no_command_takes_is_refused_before_any_job(file, old, new, expected):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"toy.toml.*: linear_quadratic.*{expected}|{expected}"):
        prepared(command())
    assert not (file.parent / "f" / "jobs").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--json"], "json: is a form of `status`"),
        (["--status", "--dry-run"], "exclude each other"),
        (["--status", "--watch"], "exclude each other"),
        (["--watch"], "expected a terminal"),
        (["--calibrate", "5"], "calibrate: is a part of `dry_run`"),
        (["--dry-run", "--calibrate", "0"], "calibrate: expected seconds, above 0, got 0"),
        (["--status", "--discard", "train"], "exclude each other"),
        (["--num-workers", "0"], "num_workers: expected 1 or more, got 0"),
        (["--only", "trian"], r"only: .*\(did you mean 'train'\?\)"),
        (["--discard", "refrence"], r"discard: .*\(did you mean 'reference'\?\)"),
    ],
)
def test_options_that_do_not_fit(file, options, expected):
    with pytest.raises(ValueError, match=expected):
        prepared(command(*options))


def without_reference(text):
    """The same study, whose A* is the optimal policy's."""
    text = text[: text.index("[reference]")] + text[text.index("[evaluation]") :]
    return text.replace("num_episodes", "num_reference_stages = 0, num_episodes")


def test_tasks_are_checked_without_a_reference_too(file):
    file.write_text(without_reference(file.read_text()).replace("[2, 2]", "[2, 2, 2]"))
    with pytest.raises(ValueError, match=r"toy\.toml: linear_quadratic: grid: expected 2 positive counts"):
        prepared(command())
    assert not (file.parent / "f" / "jobs").exists()


@pytest.mark.parametrize("change", [str, without_reference])
def test_a_run_of_another_family_is_refused_before_any_job(file, tmp_path, change):
    from fault_tools import small_run

    file.write_text(f"runs = ['mine', 'other']\n{change(file.read_text())}")
    small_run(tmp_path / "mine")
    small_run(tmp_path / "other", "point_robot")
    with pytest.raises(
        ValueError,
        match=r"toy\.toml: linear_quadratic: runs: other is of point_robot \(released\), not of linear_quadratic \(r",
    ):
        prepared(command())
    assert not (file.parent / "f" / "jobs").exists()
    small_run(tmp_path / "third")
    file.write_text(file.read_text().replace("'other'", "'third'"))
    prepared(command()).lease.release()


def test_a_change_is_refused_and_one_that_is_discarded_is_not(file, monkeypatch, capsys):
    jobs = prepared(command("--dry-run")).jobs
    store = Store(file.parent / "f", "toy")
    store.drive().release()
    run = file.parent / jobs[0].outputs[0]
    run.mkdir(parents=True)
    store.write(jobs[0].name, Record(jobs[0].settings, 1, "done", needs={}))
    file.write_text(file.read_text().replace('"smoke"', '"laptop"'))
    monkeypatch.setattr(sys, "argv", ["admrl", "study", "toy.toml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and run.exists() and not (store.folder / "driver.json").exists()
    said = capsys.readouterr().err
    assert "linear_quadratic/uniform-0: --preset: smoke then, laptop now" in said
    assert "admrl study FILE --discard linear_quadratic/uniform-0" in said
    ready = prepared(command("--discard", "linear_quadratic/uniform-0"))
    assert not run.exists()
    ready.lease.release()


def test_the_end_says_what_failed_and_where(file, capsys):
    from admrl.jobs.display import TextConsole

    ready = prepared(command("--dry-run"))
    names = [job.name for job in ready.jobs]
    done = Outcome(dict.fromkeys(names, "done"), ())
    print_outcome(ready, done, TextConsole())
    assert (
        capsys.readouterr().out
        == "report: f/report/linear_quadratic/report.html\nall families: f/report/toy.html\n"
    )
    failure = Failure(names[0], 1, "f/a.log", "one\ntwo")
    states = {**done.states, names[0]: "failed", names[-2]: "waiting", names[-1]: "waiting"}
    with pytest.raises(
        CommandFailed, match="1 job failed; 2 jobs could not start, as what they need is not done"
    ):
        print_outcome(ready, replace(done, states=states, failures=(failure,)), TextConsole())
    assert "linear_quadratic/uniform-0 failed; the end of f/a.log:\n  one\n  two\n" in capsys.readouterr().out


def test_a_run_that_is_finished_is_known(file, tmp_path):
    from fault_tools import small_run, train

    job = prepared(command("--dry-run")).jobs[0]
    run = small_run(tmp_path / job.outputs[0])
    assert not is_finished(job), "no task is done"
    train(run, every=1e6, reporter=Told())
    assert is_finished(job)


def test_a_gpu_that_no_process_has_is_refused_before_anything_is_started(file):
    file.write_text(
        STUDY.format(folder="f").replace("[methods.uniform]", "[methods.uniform]\ndevice = 'cuda'")
    )
    prepared(command("--dry-run"))
    with pytest.raises(
        ValueError, match=r"toy\.toml: methods\.uniform\.device: got 'cuda', and `engine\.num_gpus` is 0"
    ):
        prepared(command("--dry-run", "--engine", "ray"))
    assert [path.name for path in file.parent.iterdir()] == ["toy.toml"]


def test_a_device_is_checked_as_the_command_does(file):
    file.write_text(
        STUDY.format(folder="f").replace("[methods.uniform]", "[methods.uniform]\ndevice = 'cuad'")
    )
    with pytest.raises(ValueError, match=r"line 8: .*--device: got 'cuad', .*did you mean 'cuda'"):
        prepared(command("--dry-run"))
