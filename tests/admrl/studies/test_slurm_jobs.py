"""What is asked of Slurm, and what is said where there is none: no cluster is needed."""

import math

import pytest

from admrl.studies import slurm_engine
from admrl.studies.engine import Resources
from admrl.studies.slurm_engine import SlurmEngine
from admrl.studies.slurm_jobs import JobKind, minutes


def test_a_job_has_what_all_its_processes_need():
    kind = JobKind(Resources(num_cores=2, memory_gb=1.5, num_gpus=1.0), 90, "long", None)
    expected = {"cpus_per_task": 6, "time": 90, "mem": "4608M", "gpus_per_node": 3, "partition": "long"}
    assert kind.options(3) == expected
    assert JobKind(Resources(), 90, None, "us").options(1) == {
        "cpus_per_task": 1,
        "time": 90,
        "account": "us",
    }


def test_no_slurm_and_no_submitit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(slurm_engine, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="slurm needs the commands of Slurm, but sbatch is not in PATH"):
        SlurmEngine(tmp_path, Resources())
    monkeypatch.setattr(slurm_engine, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"slurm needs submitit, .* pip install \"admrl\[slurm\]\""):
        SlurmEngine(tmp_path, Resources())


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30:00", 30), ("2:00:00", 120), ("1-00:00:30", 1440.5), ("infinite", math.inf), ("n/a", math.inf)],
)
def test_time_limits_of_sinfo(limit, expected):
    assert minutes(limit) == expected
