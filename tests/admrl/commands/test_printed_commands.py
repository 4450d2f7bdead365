"""Commands and paths that are printed: whole in a file of 80 columns, and quoted, so that what is copied runs."""

import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from table_tools import toy_table

from admrl.baselines.config import ALGORITHMS, preset_config
from admrl.baselines.run import prepare_baseline
from admrl.cli import main, parse
from admrl.commands.evaluate import Evaluate
from admrl.commands.gap_printing import print_tables
from admrl.commands.quickstart import EVALUATIONS, Quickstart
from admrl.commands.search_worst import SearchWorst
from admrl.commands.train import Train
from admrl.commands.train_baseline import TrainBaseline
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.devices.choice import Choice
from admrl.evaluation.gap_files import load_tables
from admrl.evaluation.reference import Reference
from admrl.evaluation.task_lists import grid_tasks
from admrl.evaluation.worst_gap import replay_command
from admrl.jobs.display import Display, TextConsole
from admrl.jobs.interruption import Interrupted
from admrl.runs.config_file import resume_command
from admrl.search.factory import make_search
from admrl.search.worst import find_worst
from admrl.training.run import load_run, prepare_run

HARD = 'it\'s a [bold]run[], "the" :bug: of $HOME & of many words; wider than a file has columns, surely'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose name needs quotes, has what could pass for markup, and is longer than a line."""
    monkeypatch.setenv("COLUMNS", "80")  # what rich takes for a file, too
    folder = tmp_path / HARD
    folder.mkdir()
    return folder


def _new_run(path, seed=0, family="point_robot"):
    run = prepare_run(
        path, family=family, variant="released", selector="uniform", preset="smoke", seed=seed,
        config=PRESETS["smoke"],
    )  # fmt: skip
    run.release()
    return run


def _parsed(text, start):
    """The command that begins after some words and ends with its line, as the shell would give it to us."""
    _, found, rest = text.partition(start)
    assert found, text
    words = shlex.split(rest.split("\n")[0])
    assert words[0] == "admrl"
    return parse(words[1:])


def test_a_command_that_resumes(folder):
    run = _new_run(folder / "a")
    assert parse(shlex.split(run.resume_command)[1:]).resume == run.path
    file = folder / "own family.py"
    file.write_text("")
    source = {"name": "own family.py:Mine", "file": str(file), "sha256": "", "distribution": ""}
    for kind, command in ((None, Train), ("baseline", TrainBaseline)):
        parsed = parse(shlex.split(resume_command(run.path, kind, source))[1:])
        assert isinstance(parsed, command)
        assert (parsed.resume, parsed.family) == (run.path, f"{file}:Mine")


def test_a_command_that_replays_has_the_task_to_the_last_bit(folder):
    run = _new_run(folder / "a")
    psi = torch.tensor([-1 / 3, 1e-7], dtype=run.family.box.low.dtype)
    command = replay_command(run, psi.double().tolist(), 3, 7, str(folder / "film 1.gif"))
    parsed = parse(shlex.split(command)[1:])
    assert (parsed.run, parsed.out, parsed.seed, parsed.num_updates) == (
        run.path, folder / "film 1.gif", 3, 7,
    )  # fmt: skip
    assert torch.equal(torch.tensor(parsed.psi, dtype=psi.dtype), psi)


def test_commands_in_errors(folder):
    (folder / "a").mkdir()
    with pytest.raises(ValueError) as error:
        load_tables([folder / "a", folder / "b b"])
    assert _parsed(str(error.value), "run: ").runs == (folder / "a", folder / "b b")
    with pytest.raises(ValueError) as error:
        Reference.load(folder / "none at all.json")
    assert _parsed(str(error.value), "this makes one: ").out == folder / "none at all.json"


def test_what_follows_a_training(folder, monkeypatch, capsys):
    monkeypatch.setattr("admrl.commands.session.train_in_session", lambda *_: TextConsole())
    run = _new_run(folder / "a")
    Train().execute(run)
    printed = capsys.readouterr().out
    following = _parsed(printed, "next: ")
    assert (following.runs, following.grid) == ((run.path,), (6, 6))
    assert f"-> {run.path}\n" in printed
    config = preset_config("smoke", "point_robot", ALGORITHMS[0])
    baseline = prepare_baseline(
        folder / "b", algorithm=ALGORITHMS[0], family="point_robot", variant="released", preset="smoke",
        seed=0, config=config,
    )  # fmt: skip
    baseline.release()
    TrainBaseline().execute(baseline)
    following = _parsed(capsys.readouterr().out, "next: ")
    assert following.runs == (baseline.path,) and str(following.reference) == "FILE"


def test_what_follows_an_evaluation(folder, monkeypatch, capsys):
    monkeypatch.setattr("admrl.evaluation.parallel.evaluate_in_parallel", lambda *_, **__: [toy_table()])
    runs = [_new_run(folder / "a"), _new_run(folder / "b")]
    Evaluate().execute((runs, grid_tasks(runs[0].family, (2, 2)), None, Choice(torch.device("cpu"))))
    following = _parsed(capsys.readouterr().out, "next: ")
    assert (following.runs, following.tasks) == ((runs[0].path, runs[1].path), "grid-2x2")


def test_an_interrupted_quickstart_says_three_commands(folder, monkeypatch):
    command = Quickstart(out=folder / "q", family="point_robot", preset="smoke", seed=3)
    runs = command.prepare()

    def stop(*_):
        raise Interrupted(signum=2)

    monkeypatch.setattr(Quickstart, "_train", stop)
    with pytest.raises(Interrupted) as interrupted:
        command.execute(runs)
    lines = [line.strip() for line in str(interrupted.value).split("\n")[1:]]
    first, second, evaluation = (parse(shlex.split(line)[1:]) for line in lines)
    assert [first.resume, second.resume] == [run.path for run in runs] == list(evaluation.runs)
    assert (evaluation.grid, evaluation.seed) == ((4, 4), 3)
    assert evaluation.config == EVALUATIONS["smoke"] != EvaluationConfig()


def test_replays_of_a_search_are_whole(folder, capsys):
    run = _new_run(folder / "a", family="hopper2d")  # it has a picture
    command = SearchWorst(run.path, out=folder / "w w")
    (folder / "w w").mkdir()
    space = run.family.box
    generator = torch.Generator().manual_seed(0)
    report = find_worst(
        lambda psi: psi.sum(-1), space, make_search("uniform", space, generator=generator), budget=6, top=2,
        generator=generator, num_probes=2,
    )  # fmt: skip
    counts = SimpleNamespace(num_policies=1, real_samples=1, notes=[])
    command._save(run, report, counts, counts, TextConsole())
    printed = capsys.readouterr().out
    lines = printed.partition("to see the worst again:\n")[2].strip().split("\n")
    assert len(lines) == len(report.tasks)
    for number, (line, task) in enumerate(zip(lines, report.tasks, strict=True), start=1):
        parsed = parse(shlex.split(line)[1:])
        assert (parsed.run, parsed.out) == (run.path, folder / "w w" / f"worst-{number}.gif")
        assert torch.equal(
            torch.tensor(parsed.psi, dtype=space.low.dtype).double(), torch.tensor(task.psi).double()
        )
    assert f"Wrote {folder / 'w w' / 'worst.json'}; to see" in printed


def test_lines_of_a_display_are_whole(capsys):
    console = TextConsole()
    assert not console.is_terminal
    with Display(console, {HARD: 3}) as display:
        display.phase(HARD, HARD)
        display.event(HARD, f"{HARD} is damaged")
    assert capsys.readouterr().out.split("\n")[:2] == [f"{HARD}: {HARD} ", f"{HARD}: {HARD} is damaged"]


def test_tables_are_shown_where_nobody_knows_the_width(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    print_tables([toy_table()], TextConsole())
    assert "worst gap" in capsys.readouterr().out


@pytest.mark.slow
def test_a_command_that_is_copied_runs(folder, monkeypatch, capsys):
    """From a training to its evaluation and comparison, by what each prints."""
    monkeypatch.chdir(folder)

    def run(*words):
        monkeypatch.setattr(sys, "argv", list(words))
        main()
        printed = capsys.readouterr().out
        return shlex.split(printed.partition("next: ")[2].split("\n")[0])

    small = ["--config.num-updates", "1", "--config.num-samples", "800", "--config.num-episodes", "2"]
    small += ["--config.num-reference-stages", "0", "--config.num-policy-seeds", "1", "--num-workers", "1"]
    train = ["admrl", "train", "--family", "point_robot", "--preset", "smoke", "--config.num-tasks", "2"]
    evaluate = run(*train, "--out", str(folder / "a run"))
    evaluate = [*evaluate[: evaluate.index("--grid")], "--grid", "2", "2"]  # fewer tasks
    compare = run(*evaluate, *small)
    run(*compare)
    assert (folder / "report" / "report.html").is_file()
    table = load_tables([folder / "a run"])[0]
    assert table.method == "population"
    assert load_run(folder / "a run").finished
    renamed = replace(table, method=HARD)
    renamed.save(folder / "t.json")
    assert load_tables([folder / "t.json"])[0].method == HARD
