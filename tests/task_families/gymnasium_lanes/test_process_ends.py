"""Processes of lanes end with the process that started them, however it ends, and close their environments."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lane_envs
import pytest
from process_tools import is_alive, until

BEGIN = """
import os
import signal
import torch
from lane_envs import Logged, troubled
from task_families.gymnasium_lanes import processes, worker

processes.SECONDS_TO_CLOSE = worker.SECONDS_TO_CLOSE = float(os.environ.get("LANES_SECONDS", "5"))

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    family = troubled(Logged, num_processes=2)
    simulator = family.make_simulator((1, 4), psi=torch.zeros(1, 1))
    simulator.reset(torch.ones(1, 4, dtype=torch.bool), torch.zeros(4, 1))
    print("ready", flush=True)
    for _ in range(int(os.environ["LANES_STEPS"])):
        simulator.step(torch.zeros(1, 4, 1))
    print("done", flush=True)
"""
GUARDED = BEGIN + 'if __name__ == "__main__":\n    main()\n'


def started(tmp_path, script, **settings):
    (tmp_path / "script.py").write_text(script)
    paths = os.pathsep.join([str(Path(lane_envs.__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "LANES": str(tmp_path)} | settings
    command = [sys.executable, str(tmp_path / "script.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def counts(tmp_path, word):
    """How many environments each process opened, or closed."""
    lines = (tmp_path / "log").read_text().splitlines()
    return Counter(int(line.split()[1]) for line in lines if line.startswith(word))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "sleep", "closes"),
    [
        ("end", "0", True),
        ("SIGINT", "0", True),
        ("SIGINT", "100", True),  # Ctrl-C in the middle of a long step
        ("SIGTERM", "0", True),
        ("SIGKILL", "0", True),
        ("SIGKILL", "100", False),  # nobody could close what is in the middle of a step
    ],
)
def test_they_end_with_whoever_started_them(tmp_path, how, sleep, closes):
    steps = "3" if how == "end" else "1000000000"
    to_close = (
        "300" if closes else "1"
    )  # no busy machine needs so long, no process takes so long without need
    script = started(tmp_path, GUARDED, LANES_SLEEP=sleep, LANES_STEPS=steps, LANES_SECONDS=to_close)
    assert script.stdout.readline() == "ready\n"
    workers = set(counts(tmp_path, "open")) - {script.pid}
    assert len(workers) == 2 and all(counts(tmp_path, "open")[pid] == 2 for pid in workers)
    if sleep != "0":
        until(lambda: set(counts(tmp_path, "step")) == workers, "both processes are in the middle of a step")
    if how == "SIGINT":
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does: to all of them
    elif how != "end":
        script.send_signal(signal.Signals[how])
    _, errors = script.communicate(timeout=300)
    until(lambda: not any(is_alive(pid) for pid in workers), "the processes of lanes end")
    opened, closed = counts(tmp_path, "open"), counts(tmp_path, "close")
    assert all(closed[pid] == (opened[pid] if closes else 0) for pid in workers)
    assert errors.count("Traceback") == (how == "SIGINT"), errors
    assert script.returncode == (0 if how == "end" else -signal.Signals[how])


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = started(tmp_path, BEGIN + "main()\n", LANES_STEPS="1")
    _, errors = script.communicate(timeout=300)
    assert script.returncode == 1
    assert errors.strip().endswith(
        "troubled: a process that steps its lanes ended (exit code 1) as it was started; its own messages are above. "
        'A script that starts processes must do so behind if __name__ == "__main__":'
    )
