"""The device of a command: the one that is named, or the faster one, with enough memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from admrl.devices.demand import Demand, num_bytes
from admrl.devices.names import AUTO, AVAILABLE, CPU, described, find_device
from dynamics.relu_networks import relu_networks

FREE: dict[str, Callable[[torch.device], int]] = {"cuda": lambda device: torch.cuda.mem_get_info(device)[0]}
"""Bytes that are free on a device, by its kind; those of the CPU are not asked for."""
NUM_STEPS = 5  # of a calibration, after two that are not counted


@dataclass(frozen=True)
class Choice:
    """A device, and how it was chosen."""

    device: torch.device
    note: str | None = None
    """For the user, where it was chosen by `auto`."""


def choose(name: str, sizes: Callable[[], Demand], num_processes: int = 1) -> Choice:
    """The device that a name means here, for such sizes.

    Args:
        sizes: asked for only where something depends on them.
        num_processes: that share the device.

    Raises:
        ValueError: there is none of that name here, or it has too little free memory; says what is needed for what,
            and which setting to lower.
    """
    if name == CPU or (name == AUTO and not _has_gpu()):
        note = "auto: cpu, there is no other device here" if name == AUTO else None
        return Choice(torch.device(CPU), note)
    if name != AUTO:
        device = find_device(name)
        check_memory(device, sizes(), num_processes)
        return Choice(device)
    return fastest(sizes(), num_processes)


def _has_gpu() -> bool:
    return any(count() for kind, count in AVAILABLE.items() if kind != CPU)


def check_memory(device: torch.device, sizes: Demand, num_processes: int = 1) -> None:
    """Refuse a device without enough free memory for the sizes.

    Raises:
        ValueError: says what is needed, for what, and which setting to lower.
    """
    if device.type not in FREE:
        return
    free, needed = FREE[device.type](device), num_processes * num_bytes(sizes)
    if needed <= free:
        return
    largest, *_ = found = sizes.parts()
    each = ", ".join(f"{part.what} {_gigabytes(part.num_bytes)}" for part in found)
    processes = f" for each of {num_processes} processes (`num_workers`)" if num_processes > 1 else ""
    lower = " or ".join(f"`{setting}`" for setting in largest.settings)
    raise ValueError(
        f"device: expected about {_gigabytes(needed)} GB of free memory on {device}, {described(device)}, got "
        f"{_gigabytes(free)}; in GB{processes}: {each}; lower {lower}, or leave `device` out"
    )


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2g}" if number < 1e10 else f"{number / 1e9:.0f}"


def fastest(sizes: Demand, num_processes: int = 1) -> Choice:
    """The device on which a step of the networks is fastest, among the CPU and the first of every other kind; those
    without enough memory do not count."""
    seconds: dict[str, float] = {}
    skipped = []
    for kind in (kind for kind, count in AVAILABLE.items() if count()):
        device = find_device(kind)
        try:
            check_memory(device, sizes, num_processes)
        except ValueError:
            skipped.append(f"{device} has too little memory")
            continue
        seconds[kind] = seconds_of_a_step(device, sizes)
    best = find_device(min(seconds, key=lambda kind: seconds[kind]))
    took = ", ".join(f"{1000 * s:.2g} ms on {described(find_device(kind))}" for kind, s in seconds.items())
    return Choice(best, f"auto: {best}: a step of the networks takes {'; '.join([took, *skipped])}")


@torch.no_grad()
def seconds_of_a_step(device: torch.device, sizes: Demand) -> float:
    """Of the networks with all their rows at once: of a model the lanes of a rollout, its largest product."""
    num_networks, rows = sizes.num_networks, sizes.rows_of_a_product
    weights = [torch.full((num_networks, i, o), 1.0 / i, device=device) for i, o in pairwise(sizes.layers)]
    biases = [torch.zeros(num_networks, 1, o, device=device) for o in sizes.layers[1:]]
    networks = relu_networks(weights, biases, "none")
    x = torch.ones(num_networks, rows, sizes.layers[0], device=device)
    for _ in range(2):
        _finished(networks(x))
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        y = networks(x)
    _finished(y)
    return (time.perf_counter() - start) / NUM_STEPS


def _finished(x: Tensor) -> float:
    """Waits until a tensor is there."""
    return float(x.sum())
