"""Gradient steps that a GPU would record: the same numbers, whatever changes between two of them."""

import warnings

import pytest
import torch
from stand_in_device import DEVICE

from admrl.baselines.config import ALGORITHMS, preset_config
from admrl.baselines.training import new_baseline
from admrl.solving.sac import Optimizers
from policy_opt.capture import RECORDERS
from task_families import make

NUM_RECORDED = {"crl": 2}  # functions; the others have one


def training(algorithm, device):
    """One with some transitions of three tasks."""
    config = preset_config("smoke", "point_robot", algorithm)
    state = new_baseline(make("point_robot"), algorithm, config, 0)
    generator = torch.Generator().manual_seed(1)
    for task in range(3):
        obs = torch.randn(9, 2, generator=generator)
        state.replay.add(task, obs, obs, obs, obs[:, 0], obs[:, 0], obs[:, 0] > 0, to_context=True)
    state.move_to(device)
    return state


def gradient_steps(state, num=3):
    return [state.agent.update(state.replay, state.optimizers, state.generator) for _ in range(num)]


def eventful(state):
    """The metrics of steps between which everything changes that may, and all that was learned."""
    metrics = gradient_steps(state, 4)
    weights = {name: value.clone() for name, value in state.agent.state_dict().items()}
    moments = {name: value.clone() for name, value in state.optimizers.state_dict().items()}
    state.optimizers.set_learning_rate(1e-2)
    metrics += gradient_steps(state)
    with torch.no_grad():
        for parameter in state.agent.parameters():
            parameter.mul_(0.9)
    metrics += gradient_steps(state)
    state.agent.load_state_dict(weights)
    metrics += gradient_steps(state)
    state.optimizers.load_state_dict(moments)
    metrics += gradient_steps(state)
    state.renew_optimizers()
    metrics += gradient_steps(state)
    return metrics, [state.agent.state_dict(), state.optimizers.state_dict()]


def assert_equal(found, expected):
    for there, here in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert list(there) == list(here)
        for name, value in here.items():
            assert torch.equal(there[name].cpu(), value.cpu()), name


@pytest.fixture
def recorded(monkeypatch):
    """What was recorded, a name each time."""
    found, record = [], RECORDERS[DEVICE.type]

    def noting(function, device):
        found.append(function)
        return record(function, device)

    monkeypatch.setitem(RECORDERS, DEVICE.type, noting)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_recorded_steps_are_the_same_bit_by_bit(algorithm, recorded, monkeypatch):
    found = eventful(training(algorithm, DEVICE))
    # at first, with other moments, with other optimisers
    assert len(recorded) == 3 * NUM_RECORDED.get(algorithm, 1)
    monkeypatch.setattr(Optimizers, "captured", lambda self, name, module, step, *inputs: step(*inputs))
    assert_equal(found, eventful(training(algorithm, DEVICE)))
    assert len(recorded) == 3 * NUM_RECORDED.get(algorithm, 1)


def test_a_step_is_recorded_anew_where_something_has_moved(recorded):
    state = training("pearl", DEVICE)
    gradient_steps(state, 4)
    assert len(recorded) == 1
    log_alpha = state.agent.sac.log_alpha
    log_alpha.data = log_alpha.data.clone()
    gradient_steps(state, 4)
    assert len(recorded) == 2


def test_a_learning_rate_changes_in_place(recorded):
    moved = []
    for rate in (1e-3, 1e-2):
        state = training("sac", DEVICE)
        gradient_steps(state)
        state.optimizers.set_learning_rate(rate)
        weight = state.agent.sac.q1.last.weight.detach()
        before = weight.clone()
        gradient_steps(state, 1)
        moved.append((weight - before).cpu())
    torch.testing.assert_close(moved[1], 10 * moved[0], rtol=1e-3, atol=1e-6)
    assert len(recorded) == 2


def test_what_cannot_be_recorded_says_so_once_and_goes_on_with_the_same_numbers(monkeypatch):
    def record(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = training("pearl", DEVICE)
    metrics = gradient_steps(expected, 5)
    monkeypatch.setitem(RECORDERS, DEVICE.type, record)
    found = training("pearl", DEVICE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        same = gradient_steps(found, 5)
    messages = [str(one.message) for one in told if "recorded" in str(one.message)]
    assert len(messages) == 1 and "a gradient step of encoder, critics and policy cannot be" in messages[0]
    assert_equal((same, [found.agent.state_dict()]), (metrics, [expected.agent.state_dict()]))


def test_on_the_cpu_a_step_goes_straight_through(recorded):
    state = training("crl", "cpu")
    gradient_steps(state)
    assert recorded == [] and len(state.optimizers._captured) == 0
    for adam in state.optimizers.adam.values():
        assert not adam.defaults["capturable"] and isinstance(adam.param_groups[0]["lr"], float)
