"""Two Ray nodes that are machines of their own as far as they can tell, one with the study's driver: whatever breaks,
the results are those of one machine, and no two attempts at a job wrote at the same time."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
from namespaces import Network, missing
from process_tools import until
from step_study import NUM_JOBS, expected, steps_of
from study_tools import STUDY

from admrl.storage.files import TEMPORARY
from admrl.studies.pulse import read_pulse
from admrl.studies.ray_engine import SETTINGS

pytestmark = pytest.mark.cluster
pytest.importorskip("ray", reason="the extra `ray` is not installed")
if why := missing():
    pytest.skip(why, allow_module_level=True)

ROOT = Path(__file__).parents[3]
PORT, SILENCE = 6379, 15.0
ENGINE = f"""
[engine]
name = "ray"
max_processes = 1
silence = {SILENCE}
"""
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
    "RAY_AUTH_MODE": "token",
    **SETTINGS,
}


class Cluster:
    """Two nodes, the study's folder, the driver on the first node. Each node has cores for all jobs that run at a
    time: what one leaves, the other takes, and what is started while one is cut off may be given to it.
    """

    def __init__(self, network, folder):
        self.network, self.folder = network, folder
        self.head, self.other = network.machines
        self._start_ray(self.head, "--head", f"--port={PORT}", "--include-dashboard=false")
        until(lambda: "Ray runtime started" in self._said(self.head), "the head starts", 120)
        self._start_ray(self.other, f"--address={self.head.address}:{PORT}")
        until(lambda: "Ray runtime started" in self._said(self.other), "the other node starts", 120)

    def _start_ray(self, machine, *options):
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block"]
        sizes = (
            "--num-cpus=4",
            "--object-store-memory=80000000",
            f"--node-ip-address={machine.address}",
        )
        with open(self.folder / f"{machine.name}.log", "wb") as log:
            machine.start([*ray, *sizes], env=ENVIRONMENT, stdout=log, stderr=log)

    def _said(self, machine):
        return (self.folder / f"{machine.name}.log").read_text()

    def drive(self, num_steps):
        """Start the driver on the head; its process, which ends as the driver does."""
        with open(self.folder / "driver.log", "ab") as log:
            return self.head.start(
                [sys.executable, "-m", "step_study", str(self.folder), str(num_steps), str(SILENCE)],
                env=ENVIRONMENT | {"RAY_ADDRESS": f"{self.head.address}:{PORT}"}, stdout=log, stderr=log,
            )  # fmt: skip

    def kill_driver(self, signum):
        self.head.kill(json.loads((self.folder / "study" / "driver.json").read_text())["pid"], signum)

    def steps(self, number):
        return steps_of(self.folder / "made" / str(number))

    def jobs_on(self, machine):
        """Jobs that are being done there, as far as their last step tells, and the process."""
        last = {n: self.steps(n)[-1].split() for n in range(NUM_JOBS) if self.steps(n)}
        return {
            n: int(pid)
            for n, (host, pid) in last.items()
            if host == machine.name and not (self.folder / "made" / str(n)).exists()
        }


@pytest.fixture
def cluster(tmp_path):
    with Network("one", "two") as network:
        yield Cluster(network, tmp_path)


def begin(cluster, num_steps):
    """The driver, once both nodes have jobs of which several steps are done."""
    driver = cluster.drive(num_steps)

    def both_work():
        assert driver.poll() is None, (cluster.folder / "driver.log").read_text()
        return all(
            sum(len(cluster.steps(job)) > 3 for job in cluster.jobs_on(machine)) == 2
            for machine in cluster.network.machines
        )

    until(both_work, "both nodes work", 120)
    return driver


def check(cluster, driver, num_steps):
    """It ends well, with the results of one machine, each step made once, attempts one after the other."""
    assert driver.wait(timeout=400) == 0, (cluster.folder / "driver.log").read_text()
    outputs = expected(cluster.folder, num_steps)
    assert {path: path.read_text() for path in outputs} == outputs
    for number in range(NUM_JOBS):
        who = [who for who, _ in groupby(cluster.steps(number))]
        assert len(who) == len(set(who)), "an attempt goes on after another one has begun"


def recovery(cluster, jobs):
    """Wait until others do what these processes did; how long that takes for the last of them."""
    start = time.monotonic()
    for job, pid in jobs.items():
        until(
            lambda job=job, pid=pid: int(cluster.steps(job)[-1].split()[1]) != pid, f"job {job} goes on", 200
        )
    return time.monotonic() - start


def files(folder):
    """By path; without what a killed attempt had not yet renamed into place."""
    there = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
    return {path: path.read_bytes() for path in there}


def test_a_worker_is_killed(cluster):
    driver = begin(cluster, 40)
    (job, pid), *_ = cluster.jobs_on(cluster.other).items()
    cluster.other.kill(pid, signal.SIGKILL)
    print("a worker is killed:", recovery(cluster, {job: pid}))
    check(cluster, driver, 40)


def test_a_node_dies(cluster):
    driver = begin(cluster, 40)
    jobs = cluster.jobs_on(cluster.other)
    cluster.other.power_off()
    print("a node dies:", recovery(cluster, jobs))
    check(cluster, driver, 40)


def test_the_driver_is_killed(cluster):
    driver = begin(cluster, 40)
    jobs = cluster.jobs_on(cluster.other) | cluster.jobs_on(cluster.head)
    cluster.kill_driver(signal.SIGKILL)
    assert driver.wait(timeout=60) != 0
    again = cluster.drive(40)
    print("the driver is killed, and started again:", recovery(cluster, jobs))
    firsts = [cluster.folder / "study" / "jobs" / "x" / str(job) / "attempt-1.json" for job in jobs]
    assert [json.loads(first.read_text())["exit_code"] for first in firsts] == [130] * 4, "they have saved"
    check(cluster, again, 40)


def test_ctrl_c_and_again(cluster):
    driver = begin(cluster, 40)
    jobs = cluster.jobs_on(cluster.other) | cluster.jobs_on(cluster.head)
    cluster.kill_driver(signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    again = cluster.drive(40)
    print("Ctrl-C, and again:", recovery(cluster, jobs))
    check(cluster, again, 40)


def test_a_node_is_cut_off_for_good(cluster):
    """Its jobs come to an end there and say so in the folder; what Ray has given it meanwhile is done elsewhere."""
    driver = begin(cluster, 40)
    start = time.monotonic()
    cluster.network.cut(cluster.other)
    check(cluster, driver, 40)
    print("a node is cut off: all done after", time.monotonic() - start)


def test_a_node_is_cut_off_for_a_minute(cluster):
    driver = begin(cluster, 300)
    jobs = cluster.jobs_on(cluster.other)
    cluster.network.cut(cluster.other)
    time.sleep(60)
    cluster.network.mend(cluster.other)
    print("a node is cut off for a minute: after that", recovery(cluster, jobs))
    check(cluster, driver, 300)


def test_a_node_sleeps_and_wakes_up_when_others_have_done_its_jobs(cluster):
    driver = begin(cluster, 40)
    jobs = cluster.jobs_on(cluster.other)
    cluster.other.run("bash", "-c", "kill -STOP -1")
    print("a node falls asleep:", recovery(cluster, jobs))
    check(cluster, driver, 40)
    before = files(cluster.folder / "made")
    cluster.other.run("bash", "-c", "kill -CONT -1")
    time.sleep(10)
    assert files(cluster.folder / "made") == before
    assert "step_study" not in cluster.other.run("ps", "-eo", "args")


def test_a_node_dies_during_trainings_and_evaluations(cluster, monkeypatch):
    """The tables are those of one machine, byte by byte."""
    monkeypatch.chdir(cluster.folder)
    Path("toy.toml").write_text(STUDY.format(folder="f").replace("[0, 1]", "[0]") + ENGINE)
    words = [sys.executable, "-m", "admrl", "study", str(cluster.folder / "toy.toml"), "--num-workers", "4"]
    environment = ENVIRONMENT | {"RAY_ADDRESS": f"{cluster.head.address}:{PORT}"}
    with open("driver.log", "wb") as log:
        command = (
            f"cd {shlex.quote(str(cluster.folder))} && exec {shlex.join(words)}"  # as that machine sees it
        )
        driver = cluster.head.start(["bash", "-c", command], env=environment, stdout=log, stderr=log)

    def working():
        """Jobs of which an attempt is running on the other node."""
        assert driver.poll() is None, Path("driver.log").read_text()
        said = {job: read_pulse(job, 1) for job in Path("f/jobs").glob("*/*")}
        there = [job for job, seen in said.items() if seen is not None and seen.host == cluster.other.name]
        return [job for job in there if said[job].exit_code is None]

    until(working, "the other node works", 300)
    jobs, start = working(), time.monotonic()
    cluster.other.power_off()
    for job in jobs:
        until((job / "attempt-2.json").exists, f"{job} begins again", 300)
    print("a node dies during trainings: tried again after", time.monotonic() - start)
    assert driver.wait(timeout=900) == 0, Path("driver.log").read_text()
    os.mkdir("local")
    subprocess.run([*words, "--engine", "local"], cwd="local", env=ENVIRONMENT, check=True, timeout=900)
    for name in ("summary.csv", "paired.csv", "cells.csv"):
        table = Path("f/report/linear_quadratic") / name
        assert (Path("local") / table).read_bytes() == table.read_bytes(), name
