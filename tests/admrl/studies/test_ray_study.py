"""A whole tiny study on a Ray of this machine, which it starts itself, and which ends with it; needs no root."""

import os
import subprocess
import sys

import pytest
from study_tools import STUDY

pytestmark = pytest.mark.cluster
pytest.importorskip("ray", reason="the extra `ray` is not installed")

TINY = STUDY.replace("[0, 1]", "[0]").replace("[methods.adversarial]\n", "")
ENGINE = '\n[engine]\nname = "ray"\nmax_processes = 1\n'
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def test_the_tables_are_those_of_this_machine_alone(tmp_path):
    tables = {}
    for engine in ("ray", "local"):
        folder = tmp_path / engine
        folder.mkdir()
        (folder / "tiny.toml").write_text(TINY.format(folder="f") + ENGINE)
        result = subprocess.run(
            [sys.executable, "-m", "admrl", "study", "tiny.toml", "--engine", engine],
            cwd=folder, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        assert "5 of 5 jobs done" in result.stdout
        report = folder / "f" / "report" / "linear_quadratic"
        tables[engine] = [(report / name).read_bytes() for name in ("summary.csv", "paired.csv", "cells.csv")]
    assert tables["ray"] == tables["local"]
