"""`admrl train --device` on the stand-in: the numbers of the CPU, and a run goes on anywhere."""

import json
from dataclasses import replace

import pytest
from command_tools import run_command
from device_tools import TINY, double, standin, train  # noqa: F401  (fixtures)

from admrl.commands.train import Train
from admrl.jobs.reporter import Silent
from admrl.training.meta_training import meta_train
from admrl.training.run import Run, load_run, train_run

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, double):  # noqa: F811
    return train(tmp_path_factory.mktemp("cpu") / "run")


def assert_same_training(path, other):
    one, two = (json.loads((p / "tasks.json").read_text()) for p in (path, other))
    assert len(one) == len(two) == TINY.num_tasks
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
    with standin.watch() as watched:
        path = train(tmp_path / "run", "standin", selector=selector, checkpoint_seconds=3600.0)
    assert len(watched.read_backs) <= 300 and len(watched.uploads) <= 250
    assert_same_training(path, usual)
    assert (path / "config.json").read_text() == (usual / "config.json").read_text()
    assert "samples, on standin ->" in capsys.readouterr().out
    run = load_run(path)
    assert (run.state.devices, str(run.device)) == (["standin"], "cpu")
    assert run.provenance()["training_device"] == "standin"


def test_a_run_goes_on_on_another_device_and_says_so(tmp_path, on_cpu, standin, capsys):  # noqa: F811
    path = train(tmp_path / "run", config=replace(TINY, num_tasks=1))
    run_command(Train(resume=path, num_tasks=2, device="standin"))
    assert_same_training(path, on_cpu)
    said = "trained on cpu so far, and on standin from here on: numbers differ by rounding between devices"
    assert said in events(path) and said in capsys.readouterr().out
    assert load_run(path).state.devices == ["cpu", "standin"]


@pytest.mark.parametrize("phase", ["zero-shot", "task gradient"])
def test_what_was_begun_there_is_finished_on_the_cpu(phase, tmp_path, on_cpu, standin):  # noqa: F811
    class Stop(Exception):
        pass

    command = Train(
        "linear_quadratic", "adversarial", "smoke", out=tmp_path / "run", config=TINY, device="standin"
    )
    run = command.prepare()

    def look(state):
        if state.records and state.progress is not None and str(state.progress.phase) == phase:
            run.save()
            raise Stop

    with pytest.raises(Stop):
        meta_train(run.family, run.state, TINY, on_step=look, on_phase=look)
    resumed = Run.resume(run.path)
    assert str(resumed.device) == "cpu"
    train_run(resumed, Silent())
    assert_same_training(run.path, on_cpu)


def test_how_often_a_training_waits_does_not_depend_on_its_samples(tmp_path, standin):  # noqa: F811
    """Two tasks: 7 real rollouts, which the data of the model is told of, 6 policy updates, 3 fits, 6 checkpoints."""
    seen = []
    for factor in (1, 3):
        virtual = replace(TINY.virtual, num_samples=200 * factor, num_model_steps=5 * factor)
        slbo = replace(TINY.slbo, num_samples=100 * factor)
        config = replace(TINY, virtual=virtual, slbo=slbo)
        with standin.watch() as watched:
            train(tmp_path / str(factor), "standin", config, selector="uniform", checkpoint_seconds=3600.0)
        seen.append((len(watched.read_backs), len(watched.uploads)))
    assert seen[0] == seen[1]
    assert seen[0][0] <= 240 and seen[0][1] <= 115  # 209 and 90 here
