"""Many small tensors between devices, by few copies. What goes to a device is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PINNING = {"cuda"}
"""Kinds of devices to which tensors go from pinned memory, while the host goes on."""


@dataclass
class Sent:
    """What `on_device` has sent to devices in this process."""

    num_copies: int = 0
    num_bytes: int = 0


sent = Sent()


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, by one copy for each type of number; those that are there already stay."""
    return _joined(tensors, torch.device("cpu"))


def on_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on a device, likewise; they were on the CPU, or are there already."""
    return _joined(tensors, device)


def _joined(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    found = dict(tensors)
    away: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.device != device:
            away.setdefault(tensor.dtype, []).append(name)
    for names in away.values():
        shapes = [tensors[name].shape for name in names]
        flat = _copied(torch.cat([tensors[name].detach().flatten() for name in names]), device)
        pieces = flat.split([shape.numel() for shape in shapes])
        found |= {name: x.view(shape) for name, x, shape in zip(names, pieces, shapes, strict=True)}
    return found


def _copied(flat: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return flat.cpu()
    sent.num_copies += 1
    sent.num_bytes += flat.nbytes
    if device.type in PINNING:
        return flat.pin_memory().to(device, non_blocking=True)
    return flat.to(device)
