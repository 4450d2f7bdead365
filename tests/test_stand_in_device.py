"""The stand-in of a second device: values of the CPU, no mixing, and nothing read back unseen."""

import copy

import pytest
import torch
from stand_in_device import DEVICE, STORAGES_BEFORE_A_SWEEP, _memory, watch

HERE = torch.arange(6.0, dtype=torch.float64).view(2, 3)
THERE = HERE.to(DEVICE)


def f(x):
    return (x @ x.mT).tanh().square().sum() + torch.where(x > 2, x, 0.0).cumsum(-1).sum()


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad(f),
        torch.func.hessian(f),
        torch.func.jacfwd(torch.func.grad(f)),
        lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda x: torch.func.vjp(torch.sin, x)[1](x)[0],
        lambda x: torch.func.vmap(lambda row: torch.func.grad(f)(row[None]))(x),
        lambda x: torch.autograd.functional.hvp(f, x, x)[1],
    ],
)
def test_derivatives_are_those_of_the_cpu(transform):
    assert torch.equal(transform(THERE).cpu(), transform(HERE))
    assert transform(THERE).device == DEVICE


def test_memory_is_shared_by_views_and_changed_in_place():
    x = THERE.clone()
    row = x[1]
    row += 1
    x[:, 0].zero_()
    x.data = x.repeat(2, 1)
    assert x.cpu().tolist() == [[0, 1, 2], [0, 5, 6]] * 2
    assert row.cpu().tolist() == [0, 5, 6]
    assert torch.arange(3, device=DEVICE).tolist() == [0, 1, 2]


def test_a_deep_copy_has_memory_of_its_own():
    network = torch.nn.BatchNorm1d(3).to(DEVICE)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.weight += 1
        network.running_mean += 1
    assert (twin.weight.tolist(), twin.running_mean.tolist()) == ([1.0] * 3, [0.0] * 3)
    assert twin.running_mean.device == DEVICE


def test_memory_is_given_back():
    for _ in range(3 * STORAGES_BEFORE_A_SWEEP):
        THERE.clone()
    assert len(_memory.storages) < 2 * STORAGES_BEFORE_A_SWEEP


@pytest.mark.parametrize(
    "mix",
    [
        lambda: THERE + HERE,
        lambda: torch.where(THERE > 0, HERE, 0.0),
        lambda: torch.stack([THERE, HERE]),
        lambda: THERE[HERE > 2],
        lambda: THERE @ HERE.mT,
        lambda: torch.addcmul(THERE, HERE, THERE),
        lambda: torch.zeros(3, device=DEVICE)[torch.tensor([0, 1])],
        lambda: THERE.clone().index_copy_(0, torch.tensor([0]), THERE[:1]),
    ],
)
def test_tensors_of_two_devices_are_refused(mix):
    with pytest.raises(RuntimeError, match=r"device|standin"):
        mix()


def test_a_generator_of_the_cpu_and_numpy_are_refused():
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, generator=torch.Generator(), device=DEVICE)
    with pytest.raises(TypeError, match="numpy"):
        THERE.numpy()


@pytest.mark.parametrize(
    "read",
    [
        lambda: THERE.cpu(),
        lambda: THERE.tolist(),
        lambda: THERE[0, 0].item(),
        lambda: bool((THERE > 0).any()),
        lambda: THERE[THERE > 2],
        lambda: THERE.nonzero(),
        lambda: THERE.masked_select(THERE > 2),
        lambda: torch.equal(THERE, THERE),
        lambda: torch.linalg.eigh(THERE @ THERE.mT),
        lambda: torch.linalg.solve(torch.eye(2, device=DEVICE), torch.ones(2, device=DEVICE)),
        lambda: THERE.clone().masked_fill_(THERE > 2, 0)[THERE > 2],
        lambda: torch.func.vmap(lambda row: row.sum())(THERE).cpu(),
    ],
)
def test_what_a_gpu_waits_for_is_seen(read):
    with watch() as seen:
        read()
    assert seen.read_backs


def test_what_a_gpu_does_not_wait_for_is_not():
    with watch() as seen:
        x = THERE.clone().requires_grad_()
        f(x).backward()
        x.detach()[THERE > 2] = 1.0  # a number goes by a mask, without counting
        torch.linalg.solve_ex(torch.eye(2, device=DEVICE), torch.ones(2, device=DEVICE))
        torch.randn(3, device=DEVICE).sort()
    assert seen.read_backs == []
    assert seen.operations > 10
    assert seen.uploads == []
    with watch() as seen:
        HERE.to(DEVICE)
    assert seen.uploads == ["_copy_from"]


def test_training_works():
    losses = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(
            device
        )
        adam = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
        for _ in range(3):
            loss = network(HERE.float().to(device)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
