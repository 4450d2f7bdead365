"""Environment variables with wrong values: one line, exit code 2, before any work."""

import os
import subprocess
import sys

import pytest

from admrl.config.environment import check_environment


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OMP_NUM_THREADS", "x", ["train", "--family", "point_robot"]),
        ("OMP_NUM_THREADS", "0", ["evaluate", "nowhere"]),
        ("GOMP_SPINCOUNT", "many", ["reference"]),
        ("MPLBACKEND", "nonsense", ["heatmap", "nowhere"]),
        ("MPLBACKEND", "nonsense", ["quickstart", "--family", "point_robot", "--preset", "smoke"]),
        ("MUJOCO_GL", "bogus", ["train", "--preset", "smoke"]),
        ("MUJOCO_GL", "wgl", ["reference"]),
    ],
)
def test_a_wrong_variable_is_refused_before_any_work(tmp_path, name, value, words):
    result = subprocess.run(
        [sys.executable, "-m", "admrl", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), name: value},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()  # nor does libgomp say anything
    assert line.startswith(f"error: {name}: expected ") and f"got {value!r}" in line
    assert line.endswith(f"unset {name}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("OMP_NUM_THREADS", ("1", "16", " 4 ", "2,1", "2 , 1"), ("", "0", "-1", "1.5", "1,", "٣", "9" * 20)),
        ("GOMP_SPINCOUNT", ("0", "10000", "30k", "1 M", "INFINITE", "infinity"), ("", "-1", "x", "1kk")),
    ],
)
def test_what_openmp_understands(monkeypatch, name, right, wrong):
    for value in right:
        monkeypatch.setenv(name, value)
        check_environment()
    for value in wrong:
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            check_environment()
    monkeypatch.delenv(name)
    check_environment()


def test_backends_of_matplotlib(monkeypatch):
    for value in ("", "agg", "Agg", "module://some.where"):
        monkeypatch.setenv("MPLBACKEND", value)
        check_environment()
