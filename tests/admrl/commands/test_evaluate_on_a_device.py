"""`--device` of evaluate and gradcheck on the stand-in: the numbers of the CPU, recorded as the stand-in's."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_tools import run_command
from device_tools import run_jobs_here, standin, train  # noqa: F401  (a fixture)
from fault_tools import EVALUATION

from admrl.commands.evaluate import Evaluate
from admrl.commands.gradcheck import Gradcheck
from admrl.evaluation import parallel
from admrl.evaluation.gap_table import GapTable
from admrl.jobs import pool

CONFIG = replace(
    EVALUATION,
    num_policy_seeds=1,
    num_updates=1,
    num_samples=200,
    num_reference_stages=1,
    num_reference_samples=100,
    num_reference_updates=1,
    num_stages=1,
    num_stage_samples=100,
    num_stage_iterations=1,
    num_stage_updates=1,
    num_stage_model_steps=3,
    tasks_per_batch=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def here(monkeypatch):
    """Jobs run in this process."""
    monkeypatch.setattr(parallel, "run_jobs", run_jobs_here)
    monkeypatch.setattr(pool, "run_jobs", run_jobs_here)


def evaluated(path, device, **options):
    command = Evaluate(runs=(path,), grid=(2, 1), config=CONFIG, name=device, device=device, **options)
    run_command(command)
    return GapTable.load(path / "gaps" / f"{device}.json")


def test_an_evaluation_is_that_of_the_cpu(tmp_path, trained, standin, here, capsys):  # noqa: F811
    path = shutil.copytree(trained, tmp_path / "run")
    usual = evaluated(path, "cpu", decompose=True)
    capsys.readouterr()
    with standin.watch() as watched:
        table = evaluated(path, "standin", decompose=True)
    assert "policies are solved on standin:0, standin" in capsys.readouterr().out
    for name in ("episode_return", "optimal_return", "oracle_return", "model_error"):
        assert np.allclose(getattr(table, name), getattr(usual, name), rtol=2e-4), name
    assert (table.provenance.device, usual.provenance.device) == ("standin", "cpu")
    assert table.provenance.training_device == "cpu"
    assert table.provenance.evaluation_key != usual.provenance.evaluation_key
    assert len(watched.read_backs) <= 230 and len(watched.uploads) <= 200  # 207 and 196 here


def test_parts_of_one_device_are_not_mixed_with_those_of_another(tmp_path, trained, standin, here):  # noqa: F811
    path = shutil.copytree(trained, tmp_path / "run")
    tables = [evaluated(path, device) for device in ("cpu", "standin", "cpu")]
    assert len(list((path / "evaluation").glob("*/settings.json"))) == 2
    assert np.array_equal(tables[0].episode_return, tables[2].episode_return)


def test_psi_is_inferred_on_the_cpu_and_solved_on_the_device(tmp_path, trained, standin, here):  # noqa: F811
    path = shutil.copytree(trained, tmp_path / "run")
    tables = []
    for device in ("cpu", "standin"):
        evaluated(path, device, infer_psi=1)
        tables.append(GapTable.load(tmp_path / "run-inferred-1" / "gaps" / f"{device}.json"))
    assert np.allclose(tables[1].episode_return, tables[0].episode_return, rtol=2e-4)
    assert tables[1].provenance.device == "standin"


def test_a_gradient_check_is_that_of_the_cpu(tmp_path, trained, standin, here):  # noqa: F811
    path, found = shutil.copytree(trained, tmp_path / "run"), []
    for device in ("cpu", "standin"):
        options = dict(draws=1, truth_replicates=2, truth_updates=1, truth_episodes=4, device=device)
        run_command(Gradcheck(run=path, estimators=("causal",), **options))
        found.append(json.loads((path / "gradcheck.json").read_text()))
    usual, check = found
    assert (check["provenance"]["device"], usual["provenance"]["device"]) == ("standin", "cpu")
    assert_close_vectors(check["draws"][0]["total"][0], usual["draws"][0]["total"][0])
    assert_close_vectors(check["truth"]["total"], usual["truth"]["total"])


def assert_close_vectors(found, expected):
    """Up to the rounding of single precision."""
    assert np.linalg.norm(np.subtract(found, expected)) <= 5e-3 * np.linalg.norm(expected)
