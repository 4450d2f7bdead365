"""A finished run goes on to more tasks as if it had been asked for them at first; an unfinished one is evaluated."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from command_tools import prepared, run_command
from fault_tools import EVALUATION, SMALL, SignalAt, assert_same_run, fingerprint, small_run, train

from admrl import evaluate_gaps, load_run
from admrl.commands.evaluate import Evaluate
from admrl.commands.train import Train
from admrl.evaluation.gap_table import GapTable
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.reports.comparison import compare_tables
from admrl.runs.config_file import read_config
from admrl.runs.lock import RunLock
from admrl.runs.versions import versions
from admrl.storage.files import StorageError
from admrl.training.run import Run, train_run

SHORT = replace(SMALL, num_tasks=2)


def numbers(path):
    """`fingerprint`, where names of phases say "task 1/2"."""
    found = fingerprint(path)
    found["metrics"] = [
        [re.sub(r"^task (\d+)/\d+", r"task \1", cell) for cell in row] for row in found["metrics"]
    ]
    return found


@pytest.mark.parametrize("selector", ["adversarial", "cem", "default", "screened", "population"])
def test_an_extended_run_is_the_longer_run_bit_for_bit(tmp_path, selector):
    """Nothing of `admrl train` depends on the number of tasks; names of phases say it."""
    whole = small_run(tmp_path / "whole", selector=selector)
    short = small_run(tmp_path / "short", config=SHORT, selector=selector)
    train(whole, every=30.0)
    train(short, every=30.0)
    assert Run.open(short).finished
    run_command(Train(resume=short, num_tasks=3))
    assert_same_run(numbers(whole), numbers(short))


def test_config_json_says_what_changed_and_when_nothing_may(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    before = read_config(path)
    for smaller in (1, 2):
        with pytest.raises(ValueError, match=f"num_tasks: expected 3 or more, .*got {smaller}"):
            prepared(Train(resume=path, num_tasks=smaller))
    with pytest.raises(ValueError, match=r"num_tasks: expected 1 to 100000, got 1e\+07"):
        prepared(Train(resume=path, num_tasks=10**7))
    with pytest.raises(ValueError, match=r"all 3 tasks are done already; more of them: `num_tasks`"):
        prepared(Train(resume=path, num_tasks=3))
    assert read_config(path) == before and not (path / "lock.json").exists()

    run = prepared(Train(resume=path, num_tasks=5))
    assert run.info.config.num_tasks == 5 and not run.finished
    run.release()
    after = read_config(path)
    assert after.pop("extended") == [{"setting": "num_tasks", "old": 3, "new": 5, "versions": versions()}]
    after["config"]["num_tasks"] = 3
    assert after == before
    run = prepared(Train(resume=path, num_tasks=6))
    assert any("num_tasks is now 6; it was 5" in note for note in run.notes)
    run.release()
    assert [(e["old"], e["new"]) for e in read_config(path)["extended"]] == [(3, 5), (5, 6)]
    with pytest.raises(ValueError, match="num_tasks: expected 6 or more"):
        prepared(Train(resume=path, num_tasks=5))


def test_a_run_that_cannot_go_on_is_not_extended(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    before = (path / "config.json").read_bytes()
    lock = RunLock(path)
    with pytest.raises(ValueError, match="is in use"):
        prepared(Train(resume=path, num_tasks=5))
    lock.release()
    for file in path.glob("checkpoints/*.ckpt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its checkpoints"):
        prepared(Train(resume=path, num_tasks=5))
    assert (path / "config.json").read_bytes() == before


def test_a_config_json_that_cannot_be_written_stays_as_it_is(tmp_path, clean, monkeypatch):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    before = (path / "config.json").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("admrl.storage.files.os.replace", full)
    with pytest.raises(StorageError):
        Run.resume(path, length=5)
    assert (path / "config.json").read_bytes() == before


def test_an_interrupted_run_is_made_longer_on_the_way(tmp_path):
    whole, short = small_run(tmp_path / "whole"), small_run(tmp_path / "short", config=SHORT)
    train(whole, every=30.0)
    with pytest.raises(Interrupted), deferred_signals():
        train_run(Run.resume(short), SignalAt(5))
    train_run(Run.resume(short, length=3), Silent())
    assert_same_run(numbers(whole), numbers(short))


def test_a_new_run_takes_the_setting():
    with pytest.raises(ValueError, match=r"num_tasks: makes a run longer, .*`config\.num_tasks`"):
        Train(num_tasks=3).check()


@pytest.fixture
def interrupted(tmp_path):
    """A run in the middle of its second task."""
    path = small_run(tmp_path / "run")
    with pytest.raises(Interrupted), deferred_signals():
        train_run(Run.resume(path), SignalAt(16))
    return path


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint(interrupted, capsys):
    run = load_run(interrupted)
    assert len(run.state.records) == 1 and run.state.progress.num_done > 0
    run_command(Evaluate(runs=(interrupted,), grid=(2, 2), config=EVALUATION, num_workers=1))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"newest checkpoint: 1 of 3 tasks are done, and of task 2 {run.state.progress.num_done} of " in said
    )
    assert "admrl train --resume" in said
    table = GapTable.load(next((interrupted / "gaps").glob("*.json")))
    assert table.provenance.training_progress == run.position
    assert table.provenance.training_checkpoint == run.checkpoint.number
    assert "1 of 3 tasks are done" in " ".join(compare_tables([table]).notes())
    # its numbers are those of the model in that checkpoint
    (again,) = evaluate_gaps([run], (2, 2), EVALUATION)
    assert (again.episode_return == table.episode_return).all()
    # finished, it may be evaluated anew under the same name
    train(interrupted, every=30.0)
    prepared(Evaluate(runs=(interrupted,), grid=(2, 2), config=EVALUATION))[0][0].release()
    (finished,) = evaluate_gaps([load_run(interrupted)], (2, 2), EVALUATION)
    assert finished.provenance.training_progress is None
    assert not (finished.episode_return == table.episode_return).all()
    assert "training_progress" not in json.dumps(finished.provenance.to_dict())
