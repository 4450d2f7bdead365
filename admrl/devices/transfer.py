"""Many small tensors between devices, by few copies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, by one copy for each type of number; those that are there already stay."""
    found = dict(tensors)
    away: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            away.setdefault(tensor.dtype, []).append(name)
    for names in away.values():
        shapes = [tensors[name].shape for name in names]
        flat = torch.cat([tensors[name].detach().flatten() for name in names]).cpu()
        pieces = flat.split([shape.numel() for shape in shapes])
        found |= {name: x.view(shape) for name, x, shape in zip(names, pieces, shapes, strict=True)}
    return found
