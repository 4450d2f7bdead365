"""A study on a disk that is full, and then is not."""

import os
import subprocess
import sys

import pytest
from study_tools import STUDY

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    """A folder of 1.2 MB, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )

    mounted = mount("size=1200k")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip() or 'not root'}")
    yield folder, lambda: mount("remount,size=100m")
    subprocess.run(["umount", str(folder)], check=True)


def study(folder, name, where):
    (folder / f"{name}.toml").write_text(
        STUDY.format(folder=where).replace("seeds", 'name = "toy"\nseeds', 1)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "admrl", "study", f"{name}.toml", "--only", "linear_quadratic/uniform-0"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_full_disk_is_said_and_with_room_the_same_command_goes_on(tmp_path, disk):
    folder, enlarge = disk
    whole = study(tmp_path, "whole", "whole")
    assert whole.returncode == 0, whole.stderr
    stopped = study(tmp_path, "full", str(folder / "study"))
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert "No space left on device" in stopped.stderr + stopped.stdout, stopped.stderr
    assert not (folder / "study" / "driver.json").exists()
    enlarge()
    again = study(tmp_path, "full", str(folder / "study"))
    assert again.returncode == 0, again.stderr
    job = folder / "study" / "jobs" / "linear_quadratic" / "uniform-0"
    assert {path.suffix for path in job.iterdir()} <= {"", ".json", ".log", ".progress"}
    for name in ("metrics.csv", "tasks.json"):
        of_both = [
            root / "runs/linear_quadratic/uniform-0" / name for root in (tmp_path / "whole", folder / "study")
        ]
        texts = [_without_seconds(path.read_text()) for path in of_both]
        assert texts[0] == texts[1], name


def _without_seconds(text):
    """metrics.csv has the wall time in its third column."""
    rows = [line.split(",") for line in text.splitlines()]
    return [row[:2] + row[3:] for row in rows] if rows[0][:3] == ["step", "phase", "seconds"] else text
