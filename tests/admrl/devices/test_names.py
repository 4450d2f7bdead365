"""Names of devices: what is here, what is not, and what the message says."""

import pytest
import torch

from admrl.devices.names import AVAILABLE, check_device_name, described, devices_here, find_device


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuad", r"device: got 'cuad', expected one of: cpu, cuda, auto \(did you mean 'cuda'\?\)"),
        ("", "device: got '', expected one of: cpu, cuda, auto"),
        ("gpu", "expected one of"),
        ("cuda:", "expected auto, or a kind and a number as in cuda:0, got 'cuda:'"),
        ("cuda:x", "got 'cuda:x'"),
        ("cuda:-1", "got 'cuda:-1'"),
        ("cuda:²", "got 'cuda:²'"),
        ("auto:0", "got 'auto:0'"),
    ],
)
def test_what_names_no_device_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_device_name(name)


def with_gpus(monkeypatch, num, build="12.8"):
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: num)
    monkeypatch.setattr(torch.version, "cuda", build)


def test_the_cpu_has_one_name(monkeypatch):
    assert find_device("cpu") == find_device("cpu:0") == torch.device("cpu")
    with_gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"device: expected one that is here, cpu, got cpu:1$"):
        find_device("cpu:1")


def test_a_gpu_has_a_number(monkeypatch):
    with_gpus(monkeypatch, 2)
    assert find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert devices_here() == ["cpu", "cuda:0", "cuda:1"]


def test_a_gpu_that_is_not_here_is_refused(monkeypatch):
    with_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"expected one that is here, cpu or cuda:0 or cuda:1, got cuda:7$"):
        find_device("cuda:7")
    with_gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match="got cuda; torch sees no GPU: `nvidia-smi` shows"):
        find_device("cuda")
    with_gpus(monkeypatch, 0, None)
    with pytest.raises(ValueError, match=r"got cuda:1; torch .* was built without CUDA: install a build"):
        find_device("cuda:1")


def test_records_name_the_gpu_not_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert described(torch.device("cuda", 3)) == "cuda (Some GPU)"
    assert described(torch.device("cpu")) == "cpu"
