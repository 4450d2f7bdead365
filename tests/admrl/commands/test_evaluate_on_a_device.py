"""`--device` of evaluate and gradcheck on the stand-in: the numbers of the CPU, recorded as the stand-in's."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_tools import run_command
from device_tools import TINY, run_jobs_here, standin, train  # noqa: F401  (a fixture)
from fault_tools import EVALUATION

from admrl.commands.evaluate import Evaluate
from admrl.commands.gradcheck import Gradcheck
from admrl.commands.train import Train
from admrl.devices import choice
from admrl.devices.choice import FREE
from admrl.devices.names import AVAILABLE
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
    assert len(watched.read_backs) <= 230 and len(watched.uploads) <= 200  # 201 and 176 here


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


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "cpu:1", "cuad"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_written(
    device, tmp_path, trained, monkeypatch
):
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 0)
    before = files(trained)
    for command in (
        Train(preset="smoke", out=tmp_path / "new", device=device),
        Train(resume=trained, num_tasks=5, device=device),
        Evaluate(runs=(trained,), grid=(2, 1), device=device),
        Gradcheck(run=trained, device=device),
    ):
        with pytest.raises(ValueError, match=r"device: (expected one that is here, cpu, got|got 'cuad')"):
            run_command(command)
    assert not (tmp_path / "new").exists() and files(trained) == before


def test_too_little_memory_is_refused_before_anything_is_written(tmp_path, trained, standin, monkeypatch):  # noqa: F811
    monkeypatch.setitem(FREE, "standin", lambda device: 1000)
    before = files(trained)
    for setting, command in (
        ("config.search.num_probe_samples", Train(preset="smoke", out=tmp_path / "new", device="standin")),
        ("config.virtual.num_samples", Train(resume=trained, num_tasks=5, device="standin")),
        ("config.tasks_per_batch", Evaluate(runs=(trained,), grid=(2, 1), config=CONFIG, device="standin")),
        ("truth_replicates", Gradcheck(run=trained, device="standin")),
    ):
        with pytest.raises(ValueError, match=f"GB of free memory on standin:0.*`{setting}`"):
            run_command(command)
    assert not (tmp_path / "new").exists() and files(trained) == before


def test_auto_tells_the_run(tmp_path, standin, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        choice, "seconds_of_a_step", lambda device, sizes: 1e-3 if device.type == "cpu" else 5e-4
    )
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 0)
    run = Train(preset="smoke", out=tmp_path / "run", device="auto").prepare()
    assert str(run.device) == "standin:0"
    assert run.notes == ["auto: standin:0: a step of the networks takes 1 ms on cpu, 0.5 ms on standin"]


def test_what_knows_no_other_device_stays_or_is_refused(tmp_path, standin):  # noqa: F811
    mbpo = replace(TINY, learner="mbpo", virtual=replace(TINY.virtual, num_samples=200))
    options = dict(family="point_robot", selector="uniform", preset="smoke", config=mbpo)
    with pytest.raises(ValueError, match=r"device: expected cpu with `config.learner` mbpo"):
        Train(out=tmp_path / "run", device="standin", **options).prepare()
    assert not (tmp_path / "run").exists()
    assert str(Train(out=tmp_path / "run", device="auto", **options).prepare().device) == "cpu"
    policy = tmp_path / "still.py"
    policy.write_text("def act(obs):\n    return obs[..., :2] * 0\n")
    config = replace(CONFIG, num_reference_stages=0)
    with pytest.raises(ValueError, match="device: got standin, and none of these methods"):
        own = (f"{policy}:act",)
        Evaluate(policy=own, family="point_robot", grid=(2, 2), config=config, device="standin").prepare()
