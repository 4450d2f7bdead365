"""The engine of Ray, on a cluster of this machine alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from process_tools import is_alive, parent_of, until
from study_tools import chain, drive, note_module, num_starts

from admrl.studies import ray_engine
from admrl.studies.engine import Attempt, Resources
from admrl.studies.pulse import NEWEST
from admrl.studies.ray_engine import RayEngine

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a study; the cluster ends with the last test."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        note_module(folder, patch)
        patch.delenv("RAY_ADDRESS", raising=False)
        (folder / "say.py").write_text(SAY)
        yield folder
        ray.shutdown()


SAY = """\
import os, signal, sys, time
from pathlib import Path

folder, code = Path(sys.argv[1]), int(sys.argv[2])
print("begun", os.environ["OMP_NUM_THREADS"], os.nice(0), os.getcwd(), flush=True)
(folder / "begun").touch()
try:
    while code < 0 and not (folder / "go").exists():
        time.sleep(0.01)
except KeyboardInterrupt:
    print("saved")
    sys.exit(130)
sys.exit(abs(code))
"""
"""`python -m say FOLDER CODE`: ends with that exit code, at once or, if it is negative, when there is a file "go"."""


@pytest.fixture(scope="module")
def engine(folder):
    return RayEngine(folder, Resources())


@pytest.fixture
def attempt(folder, tmp_path):
    def make(code, number=1, job="x/a", num_processes=1):
        place = tmp_path / job
        words = ("say", str(place), str(code))
        place.mkdir(parents=True, exist_ok=True)
        (place / NEWEST).write_text(str(number))
        return Attempt(job, number, words, place, 60.0, num_processes)

    return make


def ended(engine, *jobs):
    """The exit codes of attempts that end within a minute."""
    codes = {}

    def all_have():
        codes.update(engine.poll())
        return codes.keys() >= set(jobs or ("x/a",))

    until(all_have, "ended")
    return [codes[job] for job in jobs] if jobs else codes["x/a"]


def begun(attempt):
    until((attempt.folder / "begun").exists, "begun")


def worker_of(attempt):
    return json.loads((attempt.folder / f"attempt-{attempt.number}.json").read_text())["pid"]


def test_exit_codes_and_logs(engine, attempt):
    for number, code in enumerate((0, 1, 3), start=1):
        engine.submit(attempt(code, number))
        assert ended(engine) == code
        assert engine.logs("x/a") == f"begun 1 {os.nice(0)} {os.getcwd()}"
    assert engine.poll() == {}
    assert sorted(file.name for file in attempt(0, 3).folder.glob("*.log")) == [
        f"attempt-{number}.log" for number in (1, 2, 3)
    ]


def test_a_worker_that_is_killed(engine, attempt):
    engine.submit(killed := attempt(-4))
    begun(killed)
    os.kill(worker_of(killed), signal.SIGKILL)
    assert ended(engine) == -signal.SIGKILL


def test_an_attempt_whose_ray_process_is_killed_is_lost_and_ends(engine, attempt):
    engine.submit(lost := attempt(-4))
    begun(lost)
    worker = worker_of(lost)
    os.kill(parent_of(worker), signal.SIGKILL)
    assert ended(engine) == -signal.SIGKILL
    until(lambda: not is_alive(worker), "the worker ends")
    said = engine.logs("x/a").splitlines()
    assert said[1] == "saved" and said[2].startswith("Ray: ")


def test_an_attempt_that_is_cancelled_saves_and_ends(engine, attempt):
    engine.submit(running := attempt(-4))
    begun(running)
    engine.cancel("x/a")
    assert ended(engine) == 130
    assert engine.logs("x/a").endswith("saved")
    engine.cancel("x/a")
    assert engine.poll() == {}


def test_attempts_that_wait_for_a_core_are_cancelled_too(engine, attempt):
    cores = int(ray.cluster_resources()["CPU"])
    attempts = [attempt(-4, job=f"x/{n}") for n in range(cores + 1)]
    for one in attempts:
        engine.submit(one)
    until(
        lambda: sum((one.folder / "begun").exists() for one in attempts) == cores,
        "as many as there is room for",
    )
    for one in attempts:
        engine.cancel(one.job)
    codes = ended(engine, *(one.job for one in attempts))
    assert sorted(codes) == [-signal.SIGINT, *[130] * cores]
    (late,) = (one for one, code in zip(attempts, codes, strict=True) if code < 0)
    assert not late.log.exists()


def test_a_second_submit_takes_the_place_of_the_first(engine, attempt):
    engine.submit(first := attempt(-4))
    begun(first)
    worker = worker_of(first)
    engine.submit(attempt(3, 2))
    assert ended(engine) == 3
    until(lambda: not is_alive(worker), "the worker ends")
    time.sleep(1)
    assert engine.poll() == {}


def test_a_study_is_driven(engine, folder, tmp_path):
    jobs = chain(tmp_path, a="fail")
    outcome = drive(tmp_path / "study", jobs, engine)
    assert set(outcome.states.values()) == {"done"}
    assert all(num_starts(job) == 1 for job in jobs)


def test_a_job_of_more_processes_than_a_machine_has_cores_for_is_refused(engine, attempt):
    engine.submit(attempt(0, num_processes=4096))
    assert ended(engine) == 2
    assert "engine: a job asks for 4096 CPUs" in engine.logs("x/a")
    engine.submit(attempt(0, 2))
    assert ended(engine) == 0 and "4096" not in engine.logs("x/a")


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        (Resources(num_cores=4096), "4096 CPUs, 0.0 GB of memory, 0 GPUs"),
        (Resources(memory_gb=2**20), "1 CPUs, 1048576.0 GB of memory, 0 GPUs"),
        (Resources(num_gpus=4096), "1 CPUs, 0.0 GB of memory, 4096 GPUs"),
        (Resources(2, 2.0, 0.5, max_processes=512), "1024 CPUs, 1024.0 GB of memory, 256 GPUs"),
    ],
)
def test_more_than_the_cluster_has(engine, folder, resources, asked):
    expected = (
        rf"engine: a job asks for {asked}, on one machine; none of the Ray cluster has that: .* \(.*\) with "
    )
    with pytest.raises(ValueError, match=expected):
        RayEngine(folder, resources)


def test_a_node_that_does_not_see_the_folder_is_named(engine, folder, monkeypatch):
    monkeypatch.setattr(ray_engine, "write_text", lambda file, text: None)
    expected = rf"engine: expected a folder that all nodes .* share, under one path, got {folder}:\n  .* \(.*\): sees"
    with pytest.raises(ValueError, match=expected):
        RayEngine(folder, Resources())
    assert not list(folder.glob(".tmp-*"))


def test_an_address_without_a_cluster(folder):
    """In a process of its own, as this one is in a cluster."""
    code = "from admrl.studies.ray_engine import *; RayEngine(Path(), Resources(), '127.0.0.1:9')"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60).stderr
    assert said.splitlines()[-1].startswith(
        "ValueError: engine: expected a Ray cluster at 127.0.0.1:9, got none: "
    )


def test_without_ray_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'engine: .* not installed: pip install "admrl\[ray\]"'):
        RayEngine(folder, Resources())
