"""Runs that are killed, interrupted, filled up, damaged: a short part by default, all of it with -m faults."""

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from admrl.evaluation.adapted import Adapted
from command_tools import run_command
from fault_tools import (
    CONTEXT,
    SMALL,
    assert_all_readable,
    assert_same_run,
    fingerprint,
    kill_after,
    small_run,
    timed,
    train,
)
from rich.console import Console

from admrl.commands.train import Train
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.evaluation.evaluate_runs import check_runs
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.parallel import evaluate_in_parallel, lock_runs
from admrl.evaluation.part_store import PartStore
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.runs.folder import create_run
from admrl.runs.lock import RunLock
from admrl.runs.log import RunLog
from admrl.storage.files import StorageError, write_bytes
from admrl.training import run as train_run_module
from admrl.training.run import Run, TrainInfo, train_run

FULL = pytest.mark.faults
FAMILIES = ("linear_quadratic", "hopper2d")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Uninterrupted runs by family: folder, fingerprint, seconds."""
    runs = {}

    def run(family="linear_quadratic"):
        if family not in runs:
            path = small_run(tmp_path_factory.mktemp("clean") / family, family)
            warm = small_run(tmp_path_factory.mktemp("warm") / family, family)
            timed(warm)  # starts the fork server, too
            seconds = timed(path)
            assert_same_run(fingerprint(path), fingerprint(warm))
            runs[family] = path, fingerprint(path), seconds
        return runs[family]

    return run


class SignalAt(Silent):
    """Sends this process a signal while a step is being done; records what is reported."""

    def __init__(self, step, signum=signal.SIGTERM):
        self.step, self.signum, self.num_steps, self.events = step, signum, 0, []

    def advance(self, **metrics):
        self.num_steps += 1
        if self.num_steps == self.step:
            os.kill(os.getpid(), self.signum)

    def event(self, message):
        self.events.append(message)


# -- kill -9 -----------------------------------------------------------------------------------------------


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


def save_in_a_loop(path):
    run = Run.resume(path)
    while True:
        run.save()


@pytest.mark.parametrize("num_kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=FULL)])
def test_kill_9_while_saving_leaves_the_newest_or_the_one_before(tmp_path, clean, num_kills):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    before, generator = 0, random.Random(0)
    for _ in range(num_kills):
        process = CONTEXT.Process(target=save_in_a_loop, args=(path,))
        process.start()
        while max(Run.open(path).store.numbers()) == before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        run = Run.open(path)
        assert run.notes == [] and run.checkpoint.number > before
        before = run.checkpoint.number
        assert_all_readable(path)


# -- interruption ------------------------------------------------------------------------------------------


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


def wait_for_checkpoint(path, before):
    """Until there is one that was not there before: the run is training, its handlers are installed."""
    deadline = time.monotonic() + 120
    while not checkpoint_names(path) - before:
        assert time.monotonic() < deadline, "the run has saved nothing"
        time.sleep(0.01)


def command_line(path, *, twice=False, signum=signal.SIGTERM):
    """Train by the command line, signal once a step is done: exit code, stderr, seconds from the last signal."""
    before = checkpoint_names(path)
    arguments = ["admrl", "train", "--resume", str(path), "--checkpoint-seconds", "0"]
    script = f"import sys; sys.argv = {arguments!r}\nfrom admrl.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    said = ""
    try:
        wait_for_checkpoint(path, before)
        process.send_signal(signum)
        while twice and "once more" not in said:  # the second one once the first one has been answered
            line = process.stderr.readline()
            assert line, said
            said += line
        sent = time.monotonic()
        if twice:
            process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said + errors, time.monotonic() - sent


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, signum, code):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=30))
    returned, errors, _ = command_line(path, signum=signum)
    assert returned == code, errors
    assert f"admrl train --resume {path}" in errors and "Traceback" not in errors
    assert "once more leaves at once" in errors
    assert Run.open(path).notes == [] and not (path / "lock.json").exists()


@pytest.mark.parametrize("num_attempts", [1, pytest.param(5, marks=FULL)])
def test_a_second_signal_leaves_at_once_with_valid_files(tmp_path, num_attempts):
    """The second one meets the step that the first one waits for: a fit that takes minutes."""
    config = replace(SMALL, virtual=replace(SMALL.virtual, num_model_steps=50_000))
    for attempt in range(num_attempts):
        path = small_run(tmp_path / f"run-{attempt}", config=config)
        returned, errors, seconds = command_line(path, twice=True)
        assert returned == -signal.SIGTERM and "once more leaves at once" in errors
        assert seconds < 10, "it has waited for the step"
        run = Run.open(path)
        assert run.notes == [] and run.checkpoint is not None


# -- damaged files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_places", [20, pytest.param(100, marks=FULL)])
def test_every_damage_is_found_and_the_checkpoint_before_used(tmp_path, clean, num_places):
    """Half of the places are truncations, half flipped bits; every fifth hits the data, not the checkpoint."""
    original, _, _ = clean()
    newest, before = (Run.open(original).store.numbers()[i] for i in (-1, -2))
    older = shutil.copytree(original, tmp_path / "older")
    (older / "checkpoints" / f"{newest:06d}.ckpt").unlink()
    as_before = Run.open(older).checkpoint.digest
    generator = random.Random(1)
    for place in range(num_places):
        path = shutil.copytree(original, tmp_path / f"run-{place}")
        hit_data = place % 5 == 0
        files = sorted(path.glob("replay/*")) if hit_data else [path / "checkpoints" / f"{newest:06d}.ckpt"]
        file = generator.choice(files)
        content = bytearray(file.read_bytes())
        at = generator.randrange(len(content))
        if place % 2:
            content[at] ^= 1 << generator.randrange(8)
        else:
            del content[at:]
        file.write_bytes(content)
        run = Run.open(path)
        if hit_data:  # there are two copies of it
            assert run.checkpoint.number == newest
            assert run.notes == [] if file.suffix == ".copy" else "using its copy" in run.notes[0]
        else:
            assert run.checkpoint.number == before and run.checkpoint.digest == as_before
            assert file.name in run.notes[0] and "using an earlier checkpoint" in run.notes[0]
            with pytest.warns(UserWarning, match="using an earlier"):
                from admrl import load_run

                load_run(path)
        shutil.rmtree(path)


def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on(tmp_path, clean):
    original, expected, _ = clean()
    path = shutil.copytree(original, tmp_path / "run")
    newest = sorted(path.glob("checkpoints/*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert not Run.open(path).finished, "the checkpoint before is of the last phase"
    train(path)
    assert newest.with_suffix(".damaged").exists()
    assert_same_run(expected, fingerprint(path))
    assert "using an earlier checkpoint" in (path / "events.jsonl").read_text()


def test_all_checkpoints_damaged_is_an_error_that_names_one(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")
    for file in path.glob("checkpoints/*.ckpt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its checkpoints can be read"):
        Run.open(path)


def test_a_checkpoint_of_another_run_or_configuration_is_refused(tmp_path, clean):
    original, _, _ = clean()
    path = shutil.copytree(original, tmp_path / "run")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ValueError, match=r"of another run: seed is 3, config\.json says 4"):
        Run.open(path)
    (path / "config.json").write_text(config.replace("16", "17"))
    with pytest.raises(ValueError, match=r"model.weights.0: expected 1 x 2 x 6 x 17 .*, got 1 x 2 x 6 x 16"):
        Run.open(path)


# -- disk full ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 4 MB, and a function that fills it to the last byte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip() or 'not root'}")

    def fill(leave=0):
        ballast = folder / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        if leave:
            os.truncate(ballast, ballast.stat().st_size - leave)
        return ballast

    yield folder, fill
    subprocess.run(["umount", str(folder)], check=True)


def tiny_table():
    return GapTable(
        "m",
        "f",
        "v",
        ("x",),
        ("m",),
        np.zeros((1, 1)),
        np.zeros(1, int),
        np.zeros((1, 1, 1, 2)),
        np.zeros(1),
        ("a",),
    )


def writers(folder, run, log):
    """Every kind of write, by name."""
    store = PartStore(run, EVALUATION, 0)
    part = Adapted(np.zeros((1, 1, 1, 2000)), np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 1)))

    def metrics():
        for _ in range(2000):
            log.advance(return_model=1.0)
        log.position()

    return {
        "checkpoint": lambda: run.save(),
        "tasks.json": lambda: run.save_records(),
        "metrics.csv": metrics,
        "events.jsonl": lambda: [log.event("x" * 200) for _ in range(100)],
        "evaluation": lambda: store.save([(0, 0)], 0, part),
        "gaps.json": lambda: tiny_table().save(run.path / "gaps.json"),
        "config.json": lambda: create_run(folder / "other", run.info),
        "lock": lambda: RunLock(folder / "other"),
        "figure": lambda: write_bytes(run.path / "gap.png", b"x" * 5000),
    }


def test_disk_full_in_every_kind_of_write_is_a_clear_error(tiny_disk, clean):
    folder, fill = tiny_disk
    path = shutil.copytree(clean()[0], folder / "run")
    (folder / "other").mkdir()
    run = Run.open(path)
    number, tasks = run.checkpoint.number, (path / "tasks.json").read_bytes()
    log = RunLog(run.path, Silent(), None)
    kinds = writers(folder, run, log)
    ballast = fill()
    for name, write in kinds.items():
        with pytest.raises(
            (StorageError, ValueError), match=r"cannot write .*(No space left|disk full)"
        ) as error:
            write()
        if name == "checkpoint":
            assert f"{number:06d}.ckpt" in str(error.value), "names the last good checkpoint"
    assert (path / "tasks.json").read_bytes() == tasks
    assert Run.open(path).checkpoint.number == number and Run.open(path).notes == []
    assert not list(path.rglob(".tmp-*"))
    ballast.unlink()
    with log:
        pass
    run.save()
    assert Run.open(path).checkpoint.number == number + 1


@pytest.mark.parametrize("kilobytes", [100, *(pytest.param(k, marks=FULL) for k in range(0, 600, 40))])
def test_disk_full_during_training_and_resuming_once_there_is_room(tiny_disk, clean, kilobytes):
    folder, fill = tiny_disk
    _, expected, _ = clean()
    path = small_run(folder / "run")
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(5))
    good = Run.open(path).checkpoint.number
    ballast = fill(leave=1024 * kilobytes)
    with pytest.raises((StorageError, ValueError), match="cannot write"):
        train(path)
    assert Run.open(path).checkpoint.number >= good and Run.open(path).notes == []
    ballast.unlink()
    train(path)
    assert_same_run(expected, fingerprint(path))


def train_with_small_files(path, num_bytes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    try:
        train(path)
    except StorageError as error:
        assert "cannot write" in str(error) and "File too large" in str(error)
        os._exit(7)


@pytest.mark.slow
def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path, clean):
    """No root needed: a write fails in the middle of a checkpoint."""
    _, expected, _ = clean()
    path = small_run(tmp_path / "run")
    for limit in (60_000, 130_000):  # the first checkpoint of all fails; one of a later task fails
        process = CONTEXT.Process(target=train_with_small_files, args=(path, limit))
        process.start()
        process.join(60)
        assert process.exitcode == 7
        assert Run.open(path).notes == [] and not list(path.rglob(".tmp-*"))
    train(path)
    assert_same_run(expected, fingerprint(path))


# -- one writer --------------------------------------------------------------------------------------------


def hold(path, ready):
    lock = RunLock(path)
    ready.set()
    time.sleep(60)
    lock.release()


def test_a_second_writer_is_told_who_is_there_and_a_dead_one_is_recognised(tmp_path):
    path = small_run(tmp_path / "run")
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(path, ready))
    process.start()
    assert ready.wait(60)
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


def race(path, go, done, answers):
    go.wait()
    try:
        lock = RunLock(path)
    except ValueError:
        answers.put(False)
    else:
        answers.put(True)
        done.wait(60)  # until everybody has tried
        lock.release()


@pytest.mark.parametrize("num_races", [1, pytest.param(20, marks=FULL)])
def test_exactly_one_of_several_wins_the_race(tmp_path, num_races):
    for _ in range(num_races):
        go, done, answers = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Queue()
        processes = [CONTEXT.Process(target=race, args=(tmp_path, go, done, answers)) for _ in range(4)]
        for process in processes:
            process.start()
        time.sleep(0.1)
        go.set()
        assert sorted(answers.get(timeout=60) for _ in processes) == [False, False, False, True]
        done.set()
        for process in processes:
            process.join()


# -- evaluation --------------------------------------------------------------------------------------------

EVALUATION = EvaluationConfig(
    num_policy_seeds=2,
    num_episodes=2,
    num_updates=3,
    num_samples=400,
    num_reference_stages=2,
    num_reference_samples=200,
    num_reference_updates=2,
)


@pytest.mark.slow
def test_damaged_parts_of_an_evaluation_are_reported_and_computed_again(tmp_path, clean):
    path = shutil.copytree(clean()[0], tmp_path / "run")

    def evaluate():
        """The table, and what was printed."""
        run, printed = Run.open(path), io.StringIO()
        tasks = check_runs([run], (2, 2), EVALUATION)
        lock_runs([run])
        with pytest.raises(ValueError, match="is in use"):
            RunLock(path)
        console = Console(file=printed, width=10_000)
        (table,) = evaluate_in_parallel([run], tasks, EVALUATION, 0, 1, console, name="grid")
        RunLock(path).release()
        return table, printed.getvalue()

    first, _ = evaluate()
    (reference,) = path.glob("evaluation/reference-*.part")
    parts = sorted(path.glob("evaluation/*/*.part"))
    assert len(parts) == 2
    for file in (reference, parts[0]):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    kept = parts[1].stat().st_mtime_ns
    again, printed = evaluate()
    assert f"{parts[0]}: the checksum does not match" in printed and "is computed again" in printed
    assert f"{reference}: the checksum does not match" in printed and "is done again" in printed
    assert (again.episode_return == first.episode_return).all()
    assert (again.optimal_return == first.optimal_return).all()
    assert parts[1].stat().st_mtime_ns == kept, "the sound part is not computed again"
    assert "again" not in evaluate()[1]


# -- cost --------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_checkpoints_cost_less_than_two_percent_at_laptop_size(tmp_path, monkeypatch):
    made = []

    class Watched(train_run_module.Saver):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(train_run_module, "Saver", Watched)
    path = small_run(tmp_path / "run", "hopper2d", replace(PRESETS["laptop"], num_tasks=2))
    started = time.monotonic()
    train_run(Run.resume(path), Silent())
    seconds = time.monotonic() - started
    share = made[0].seconds / seconds
    print(f"{made[0].seconds:.2f} s of {seconds:.0f} s for checkpoints: {100 * share:.2f} %")
    assert share < 0.02


class Memory(Silent):
    """Resident memory at the beginning of every task, in bytes."""

    def __init__(self):
        self.sizes = []

    def phase(self, name):
        if "zero-shot" in name:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))


def measure_memory(path, answers):
    memory = Memory()
    train(path, every=30.0, reporter=memory)
    answers.put((memory.sizes, len(os.listdir("/proc/self/fd"))))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_50_tasks(tmp_path):
    """Between task 10 and task 50, no growth beyond the replay and 8 MB of allocator noise; no open files left."""
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=50))
    answers = CONTEXT.Queue()
    process = CONTEXT.Process(target=measure_memory, args=(path, answers))
    process.start()
    sizes, num_files = answers.get(timeout=500)
    process.join()
    rows = Run.open(path).state.learner.data[0].state_dict()
    replay = sum(column.numel() * column.element_size() for column in rows.values())
    growth = sizes[-1] - sizes[9]
    print(
        f"{growth / 1e6:.1f} MB from task 10 to 50 of {sizes[-1] / 1e6:.0f} MB, replay {replay / 1e6:.1f} MB"
    )
    assert growth < 2 * replay + 8e6
    assert num_files < 40


def test_only_the_newest_checkpoints_stay(clean, tmp_path):
    path = small_run(tmp_path / "run")
    train_run(Run.resume(path), Silent(), checkpoint_seconds=0, keep_checkpoints=2)
    assert len(list(path.glob("checkpoints/*"))) == 2
    assert_same_run(clean()[1], fingerprint(path))


def test_a_run_that_somebody_else_went_on_with_is_not_overwritten(tmp_path):
    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=1))
    early = Run.open(path)
    train(path)
    with pytest.raises(ValueError, match="another process has trained it meanwhile"):
        train_run(early, Silent())


def test_tensorboard_reads_the_metrics_and_forgets_what_was_computed_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = small_run(tmp_path / "run", config=replace(SMALL, num_tasks=1))
    with pytest.raises(Interrupted), deferred_signals():
        train(path, every=1e6, reporter=SignalAt(3))
    train(path)
    board = EventAccumulator(str(path / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("virtual_samples")] == [1, 2, 3, 4, 5]
    rows = (path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4", "5"]


def test_run_info_is_what_the_tools_think(clean):
    """The clean run has every phase: the numbers of steps that the tests above aim at."""
    rows = clean()[1]["metrics"][1:]
    phases = [row[1].split(": ")[1] for row in rows]
    assert phases[0] == "SLBO" and phases[6] == "zero-shot" and phases[11] == "SLBO"
    assert phases[19] == "task gradient"
    assert isinstance(Run.open(clean()[0]).info, TrainInfo)
