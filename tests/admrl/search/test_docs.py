"""The guide's code and the example of a search without the trainer run."""

import subprocess
import sys
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


def test_the_code_of_the_guide_runs():
    """Every Python block of docs/search.md, one after the other."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True
    )
    assert "Best(psi=tensor([ 0.3000, 35.0000])" in result.stdout
