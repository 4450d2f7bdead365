"""Whether observations keep enough digits in the number type that holds them: a large offset leaves few for changes.

digits left = log10(spread / (eps |offset|))      per coordinate; eps = 1.2e-7 for float32
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamics.normalizer import MIN_STD

# Spread in steps of rounding. A point mass with one-step changes of a seventh of its spread lost nothing of its
# return at 35 steps, 2 % at 3.6 and all of it at 0.6.
FEWEST_STEPS = 100.0


def lost_digits(mean: Tensor, std: Tensor, dtype: torch.dtype) -> str | None:
    """What to tell whoever stores such observations as dtype; None if they keep two digits or more.

    A coordinate that never moved may have lost what it does: it is judged as if it moved by 1.

    Args:
        mean, std: of observations (..., S).
    """
    eps = torch.finfo(dtype).eps
    mean, std = mean.double().view(-1, mean.shape[-1]), std.double().view(-1, mean.shape[-1])
    never_moved = std <= MIN_STD
    num_steps = torch.where(never_moved, 1.0, std) / (eps * mean.abs())
    if not bool((num_steps < FEWEST_STEPS).any()):
        return None
    k, i = divmod(int(num_steps.nan_to_num(nan=math.inf).argmin()), mean.shape[-1])
    offset, spread, name = float(mean[k, i]), float(std[k, i]), str(dtype).removeprefix("torch.")
    if never_moved[k, i]:
        told = f"is always {offset:.1g}, and {name} would not show changes below {eps * abs(offset):.1g}"
    else:
        lost = min(math.log10(abs(offset) / spread), -math.log10(eps))
        told = (
            f"has the offset {offset:.1g} and the spread {spread:.1g}, so {name} loses {lost:.1f} of its "
            f"{-math.log10(eps):.1f} digits"
        )
    return (
        f"observations: coordinate {i} {told}; models and policies suffer. Subtract the offset where the family "
        "makes its observations, for a gymnasium environment with gymnasium.wrappers.TransformObservation"
    )
