"""`admrl evaluate --only-cells`: run by run, and the tables are those of one command."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_tools import prepared, run_command
from device_tools import TINY, run_jobs_here, train
from fault_tools import EVALUATION

from admrl.commands.evaluate import Evaluate
from admrl.evaluation import parallel
from admrl.evaluation.gap_table import GapTable
from admrl.runs.lock import RunLock

CONFIG = replace(EVALUATION, num_policy_seeds=2, num_updates=1, num_samples=200, num_reference_stages=0)
NAMES = ("uniform", "adversarial")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for name in NAMES:
        train(folder / name, selector=name, config=TINY)
    return folder


def command(*runs, **options):
    return Evaluate(runs=runs, grid=(2, 1), config=CONFIG, decompose=True, **options)


def no_jobs(jobs, num_workers, console):
    raise AssertionError("something was left to do")


def test_cells_of_each_run_then_tables_of_all(tmp_path, trained, monkeypatch, capsys):
    whole, apart = (shutil.copytree(trained, tmp_path / name) for name in ("whole", "apart"))
    monkeypatch.setattr(parallel, "run_jobs", run_jobs_here)
    run_command(command(*(whole / name for name in NAMES), name="a"))
    capsys.readouterr()
    for name in NAMES:
        run_command(command(apart / name, only_cells=True))
        assert not (apart / name / "gaps").exists()
        RunLock(apart / name).release()
    assert "1 run: all cells are there" in capsys.readouterr().out
    monkeypatch.setattr(parallel, "run_jobs", no_jobs)
    run_command(command(apart / NAMES[0], only_cells=True))
    run_command(command(*(apart / name for name in NAMES), name="a"))
    for name in NAMES:
        tables = [GapTable.load(folder / name / "gaps" / "a.json") for folder in (whole, apart)]
        for field in ("psi", "num_samples", "adapted_return", "optimal_return", "episode_return"):
            np.testing.assert_array_equal(*(getattr(table, field) for table in tables), err_msg=field)


def test_a_run_without_a_model_needs_no_reference_for_its_cells(tmp_path, trained, monkeypatch):
    """The tables do: the reference run, or a file."""
    path = shutil.copytree(trained, tmp_path / "all") / NAMES[0]
    monkeypatch.setattr("admrl.evaluation.evaluate_runs.model_sources", lambda runs: [])
    asked = replace(command(path), config=replace(CONFIG, num_reference_stages=1))
    with pytest.raises(ValueError, match=r"no A\*"):
        prepared(asked)
    runs, *_ = prepared(replace(asked, only_cells=True))
    parallel.release_runs(runs)


@pytest.mark.parametrize("option", [{"name": "x"}, {"reference": "file.json"}])
def test_what_is_for_tables_is_refused(tmp_path, option):
    with pytest.raises(ValueError, match="only_cells: makes no table"):
        command(tmp_path, only_cells=True, **option).check()
