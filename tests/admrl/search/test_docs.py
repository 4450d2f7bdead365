"""The example of a search without the trainer runs."""

from pathlib import Path

import pytest
from imports import output_and_loaded

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_example_runs_without_the_trainer(tmp_path):
    """The worst corner (least friction, full load, full speed) is found, and nothing heavy is imported."""
    file = ROOT / "examples" / "worst_case_of_your_simulator.py"
    heavy = ("admrl.training.meta_training", "mujoco", "gymnasium", "dynamics.ensemble")
    printed, loaded = output_and_loaded(f"import runpy; runpy.run_path({str(file)!r})", heavy, cwd=tmp_path)
    assert "1. (friction 0.3, load 400 kg, speed 35 m/s)" in printed
    assert loaded == []
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 25
