"""Many small tensors at once, to a device and back."""

import pytest
import torch
from stand_in_device import DEVICE, watch

from admrl.devices import transfer
from admrl.devices.transfer import Sent, on_device, on_host
from admrl.solving.rollouts import brought
from task_families.rollout import Rollout

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "mask": torch.tensor([True, False]),
    "b": torch.arange(4.0).view(2, 2).T,
    "none": torch.zeros(0, 3),
    "number": torch.tensor(7.0),
}


@pytest.fixture
def sent(monkeypatch):
    monkeypatch.setattr(transfer, "sent", Sent())
    return lambda: transfer.sent


def test_there_and_back_by_one_copy_for_each_type(sent):
    with watch() as seen:
        there = on_device(TENSORS, DEVICE)
    assert (len(seen.uploads), len(seen.read_backs)) == (2, 0)
    assert sent() == Sent(2, 4 * 11 + 2)
    assert all(x.device == DEVICE and x.shape == TENSORS[name].shape for name, x in there.items())
    with watch() as seen:
        back = on_host(there)
    assert (len(seen.uploads), len(seen.read_backs)) == (0, 2) and sent().num_copies == 2
    assert all(torch.equal(back[name], x) for name, x in TENSORS.items())


def test_what_is_there_stays(sent):
    assert all(on_host(TENSORS)[name] is x for name, x in TENSORS.items())
    there = on_device(TENSORS, DEVICE)
    assert all(on_device(there, DEVICE)[name] is x for name, x in there.items())
    assert sent().num_copies == 2


def test_a_gpu_is_sent_pinned_memory(sent, monkeypatch):
    pinned = []
    monkeypatch.setattr(transfer, "PINNING", {DEVICE.type})
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.nbytes) or self)
    there = on_device(TENSORS, DEVICE)
    assert pinned == [4 * 11, 2]
    assert torch.equal(there["b"].cpu(), TENSORS["b"])


def test_a_rollout_goes_by_two_copies(sent):
    """Numbers and flags."""
    x, flag = torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, dtype=torch.bool)
    rollout = Rollout(x, x, x + 1, x[..., 0], flag, ~flag)
    with watch() as seen:
        there = brought(rollout, DEVICE)
    assert len(seen.uploads) == sent().num_copies == 2
    for name, value in vars(rollout).items():
        assert torch.equal(getattr(there, name).cpu(), value)
