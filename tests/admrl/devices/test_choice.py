"""Which device is chosen: by name, by speed, by memory."""

import pytest
import torch

from admrl.config.presets import PRESETS
from admrl.devices import choice
from admrl.devices.choice import FREE, Choice, check_memory, choose, seconds_of_a_step
from admrl.devices.demand import num_bytes
from admrl.devices.names import AVAILABLE
from admrl.solving.sizes import Spaces, training_sizes

SIZES = training_sizes(PRESETS["paper"], "adversarial", Spaces(111, 8, 200, 2), uses_gradient=True)
SMALL = training_sizes(PRESETS["smoke"], "uniform", Spaces(4, 2, 20, 2), uses_gradient=False)


def no_sizes():
    raise AssertionError("asked for the sizes")


def test_with_a_cpu_alone_nothing_is_measured(monkeypatch):
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 0)
    assert choose("cpu", no_sizes) == Choice(torch.device("cpu"))
    assert choose("auto", no_sizes) == Choice(torch.device("cpu"), "auto: cpu, there is no other device here")


def test_auto_takes_the_faster_one_and_says_so(monkeypatch):
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 1)
    monkeypatch.setitem(FREE, "cuda", lambda device: 10**12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    for on_gpu, best in ((1e-4, "cuda:0"), (1e-1, "cpu")):
        seconds = {"cpu": 2e-3, "cuda": on_gpu}
        monkeypatch.setattr(choice, "seconds_of_a_step", lambda device, _, s=seconds: s[device.type])
        chosen = choose("auto", lambda: SIZES)
        assert str(chosen.device) == best
        assert chosen.note == (
            f"auto: {best}: a step of the networks takes 2 ms on cpu, {1000 * on_gpu:.2g} ms on cuda (Some GPU)"
        )


def test_auto_leaves_out_what_has_too_little_memory(monkeypatch):
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: 1)
    monkeypatch.setitem(FREE, "cuda", lambda device: 10**6)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    chosen = choose("auto", lambda: SMALL)
    assert str(chosen.device) == "cpu" and chosen.note.endswith("; cuda:0 has too little memory")


def test_a_step_is_measured_on_both_devices(device):
    """The stand-in runs what a GPU would."""
    assert 0 < seconds_of_a_step(device, SMALL) < 10


def test_too_little_memory_is_refused_with_what_to_lower(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    gpu = torch.device("cuda", 0)
    needed = f"{num_bytes(SIZES) / 1e9:.2g}"
    with pytest.raises(
        ValueError, match=f"device: expected about {needed} GB of free memory on cuda:0"
    ) as told:
        check_memory(gpu, SIZES)
    message = str(told.value)
    assert "cuda (Some GPU), got 2; in GB: 10000 virtual steps of each of 48 policies" in message
    assert "lower `config.gradient.resolve.num_replicates` or `config.virtual.num_samples`" in message
    check_memory(gpu, SMALL)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (num_bytes(SIZES), 8 * 10**9))
    check_memory(gpu, SIZES)
    with pytest.raises(ValueError, match=r"in GB for each of 2 processes \(`num_workers`\)"):
        check_memory(gpu, SIZES, 2)


def test_the_memory_of_the_cpu_is_not_asked_for():
    check_memory(torch.device("cpu"), SIZES, 10**6)
