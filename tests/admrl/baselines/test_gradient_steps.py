"""The gradient steps of every algorithm: the contexts that they see, and that they do not wait for the device."""

from dataclasses import replace

import pytest
import torch
from stand_in_device import watch as device_watch
from torch.utils._python_dispatch import TorchDispatchMode

from admrl.baselines.config import ALGORITHMS, preset_config
from admrl.baselines.replay import MultiTaskReplay
from admrl.baselines.training import new_baseline
from admrl.methods.state import train
from admrl.solving.sac import Optimizers
from task_families import make


def test_contexts_of_so_many_episodes_reach_encoder_and_adapter_network(monkeypatch):
    """`num_episodes` decides from where every gradient step draws its contexts; sampling uses the present context."""
    config = preset_config("smoke", "point_robot", "crl")
    asked = []
    sample_context = MultiTaskReplay.sample_context

    def spy(self, *args, window=None, **kwargs):
        asked.append(window)
        return sample_context(self, *args, window=window, **kwargs)

    monkeypatch.setattr(MultiTaskReplay, "sample_context", spy)
    for episodes, expected in ((2, (40, 20)), (None, None)):
        asked.clear()
        settings = replace(config, num_iterations=1, context=replace(config.context, num_episodes=episodes))
        train(new_baseline(make("point_robot"), "crl", settings, 0))
        steps = 2 * settings.num_updates  # encoder and adapter network
        assert asked.count(expected) >= steps
        assert episodes is None or len(asked) - asked.count(expected) == asked.count(None) < steps


class ReadsBack(TorchDispatchMode):
    """Notes every operation that waits for the device and reads from it."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.partition(".")[0] in self.READING:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_step_reads_nothing_back(algorithm, precision):
    config = preset_config("smoke", "point_robot", algorithm)
    config = replace(config, sac=replace(config.sac, precision=precision))
    state = new_baseline(make("point_robot"), algorithm, config, 0)
    obs = torch.zeros(9, 2)
    for task in range(3):
        state.replay.add(task, obs, obs, obs, obs[:, 0], obs[:, 0], obs[:, 0], to_context=True)
    with ReadsBack() as watch:
        state.agent.update(state.replay, state.optimizers, state.generator)
    assert watch.found == []
    with ReadsBack() as watch:
        float(obs[0, 0])
    assert watch.found, "the watch sees nothing"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradient_steps_are_the_same_on_another_device_and_read_nothing_back(algorithm, device):
    found = []
    for where in ("cpu", device):
        state = new_baseline(
            make("point_robot"), algorithm, preset_config("smoke", "point_robot", algorithm), 0
        )
        state.agent.to(where)
        state.replay.to(where)
        optimizers = Optimizers(state.agent.parameter_groups(), 1e-3)
        generator = torch.Generator().manual_seed(1)
        for task in range(3):
            obs = torch.randn(9, 2, generator=generator)
            state.replay.add(task, obs, obs, obs, obs[:, 0], obs[:, 0], obs[:, 0] > 0, to_context=True)
        with device_watch() as seen:
            metrics = [state.agent.update(state.replay, optimizers, generator) for _ in range(2)]
        assert seen.read_backs == []
        found.append((metrics[-1], state.agent.state_dict()))
    for there, here in zip(found[1], found[0], strict=True):
        for name, value in here.items():
            torch.testing.assert_close(there[name].cpu(), value, rtol=1e-4, atol=1e-6, msg=name)
