"""Exported policies are ours, to 1e-6 in 1000 states, and run without this package."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_tools import small_run
from command_tools import prepared, run_command

from admrl.baselines import onnx_policy, torchscript_policy
from admrl.commands.export import FORMATS, Export
from admrl.commands.session import solve_zero_shot
from admrl.solving.policy_file import TOLERANCE, difference, write_policy
from task_families.conformance_tools import seeded

EXAMPLE = Path(__file__).parents[3] / "examples" / "use_an_exported_policy.py"
READ = {"onnx": onnx_policy, "torchscript": torchscript_policy}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("export") / "run")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_acts_as_we_do(run, tmp_path, kind, capsys):
    pytest.importorskip("onnx")
    file = tmp_path / f"policy{FORMATS[kind]}"
    run_command(Export(run.path, psi=(0.5, -0.25), format=kind, out=file, num_updates=3))
    assert "differs from ours by" in capsys.readouterr().out
    solution = solve_zero_shot(run, torch.tensor([[0.5, -0.25]]), 3, 0, "again")
    obs = 2 * torch.randn(1000, 2, generator=seeded(0))
    theirs = READ[kind](file, run.family)(obs)
    ours = solution.policy.mean(solution.theta, obs[None])[0]
    assert theirs.shape == (1000, 2) and float((theirs - ours).abs().max()) <= 1e-6
    assert ours.std() > 1e-4  # no constant
    other = replace(solution, theta=solution.theta + 1e-4)
    assert difference(other, READ[kind](file, run.family), obs) > TOLERANCE  # it would be noticed


@pytest.mark.parametrize("kind", FORMATS)
def test_units_of_actions_and_the_normaliser_are_inside(run, tmp_path, kind):
    """Known answer: with zero weights but the last bias, the action is center + scale * bias, whatever the state."""
    pytest.importorskip("onnx")
    solution = solve_zero_shot(run, torch.zeros(1, 2), 1, 0, "units")
    policy = solution.policy.with_action_units(torch.tensor([450.0, 0.0]), torch.tensor([450.0, 0.4]))
    policy = policy.with_normalizer(torch.tensor([5.0, -3.0]), torch.tensor([0.1, 7.0]))
    file = tmp_path / f"policy{FORMATS[kind]}"
    theta = torch.zeros_like(solution.theta)
    theta[0, policy.mlp.num_params - 2 : policy.mlp.num_params] = torch.tensor([0.5, -1.0])
    write_policy(replace(solution, policy=policy, theta=theta), file, kind, "test")
    act = READ[kind](file, run.family)(torch.randn(3, 2))
    torch.testing.assert_close(act, torch.tensor([[675.0, -0.4]]).expand(3, 2))
    moved = replace(solution, policy=policy)
    write_policy(moved, file, kind, "test")
    states = torch.tensor([5.0, -3.0]) + torch.randn(1000, 2, generator=seeded(1)) * torch.tensor([0.1, 7.0])
    assert difference(moved, READ[kind](file, run.family), states) <= TOLERANCE


def test_it_runs_without_this_package(run, tmp_path):
    pytest.importorskip("onnxruntime")
    run_command(Export(run.path, out=tmp_path / "policy.onnx", num_updates=1))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = (
        f"import runpy, sys; sys.argv = ['x', {str(tmp_path / 'policy.onnx')!r}]\n"
        f"runpy.run_path({str(EXAMPLE)!r})\n"
        "assert not {'admrl', 'torch', 'task_families'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    act = np.array(
        [[float(x) for x in row.strip(" []").split()] for row in result.stdout.strip().split("\n")]
    )
    assert act.shape == (3, 2) and (act == act[0]).all()


def test_a_task_outside_the_box_is_exported_where_that_is_asked_for(run, tmp_path, capsys):
    """It passed the check of the options, and was refused by the solver."""
    file = tmp_path / "policy.pt"
    run_command(
        Export(run.path, psi=(5, 0), format="torchscript", out=file, num_updates=1, allow_outside=True)
    )
    assert "at psi = (5, 0)" in capsys.readouterr().out and file.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "format: got 'onx'.*did you mean 'onnx'"),
        ({"format": "torchscript", "out": Path("policy.onnx")}, "out: expected a file ending in .pt"),
        ({"psi": (5.0, 0.0)}, "is outside"),
        ({"psi": (0.0,)}, "psi: expected 2 numbers a task"),
    ],
)
def test_mistakes(run, options, message):
    with pytest.raises(ValueError, match=message):
        prepared(Export(run.path, **options))


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setattr("admrl.commands.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx needs onnx and onnxruntime: pip install"):
        prepared(Export(run.path))
