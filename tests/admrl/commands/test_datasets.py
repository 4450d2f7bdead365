"""`admrl export-data` and `admrl fit-dynamics`: what they print, write and refuse, and that Ctrl-C leaves nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_tools import small_run
from command_tools import prepared, run_command
from data_tools import linear_arrays
from process_tools import until

from admrl import load_model, read_data
from admrl.commands.datasets import ExportData, FitDynamics
from admrl.config.data_fit import DataFitConfig
from dynamics.config import DynamicsConfig

CONFIG = DataFitConfig(dynamics=DynamicsConfig(hidden_sizes=(16,), num_members=2), num_steps=100)


@pytest.fixture
def log(tmp_path):
    np.savez(tmp_path / "log.npz", **linear_arrays())
    return tmp_path / "log.npz"


def test_the_folder_and_the_tables(log, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run_command(FitDynamics(log, tmp_path / "model", config=CONFIG))
    told = capsys.readouterr().out
    tables = told.split("error: root mean square")[0].splitlines()
    assert max(len(line.rstrip()) for line in tables) <= 80
    assert "one step, 8 held-out episodes" in told and "overconfident" in told
    names = ["coordinates.csv", "horizons.csv", "model.ckpt", "report.json", "report.png"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == names
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert [h["steps"] for h in report["horizons"]] == [1, 2, 5, 10, 20, 50] and report[
        "num_transitions"
    ] == 400
    with (tmp_path / "model" / "coordinates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [c["error"] for c in report["coordinates"]]
    data = read_data(log)
    found = load_model(tmp_path / "model").rollout(data.obs[:1], data.act[None, :5])
    assert found.shape == (2, 1, 5, 2) and bool(found.isfinite().all())
    run_command(FitDynamics(log, tmp_path / "again", config=CONFIG))
    for name in names[:3]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_one_member_and_limits_that_are_not_given(tmp_path, capsys):
    np.savez(tmp_path / "log.npz", **{k: v for k, v in linear_arrays().items() if k[:4] != "act_"})
    config = replace(CONFIG, dynamics=replace(CONFIG.dynamics, num_members=1))
    run_command(FitDynamics(tmp_path / "log.npz", tmp_path / "model", config=config))
    told = capsys.readouterr().out
    assert "one member" in told and "Limits of actions were not given" in told
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert report["horizons"][0]["coverage_90"] is None


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(log, tmp_path, signum):
    command = ["fit-dynamics", str(log), "--out", "model", "--config.num-steps", "10000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "admrl", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: process.poll() is not None or len(list(tmp_path.iterdir())) > 1, "it begins to write")
    process.send_signal(signum)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 128 + signum and "interrupted; nothing was written" in told
    assert [p.name for p in tmp_path.iterdir()] == ["log.npz"]


def test_mistakes(log, tmp_path):
    (tmp_path / "there").mkdir()
    for command, message in (
        (FitDynamics(log, tmp_path / "there"), "out: .* already exists"),
        (FitDynamics(log, tmp_path / "no" / "model"), "the folder .*no does not exist"),
        (FitDynamics(tmp_path / "nothing.npz", tmp_path / "model"), "no such file or folder"),
        (FitDynamics(log, tmp_path / "model", seed=-1), "seed"),
        (FitDynamics(log, tmp_path / "model", config=replace(CONFIG, num_steps=0)), "config.num_steps"),
        (
            FitDynamics(log, tmp_path / "m", config=replace(CONFIG, fit=replace(CONFIG.fit, num_horizon=51))),
            "config.fit.num_horizon: expected two episodes or more of 51 steps",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(command)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.npz", "there"]


def test_a_run_goes_out_and_comes_back_as_a_model(tmp_path, capsys, monkeypatch):
    pytest.importorskip("minari", reason='needs the extra: pip install "admrl[minari]"')
    run = small_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run_command(ExportData(run.path))
    data = run.learner.data[0]
    assert (
        f"wrote point_robot-v0: {int(data.ends.sum())} episodes, {len(data)} transitions\n"
        in capsys.readouterr().out
    )
    run_command(ExportData(run.path, out=Path("other-v1"), psi=(0.5, 0.5)))
    with pytest.raises(ValueError, match="is outside"):
        prepared(ExportData(run.path, out=Path("more-v1"), psi=(50.0, 0.5)))
    with pytest.raises(ValueError, match="already exists"):
        prepared(ExportData(run.path))
    run_command(FitDynamics(Path("point_robot-v0"), Path("model"), config=CONFIG))
    assert torch.equal(load_model("model").model.action_bounds.high, run.family.action_bounds.high)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("admrl.commands.datasets.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'need minari and h5py: pip install "admrl\[minari\]"'):
        prepared(ExportData(tmp_path))
