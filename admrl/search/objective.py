"""What a search, a training or an evaluation makes small: one number for the gaps of many tasks.

    worst     max_i g_i
    cvar      mean of the largest share alpha of the gaps (with a fraction of the last one, so that it is exact)
    softmax   tau log mean_i exp(g_i / tau): between the mean (tau large) and the worst (tau small)
    mean      mean_i g_i

`weights` is the derivative of the number by the gaps: the distribution over tasks that stands for the objective, from
which a training draws its next task. A gap is absolute, A* - A, or relative, (A* - A) / |A*| (the ratio of returns,
which AdMRL section 3 mentions; for positive returns 1 - A / A*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.config.search import OBJECTIVES, SCALES
from task_families.choices import check_name


@dataclass(frozen=True)
class Objective:
    """See the head of this page."""

    name: str = "worst"
    alpha: float = 0.05
    """Share of tasks of the CVaR."""
    temperature: float = 0.5
    """tau of the softmax, in standard deviations of the gaps, so that it needs no unit."""

    def __post_init__(self) -> None:
        check_name("objective", self.name, OBJECTIVES)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected above 0 and at most 1, got {self.alpha}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    def value(self, gap: Tensor) -> Tensor:
        """gap (..., n) -> (...); nan where a gap is missing."""
        gap = _checked(gap)
        if self.name == "softmax":
            tau = self._tau(gap)
            return tau[..., 0] * (torch.logsumexp(gap / tau, -1) - math.log(gap.shape[-1]))
        return (self.weights(gap) * gap).sum(-1)

    def weights(self, gap: Tensor) -> Tensor:
        """d value / d gap (..., n): not negative, they add up to 1. Equal worst gaps share theirs."""
        gap = _checked(gap)
        n = gap.shape[-1]
        if self.name == "mean":
            return torch.full_like(gap, 1 / n)
        if self.name == "softmax":
            return torch.softmax(gap / self._tau(gap), -1)
        if self.name == "worst":
            worst = (gap == gap.amax(-1, keepdim=True)).to(gap)
            return worst / worst.sum(-1, keepdim=True)
        order = torch.argsort(gap, dim=-1, descending=True, stable=True)
        rank = torch.arange(n).to(gap)
        share = (self.alpha * n - rank).clamp(0, 1) / (self.alpha * n)  # the last one counts in part
        return torch.zeros_like(gap).scatter(-1, order, share.expand_as(gap))

    def _tau(self, gap: Tensor) -> Tensor:
        """Constant in the derivative: the scale of the gaps, (..., 1)."""
        spread = gap.std(-1, keepdim=True, correction=0).detach()
        return self.temperature * torch.where(spread > 0, spread, 1.0)


def _checked(gap: Tensor) -> Tensor:
    if gap.dim() == 0 or gap.shape[-1] == 0:
        raise ValueError(f"gap: expected (..., n) with n >= 1, got {tuple(gap.shape)}")
    return gap


def scaled_gap(optimal: Tensor, adapted: Tensor, scale: str) -> Tensor:
    """A* - A, or (A* - A) / |A*|.

    Raises:
        ValueError: unknown scale.
    """
    check_name("scale", scale, SCALES)
    gap = optimal - adapted
    return gap if scale == "absolute" else gap / optimal.abs()


def scaled_gradient(
    optimal: Tensor, gap: Tensor, optimal_slope: Tensor, gap_slope: Tensor, scale: str
) -> Tensor:
    """The gradient (..., k) of `scaled_gap` by the quotient rule.

        d (L / |b|) = (dL - L / b db) / |b|,   b = A*

    Args:
        optimal, gap: A* and the absolute gap L, (...).
        optimal_slope, gap_slope: their gradients (..., k).

    Raises:
        ValueError: unknown scale.
    """
    check_name("scale", scale, SCALES)
    if scale == "absolute":
        return gap_slope
    return (gap_slope - (gap / optimal)[..., None] * optimal_slope) / optimal.abs()[..., None]
