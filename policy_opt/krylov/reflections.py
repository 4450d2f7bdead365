"""Small algebra of the Krylov methods: plane reflections, and quotients where 0 / 0 is 0."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Reflection(NamedTuple):
    """The symmetric [[c, s], [s, -c]] that maps (a, b) to (r, 0)."""

    c: Tensor
    s: Tensor
    r: Tensor


def reflection(a: Tensor, b: Tensor) -> Reflection:
    """With c = -1 for a = b = 0, so that what does not exist yet in the first steps is left alone."""
    r = torch.hypot(a, b)
    is_zero = r == 0
    safe = torch.where(is_zero, 1.0, r)
    return Reflection(torch.where(is_zero, -1.0, a / safe), b / safe, r)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    is_zero = b == 0
    return torch.where(is_zero, 0.0, a / torch.where(is_zero, 1.0, b))


def divided(vector: Tensor, size: Tensor) -> Tensor:
    """vector / size, (..., p) and (...), and 0 where the size is 0."""
    return vector * ratio(torch.ones_like(size), size).to(vector.dtype)[..., None]
