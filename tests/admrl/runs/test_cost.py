"""What saving costs: time, memory, open files."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from fault_tools import CONTEXT, SMALL, measure_memory, small_run

from admrl.config.presets import PRESETS
from admrl.jobs.reporter import Silent
from admrl.training import run as train_run_module
from admrl.training.run import Run, train_run


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
