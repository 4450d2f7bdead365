"""Recorded functions: what is repeated sees new values, and what cannot be recorded says so and goes on."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from stand_in_device import DEVICE

from policy_opt.capture import RECORDERS, Captured, CapturedSteps, Newest, record_graph


def counted(function):
    def wrapped(*inputs):
        wrapped.calls += 1
        return function(*inputs)

    wrapped.calls = 0
    return wrapped


def test_a_repetition_sees_the_values_of_its_inputs_and_gives_its_answers_away(device):
    offset = torch.zeros(3, device=device)
    captured = Captured("sum", lambda x, y: (x + y + offset, x * y))
    answers = []
    for i in range(5):
        offset.fill_(i)  # in place: a repetition sees it
        x = torch.arange(3.0, device=device) + i
        answers.append(captured(x, 2 * x))
    for i, (total, product) in enumerate(answers):
        x = torch.arange(3.0) + i
        assert torch.equal(total.cpu(), 3 * x + i) and torch.equal(product.cpu(), 2 * x * x)


def test_it_is_recorded_in_the_second_call_which_repeats_it_once(monkeypatch):
    recorded = []

    def record(function, device):
        assert device == DEVICE
        recorded.append(function)
        return lambda: (recorded.append(None), function())[1]

    monkeypatch.setitem(RECORDERS, DEVICE.type, record)
    total = torch.zeros((), device=DEVICE)
    captured = Captured("it", lambda x: (total.add_(x).clone(),))
    x = torch.ones((), device=DEVICE)
    assert captured(x)[0].item() == 1 and recorded == []
    for expected in (2, 3, 4):
        assert captured(x)[0].item() == expected
    assert len(recorded) == 1 + 3


def test_what_cannot_be_recorded_says_so_once_and_goes_on(monkeypatch):
    def record(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(RECORDERS, DEVICE.type, record)
    captured, x = Captured("a rollout", lambda x: (x + 1,)), torch.ones(2, device=DEVICE)
    captured(x)
    with pytest.warns(UserWarning, match="a rollout cannot be recorded as a CUDA graph, .* not permitted"):
        (answer,) = captured(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (again,) = captured(x)
    assert answer.tolist() == again.tolist() == [2.0, 2.0]


def test_the_cpu_records_nothing():
    function = counted(lambda x: (x,))
    captured = Captured("it", function)
    for _ in range(3):
        captured(torch.ones(2))
    assert function.calls == 3


@pytest.mark.parametrize("forbidden", [float, lambda x: x + torch.ones(2).to(x.device)])
def test_the_stand_in_refuses_what_a_gpu_cannot_record(forbidden):
    def function(x):
        forbidden(x)
        return (x,)

    captured, x = Captured("it", function), torch.ones((), device=DEVICE)
    captured(x)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(x)
    forbidden(x)


def test_the_stand_in_refuses_memory_that_has_moved():
    held = {"x": torch.ones(2, device=DEVICE)}
    captured, x = (
        Captured("it", lambda x: ((x + held["x"]) + torch.ones_like(x),)),
        torch.ones(2, device=DEVICE),
    )
    for _ in range(3):
        assert captured(x)[0].tolist() == [3.0, 3.0]
    held["x"] = held["x"].clone()
    with pytest.raises(RuntimeError, match="uses other memory than when it was recorded"):
        captured(x)


def test_the_newest_are_kept():
    kept, made = Newest(2), []

    def make(key):
        made.append(key)
        return Captured(key, lambda x: (x,))

    for key in "abacab":
        assert kept.get(key, lambda key=key: make(key)) is kept.get(key, lambda key=key: make(key))
        assert len(kept) <= 2
    assert "".join(made) == "abcb"


def test_a_gradient_step_is_recorded_anew_where_its_rate_is_a_number(monkeypatch):
    """One weight, loss w x: every step of gradient descent takes rate x off it."""
    recorded, record = [], RECORDERS[DEVICE.type]
    monkeypatch.setitem(RECORDERS, DEVICE.type, lambda *given: (recorded.append(given), record(*given))[1])
    module = torch.nn.Linear(1, 1, bias=False).to(DEVICE)
    with torch.no_grad():
        module.weight.fill_(1.0)
    descent, captured = torch.optim.SGD(module.parameters(), lr=0.25), CapturedSteps()

    def step(x):
        loss = module(x).sum()
        (module.weight.grad,) = torch.autograd.grad(loss, [module.weight])
        descent.step()
        return {"loss": loss.detach()}

    losses = []
    for i in range(8):
        descent.param_groups[0]["lr"] = 0.25 if i < 4 else 0.5
        reported = captured("it", module, [descent], step, torch.full((1, 1), 1.0 + i, device=DEVICE))
        losses.append(reported["loss"].item())
    weights = [1.0, 0.75, 0.25, -0.5, -1.5, -4.0, -7.0, -10.5]
    assert losses == [(1.0 + i) * weight for i, weight in enumerate(weights)]
    assert len(recorded) == 2


class FakeCuda:
    """Two GPUs with a stream each beside those that recordings bring; as torch, a recording that failed keeps its."""

    def __init__(self):
        self.current_device, self.stream, self.replayed = 0, "usual 0", []

    def CUDAGraph(self):
        cuda = self

        class Graph:
            def replay(self):
                cuda.replayed.append(self)

        return Graph()

    def Stream(self):
        return f"new {self.current_device}"

    @contextmanager
    def device(self, device):
        before, self.current_device, self.stream = self.current_device, device.index, f"usual {device.index}"
        yield
        self.current_device = before

    @contextmanager
    def graph(self, graph, stream):
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def current_stream(self):
        return self.stream

    def set_stream(self, stream):
        self.stream = stream


def test_a_graph_is_recorded_on_the_device_of_its_tensors_and_leaves_the_stream(monkeypatch):
    cuda, seen = FakeCuda(), []
    for name in ("CUDAGraph", "Stream", "device", "graph", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    answers = (torch.ones(1),)

    def function():
        seen.append(cuda.stream)
        return answers

    def fails():
        seen.append(cuda.stream)
        raise RuntimeError("operation not permitted when stream is capturing")

    repeat = record_graph(function, torch.device("cuda", 1))
    assert (seen, cuda.replayed, cuda.stream) == (["new 1"], [], "usual 1")
    assert repeat() is answers and repeat() is answers and len(cuda.replayed) == 2
    with pytest.raises(RuntimeError, match="not permitted"):
        record_graph(fails, torch.device("cuda", 1))
    assert (seen, cuda.stream) == (["new 1", "new 1"], "usual 1")
