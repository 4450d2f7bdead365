"""`pip install ./policy_opt` alone: what its metadata promise, and its README's example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "policy_opt" / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_its_version_and_requirements_are_those_of_the_whole():
    whole, alone = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for folder in ("", "policy_opt")
    )
    for key in ("version", "requires-python", "license"):
        assert alone[key] == whole[key]
    required = {re.split(r"[<>=]", line)[0]: line for line in whole["dependencies"]}
    assert alone["dependencies"] == [required[name] for name in ("torch", "numpy", "scipy")]


def test_the_readme_runs(capsys):
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    assert "STAGNATED" in capsys.readouterr().out


@pytest.mark.slow
def test_it_installs_and_runs_outside_of_the_source_tree(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    target, source = tmp_path / "site", tmp_path / "policy_opt"
    leave = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "policy_opt", source, ignore=leave)  # the build leaves folders beside the source
    install = [
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
        str(source),
    ]
    subprocess.run([sys.executable, *install], check=True, capture_output=True, cwd=tmp_path)
    where = "import policy_opt\nprint(policy_opt.__file__)\n"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    run = subprocess.run(
        [sys.executable, "-c", where + EXAMPLE], capture_output=True, text=True, cwd=target, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(target))
