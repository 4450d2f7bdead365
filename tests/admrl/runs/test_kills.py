"""Trainings killed by -9 at any instant: half a file is never read, and resuming gives the uninterrupted run."""

import random
import shutil
import time

import pytest
from fault_tools import (
    CONTEXT,
    FULL,
    assert_all_readable,
    assert_same_run,
    fingerprint,
    kill_after,
    save_in_a_loop,
    small_run,
    train,
)
from process_tools import until

from admrl.training.run import Run


@pytest.mark.parametrize(
    ("family", "num_kills"),
    [
        pytest.param("linear_quadratic", 3, marks=pytest.mark.slow),
        pytest.param("linear_quadratic", 50, marks=FULL),
        pytest.param("hopper2d", 20, marks=FULL),
    ],
)
def test_kill_9_at_random_instants_and_resume_gives_the_uninterrupted_run(tmp_path, clean, family, num_kills):
    _, expected, seconds = clean(family)
    generator, num_done = random.Random(num_kills), 0
    while num_done < num_kills:
        path = small_run(tmp_path / f"run-{num_done}", family)
        every = (0.0, 0.3, 30.0)[num_done % 3]
        while kill_after(path, generator.uniform(0, seconds), every):
            num_done += 1
            assert_all_readable(path)
            if generator.random() < 0.5 or num_done >= num_kills:
                break  # otherwise the run that goes on is killed, too
        if not Run.open(path).finished:
            train(path, every)
        assert_same_run(expected, fingerprint(path))
        assert not list(path.rglob(".tmp-*")), "left by a killed process"
        shutil.rmtree(path)


def newest(path):
    """Of the checkpoints' numbers; the files are not opened: they may be deleted meanwhile."""
    return max(int(file.stem) for file in path.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("num_kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=FULL)])
def test_kill_9_while_saving_leaves_the_newest_or_the_one_before(tmp_path, clean, num_kills):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    before, generator = newest(path), random.Random(0)
    for _ in range(num_kills):
        process = CONTEXT.Process(target=save_in_a_loop, args=(path,))
        process.start()
        until(lambda before=before: newest(path) > before, "a checkpoint")
        time.sleep(generator.uniform(0, 0.1))  # the instant is random; none is waited for
        process.kill()
        process.join()
        run = Run.open(path)
        assert run.notes == [] and run.checkpoint.number > before
        before = run.checkpoint.number
        assert_all_readable(path)
