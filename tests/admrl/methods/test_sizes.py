"""What methods need of a device against peaks that torch's profiler sees in a gradient step."""

from dataclasses import replace

import pytest
from memory_tools import peak

import admrl.offline.training
import policy_opt.trpo
from admrl.baselines import training as baselines
from admrl.commands.train_baseline import TrainBaseline
from admrl.inner_loop import training as inner_loop
from admrl.jobs.reporter import Silent
from admrl.methods.state import ReplayState
from admrl.offline import training as offline
from admrl.recurrent import training as recurrent
from admrl.run_kinds import METHOD_RUNS
from task_families import make

FAMILY = make("point_robot")


def changed(config, algorithm, scale):
    """Settings of which a gradient step is larger by about scale^2."""
    if isinstance(config, baselines.BaselineConfig):
        sac = replace(config.sac, batch_size=64, hidden_sizes=(48 * scale, 48 * scale))
        return replace(config, meta_batch=3 * scale, sac=sac)
    if isinstance(config, inner_loop.InnerLoopConfig):
        return replace(config, meta_batch=6 * scale, hidden_sizes=(32 * scale, 32 * scale), num_steps=scale)
    if algorithm == "rl2":
        ppo = replace(config.ppo, num_epochs=1, num_minibatches=2)
        return replace(config, meta_batch=6 * scale, hidden_size=24 * scale, ppo=ppo)
    if algorithm == "mql":
        td3 = replace(config.td3, batch_size=64 * scale, history_length=5, context_size=16 * scale)
        return replace(config, td3=replace(td3, hidden_sizes=(64 * scale, 64 * scale), policy_delay=1))
    rows = dict(inner_batch=64, outer_batch=64, num_buffer_samples=400)
    return replace(config, hidden_sizes=(24 * scale, 24 * scale), latent_size=12 * scale, **rows)


def gradient_step(state, monkeypatch):
    """What an iteration's gradient steps are, of a state with data."""
    if isinstance(state, ReplayState):
        state.sample_all(1)
        return lambda: state.update(1)
    if isinstance(state, inner_loop.InnerLoopState):
        return lambda: inner_loop._update(state, inner_loop.sample_problem(state)[0])
    if isinstance(state, recurrent.RecurrentState):
        trials, _ = recurrent.sample_trials(state)
        return lambda: recurrent._update(state, trials)
    offline._record_some(state, Silent(), 1)
    monkeypatch.setattr(admrl.offline.training, "UPDATES_PER_STEP", 1)
    return lambda: offline._update(state)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    "algorithm", ["pearl", "crl", "sac", "maml-trpo", "promp", "maesn", "rl2", "mql", "macaw"]
)
def test_a_gradient_step_takes_at_most_what_is_expected(algorithm, scale, monkeypatch):
    monkeypatch.setattr(policy_opt.trpo, "STATES_PER_BLOCK", 10**9)  # all at once, as on a GPU
    made = TrainBaseline.defaults(["--preset", "smoke", algorithm])
    kind = next(kind for kind in METHOD_RUNS.values() if algorithm in kind.titles)
    state = kind.new_training(FAMILY, algorithm, changed(made.config, algorithm, scale), 0)
    step = gradient_step(state, monkeypatch)
    step()  # Adam's moments are there from then on
    found = peak(step)
    parts = {part.what: part.num_bytes for part in state.sizes().parts()}
    (of_step,) = [size for what, size in parts.items() if what.startswith("a gradient step on ")]
    assert found <= of_step + parts["the networks"]
    assert of_step <= 4 * found


def test_the_data_is_what_a_training_will_have():
    """PEARL's replay: 8 numbers of a row on the point robot; MACAW's buffers, which are not there yet."""
    made = TrainBaseline.defaults(["--preset", "smoke", "pearl"])
    state = METHOD_RUNS["baseline"].new_training(FAMILY, "pearl", made.config, 0)
    (data,) = [part for part in state.sizes().parts() if part.what == "the data"]
    assert data.num_bytes == 4 * (3 * 200 + 2 * 2 * 600) * (2 + 2 + 2 + 4)
    made = TrainBaseline.defaults(["--preset", "smoke", "macaw"])
    state = METHOD_RUNS["offline"].new_training(FAMILY, "macaw", made.config, 0)
    (data,) = [part for part in state.sizes().parts() if part.what == "the data"]
    expected = data.num_bytes
    offline._record_some(state, Silent(), 1)
    buffers = state.buffers
    tensors = (buffers.data.rows, buffers.to_go, buffers.last_discount, buffers._end)
    assert expected == sum(tensor.nbytes for tensor in tensors)
