"""Recorded functions: what is repeated sees new values, and what cannot be recorded says so and goes on."""

import warnings

import pytest
import torch
from stand_in_device import DEVICE

from admrl.devices.capture import RECORDERS, Captured


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


def test_the_second_call_is_recorded(monkeypatch):
    recorded, function = [], counted(lambda x: (x + 1,))

    def record(call):
        recorded.append(call())
        return lambda: recorded.append(None), recorded[0]

    monkeypatch.setitem(RECORDERS, DEVICE.type, record)
    captured = Captured("it", function)
    x = torch.ones(2, device=DEVICE)
    captured(x)
    assert recorded == [] and function.calls == 1
    for _ in range(3):
        captured(x)
    assert len(recorded) == 1 + 3 and function.calls == 2


def test_what_cannot_be_recorded_says_so_once_and_goes_on(monkeypatch):
    def record(call):
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
