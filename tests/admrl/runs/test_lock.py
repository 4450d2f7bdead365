"""One writer for a run: a second one is told, a dead one is recognised, a race has one winner."""

import shutil
from dataclasses import replace

import pytest
from command_tools import run_command
from fault_tools import CONTEXT, FULL, SMALL, hold_lock, race_for_lock, small_run, train

from admrl.commands.train import Train
from admrl.jobs.reporter import Silent
from admrl.runs.lock import RunLock
from admrl.training.run import Run, train_run


def test_a_second_writer_is_told_who_is_there_and_a_dead_one_is_recognised(tmp_path):
    path = small_run(tmp_path / "run")
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_lock, args=(path, ready))
    process.start()
    assert ready.wait(300)
    with pytest.raises(ValueError, match=f"is in use: process {process.pid} on"):
        train(path)
    (path / ".tmp-half").write_text("left by a killed process")
    process.kill()
    process.join()
    lock = RunLock(path)
    assert f"process {process.pid} on" in lock.note and "without releasing" in lock.note
    assert not (path / ".tmp-half").exists()
    lock.release()
    lock.release()
    assert RunLock(path).note is None


def test_a_finished_run_is_refused_and_left_unlocked(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    with pytest.raises(ValueError, match="all 3 tasks are done already"):
        run_command(Train(resume=path))
    lock = RunLock(path)
    assert lock.note is None
    lock.release()


@pytest.mark.parametrize("num_races", [1, pytest.param(20, marks=FULL)])
def test_exactly_one_of_several_wins_the_race(tmp_path, num_races):
    for _ in range(num_races):
        go, done, answers = CONTEXT.Barrier(4), CONTEXT.Event(), CONTEXT.Queue()
        processes = [
            CONTEXT.Process(target=race_for_lock, args=(tmp_path, go, done, answers)) for _ in range(4)
        ]
        for process in processes:
            process.start()
        assert sorted(answers.get(timeout=300) for _ in processes) == [False, False, False, True]
        done.set()
        for process in processes:
            process.join()


def test_a_run_that_somebody_else_went_on_with_is_not_overwritten(tmp_path):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=1))
    early = Run.open(path)
    train(path)
    with pytest.raises(ValueError, match="another process has trained it meanwhile"):
        train_run(early, Silent())
