"""docs/data.md: every block runs, in order, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SIZES = {"fit-dynamics": ["--config.num-steps", "300"]}  # enough for a test


def test_the_blocks_of_the_guide_run(tmp_path):
    pytest.importorskip("minari", reason='needs the extra: pip install "admrl[minari]"')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])}
    told = []

    def run(*words):
        result = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        told.append(result.stdout)

    for language, block in re.findall(r"```(bash|python)\n(.*?)```", GUIDE, re.DOTALL):
        if language == "python":
            run("-W", "error", "-c", block)
            continue
        for line in block.strip().split("\n"):
            name, *rest = shlex.split(line)[1:]
            (tmp_path / "runs").mkdir(exist_ok=True)
            run("-m", "admrl", name, *rest, *SIZES.get(name, []))
    assert len(told) == 6 and "(21, 2)" in told[2] and "tensor" in told[5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.npz", "model", "point_robot-v0", "runs"]
