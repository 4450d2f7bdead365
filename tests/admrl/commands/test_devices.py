"""`--device` of train, evaluate and gradcheck on the stand-in: the numbers of the CPU, and a run goes anywhere.

Runs are in double precision here: in single precision whole trainings enlarge the rounding to per cents.
"""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from command_tools import run_command
from device_tools import run_jobs_here, standin  # noqa: F401  (a fixture)
from fault_tools import EVALUATION, SMALL

import admrl.training.run
from admrl.commands.evaluate import Evaluate
from admrl.commands.gradcheck import Gradcheck
from admrl.commands.train import Train
from admrl.evaluation import parallel
from admrl.evaluation.gap_table import GapTable
from admrl.jobs import pool
from admrl.training.run import Run, load_run
from admrl.training.state import new_state

CONFIG = replace(SMALL, num_tasks=2)
FAMILY = "linear_quadratic"


@pytest.fixture(scope="module", autouse=True)
def double():
    """Runs in double precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admrl.training.run, "new_state", partial(new_state, dtype=torch.float64))
        yield


def train(path, device="cpu", **options):
    run_command(Train(family=FAMILY, preset="smoke", out=path, config=CONFIG, device=device, **options))
    return path


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return train(tmp_path_factory.mktemp("cpu") / "run")


def assert_same_training(path, other):
    one, two = (json.loads((p / "tasks.json").read_text()) for p in (path, other))
    assert len(one) == len(two) == CONFIG.num_tasks
    for a, b in zip(one, two, strict=True):
        for name in ("psi", "return_hat", "return_star", "return_model", "split_half_cosine"):
            if b[name] is None:
                assert a[name] is None
            else:
                assert a[name] == pytest.approx(b[name], rel=1e-5), name
        for name in ("real_samples", "virtual_samples", "fell_back"):
            assert a[name] == b[name]


def events(path):
    return [json.loads(line)["message"] for line in (path / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("selector", ["adversarial", "screened", "population"])
def test_a_training_is_that_of_the_cpu(selector, tmp_path, on_cpu, standin, capsys):  # noqa: F811
    usual = on_cpu if selector == "adversarial" else train(tmp_path / "usual", selector=selector)
    path = train(tmp_path / "run", "standin", selector=selector)
    assert_same_training(path, usual)
    assert (path / "config.json").read_text() == (usual / "config.json").read_text()
    assert "samples, on standin ->" in capsys.readouterr().out
    run = load_run(path)
    assert (run.state.devices, str(run.device)) == (["standin"], "cpu")
    assert run.provenance()["training_device"] == "standin"
