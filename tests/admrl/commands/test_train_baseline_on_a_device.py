"""`admrl train-baseline --device` on the stand-in: the numbers of the CPU, and a run goes on anywhere."""

import json
from dataclasses import replace

import pytest
import torch
from command_tools import run_command
from device_tools import standin  # noqa: F401  (fixture)

from admrl.commands.train_baseline import TrainBaseline
from admrl.config.methods import ALGORITHMS
from admrl.devices import choice
from admrl.devices.choice import FREE
from admrl.devices.names import AVAILABLE
from admrl.inner_loop.config import ClipConfig
from admrl.recurrent.config import PpoConfig
from admrl.run_kinds import load_any_run
from policy_opt.capture import RECORDERS, Captured

SHORT = {
    "baselines": {"num_iterations": 1, "num_updates": 2},
    "inner_loop": {"num_iterations": 1},
    "offline": {"num_iterations": 10, "num_buffer_samples": 100, "num_adapt_samples": 100},
    "recurrent": {"num_iterations": 1, "ppo": PpoConfig(num_epochs=1, num_minibatches=2)},
    "mql": {"num_iterations": 1, "num_updates": 4},
}


def command(algorithm, path, device="cpu", **settings):
    """The smallest training of a method."""
    made = TrainBaseline.defaults(["--preset", "smoke", algorithm])
    room = made.settings.__name__.split(".")[1]
    config = replace(made.config, **SHORT[room] | settings)
    options = dict(preset="smoke", out=path, device=device, checkpoint_seconds=3600.0)
    return replace(made, algorithm=algorithm, config=config, **options)


def resumed(path, device="cpu", num_iterations=2):
    made = TrainBaseline.defaults([])
    return replace(made, resume=path, num_iterations=num_iterations, device=device)


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def events(path):
    return [json.loads(line)["message"] for line in (path / "events.jsonl").read_text().splitlines()]


def learned(path):
    return load_any_run(path).state.agent.state_dict()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    path = tmp_path_factory.mktemp("cpu") / "run"
    run_command(command("mql", path))
    return path


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("mt-joint", "maml-ppo")])
def test_a_training_is_that_of_the_cpu(algorithm, tmp_path, standin, capsys):  # noqa: F811
    """One iteration. An outer trust region enlarges rounding: conjugate gradients in single precision."""
    run_command(command(algorithm, tmp_path / "cpu"))
    with standin.watch() as watched:
        run_command(command(algorithm, tmp_path / "run", "standin"))
    assert 0 < len(watched.read_backs) <= 45 and 0 < len(watched.uploads) <= 100
    assert "on standin ->" in capsys.readouterr().out
    usual, found = learned(tmp_path / "cpu"), learned(tmp_path / "run")
    close = 2e-3 if algorithm in ("maml-trpo", "maml-mt", "maesn") else 1e-5
    for name, value in usual.items():
        torch.testing.assert_close(found[name], value, rtol=close, atol=close, msg=name)
    config, curve = ([(tmp_path / p / f) for p in ("cpu", "run")] for f in ("config.json", "curve.json"))
    assert config[0].read_text() == config[1].read_text()
    ((one,), (two,)) = (json.loads(file.read_text()) for file in curve)
    assert two == pytest.approx(one, rel=1e-3)
    run = load_any_run(tmp_path / "run")
    assert (run.state.devices, str(run.state.device)) == (["standin"], "cpu")
    assert run.provenance()["training_device"] == "standin"


@pytest.mark.parametrize("algorithm", ["sac", "pearl", "mql"])
def test_gradient_steps_do_not_wait(algorithm, tmp_path, standin):  # noqa: F811
    seen = []
    for num_updates in (4, 12):
        with standin.watch() as watched:
            run_command(command(algorithm, tmp_path / str(num_updates), "standin", num_updates=num_updates))
        seen.append(len(watched.read_backs))
    assert seen[0] == seen[1]


RECORDED = {  # settings under which gradient steps are repeated, and how many functions are recorded
    "pearl": ({"num_updates": 5}, 1),
    "crl": ({"num_updates": 5}, 2),
    "sac": ({"num_updates": 5}, 1),
    "mql": ({"num_updates": 9}, 2),
    "rl2": ({"ppo": PpoConfig(num_epochs=3, num_minibatches=3)}, 2),
    "macaw": ({}, 1),
    "promp": ({"clip": ClipConfig(num_epochs=3)}, 1),
    "maml-trpo": ({"num_iterations": 3}, 1),
    "maesn": ({"num_iterations": 3}, 1),
}


@pytest.mark.parametrize("algorithm", RECORDED)
def test_recorded_gradient_steps_are_the_same_bit_by_bit(algorithm, tmp_path, standin, monkeypatch):  # noqa: F811
    settings, num_functions = RECORDED[algorithm]
    recorded, record = [], RECORDERS["standin"]
    monkeypatch.setitem(RECORDERS, "standin", lambda *given: (recorded.append(given), record(*given))[1])
    run_command(command(algorithm, tmp_path / "recorded", "standin", **settings))
    assert len(recorded) == num_functions
    monkeypatch.setattr(Captured, "_record", lambda self, inputs: None)
    run_command(command(algorithm, tmp_path / "usual", "standin", **settings))
    assert len(recorded) == num_functions
    usual, found = learned(tmp_path / "usual"), learned(tmp_path / "recorded")
    for name, value in usual.items():
        assert torch.equal(found[name], value), name


def test_a_run_goes_on_on_another_device_and_says_so(tmp_path, standin, capsys):  # noqa: F811
    path = tmp_path / "run"
    run_command(command("mql", path))
    run_command(resumed(path, "standin"))
    said = "trained on cpu so far, and on standin from here on: numbers differ by rounding between devices"
    assert said in events(path) and said in capsys.readouterr().out
    run_command(resumed(path, num_iterations=3))
    assert load_any_run(path).state.devices == ["cpu", "standin", "cpu"]
    run_command(command("mql", tmp_path / "usual", num_iterations=3))
    usual, found = learned(tmp_path / "usual"), learned(path)
    for name, value in usual.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("algorithm", ["pearl", "promp", "rl2", "mql", "macaw"])
def test_what_cannot_be_is_refused_before_anything_is_written(
    algorithm,
    tmp_path,
    on_cpu,
    standin,  # noqa: F811
    monkeypatch,
):
    before = files(on_cpu)
    for refused in (command(algorithm, tmp_path / "new", "standin:7"), resumed(on_cpu, "standin:7")):
        with pytest.raises(ValueError, match=r"device: expected one that is here, .* got standin:7"):
            run_command(refused)
    monkeypatch.setitem(FREE, "standin", lambda device: 1000)
    for refused in (command(algorithm, tmp_path / "new", "standin"), resumed(on_cpu, "standin")):
        with pytest.raises(ValueError, match=r"GB of free memory on standin:0.*lower `config\."):
            run_command(refused)
    with pytest.raises(ValueError, match="device: got 'gpu'"):
        run_command(command(algorithm, tmp_path / "new", "gpu"))
    assert not (tmp_path / "new").exists() and files(on_cpu) == before


def test_auto_tells_the_run(tmp_path, standin, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        choice, "seconds_of_a_step", lambda device, sizes: 1e-3 if device.type == "cpu" else 5e-4
    )
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 0)
    run = command("promp", tmp_path / "run", "auto").prepare()
    assert str(run.state.device) == "standin:0"
    assert run.notes == ["auto: standin:0: a step of the networks takes 1 ms on cpu, 0.5 ms on standin"]
