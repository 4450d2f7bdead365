"""Gaps with a known optimum, to judge searches by: random bumps, and two functions of the optimisation literature.

All are maximised, on boxes, in float64, with gradients by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from task_families.task_box import TaskBox

PROBLEM_SEED = 271_828_182  # added to a problem's seed: a search of the same seed draws other numbers


@dataclass(frozen=True, eq=False)
class SyntheticGap:
    """A gap function whose optimum is known."""

    name: str
    space: TaskBox
    function: Callable[[Tensor], Tensor]  # (n, k) -> (n,), differentiable
    optimum: float
    floor: float  # mean over the space: what a task chosen blindly reaches

    def __call__(self, psi: Tensor) -> Tensor:
        """Gaps (n,) of tasks (n, k)."""
        return self.function(psi.double())

    def with_gradient(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Gaps (n,) and their gradients (n, k)."""
        leaf = psi.detach().double().requires_grad_()
        with torch.enable_grad():
            gap = self.function(leaf)
            (gradient,) = torch.autograd.grad(gap.sum(), leaf)
        return gap.detach(), gradient

    def share(self, gap: float) -> float:
        """How much of the way from the mean of the space to the optimum a gap is: 1 at the optimum."""
        return (gap - self.floor) / (self.optimum - self.floor)


def _box(low: float, high: float, size: int) -> TaskBox:
    lows, highs = (torch.full((size,), end, dtype=torch.float64) for end in (low, high))
    return TaskBox(lows, highs, tuple(f"x{i + 1}" for i in range(size)), ("1",) * size)


def bumps(size: int, seed: int, *, num_bumps: int = 6) -> SyntheticGap:
    """A sum of Gaussian bumps on [-3, 3]^k with random centres, widths and heights.

        f(x) = sum_i h_i exp(-|x - c_i|^2 / (2 w_i^2)),   h = 1, 0.85, 0.7, ...;  w in [0.45, 0.9] sqrt(k / 2)

    The optimum is the highest of the points that Newton's method reaches from the centres.
    """
    generator = torch.Generator().manual_seed(PROBLEM_SEED + seed)
    centers = 5 * torch.rand(num_bumps, size, generator=generator, dtype=torch.float64) - 2.5
    widths = (0.45 + 0.45 * torch.rand(num_bumps, generator=generator, dtype=torch.float64)) * math.sqrt(
        size / 2
    )
    heights = 1 - 0.15 * torch.arange(num_bumps, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        square = (x[..., None, :] - centers).square().sum(-1)
        return (heights * torch.exp(-square / (2 * widths**2))).sum(-1)

    x = centers.clone()
    for _ in range(2000):  # the fixed point of grad f = 0: a weighted mean of the centres (mean shift)
        square = (x[:, None] - centers).square().sum(-1)
        weight = heights * torch.exp(-square / (2 * widths**2)) / widths**2
        x = (weight / weight.sum(-1, keepdim=True)) @ centers
    space = _box(-3, 3, size)
    inside = (x.abs() <= 3).all(-1)
    floor = _mean(space, function)
    return SyntheticGap(f"bumps{size}", space, function, float(function(x[inside]).max()), floor)


def branin() -> SyntheticGap:
    """Minus the Branin function on [-5, 10] x [0, 15] (Dixon & Szego 1978); three equal optima of -0.397887."""

    def function(x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        root = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
        return -(root**2 + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10)

    low, high = torch.tensor([-5.0, 0.0]).double(), torch.tensor([10.0, 15.0]).double()
    space = TaskBox(low, high, ("x1", "x2"), ("1", "1"))
    return SyntheticGap("branin", space, function, -0.39788735772973816, _mean(space, function))


def hartmann6() -> SyntheticGap:
    """Minus the Hartmann function on [0, 1]^6 (Dixon & Szego 1978); six local optima, the best 3.32237."""
    alpha = torch.tensor([1.0, 1.2, 3.0, 3.2], dtype=torch.float64)
    A = torch.tensor(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ],
        dtype=torch.float64,
    )
    P = 1e-4 * torch.tensor(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ],
        dtype=torch.float64,
    )

    def function(x: Tensor) -> Tensor:
        return (alpha * torch.exp(-(A * (x[..., None, :] - P).square()).sum(-1))).sum(-1)

    space = _box(0, 1, 6)
    return SyntheticGap("hartmann6", space, function, 3.322368011415515, _mean(space, function))


def _mean(space: TaskBox, function: Callable[[Tensor], Tensor]) -> float:
    """Over 4096 Sobol points."""
    cube = torch.quasirandom.SobolEngine(space.size, scramble=True, seed=0).draw(4096, dtype=torch.float64)
    return float(function(space.from_cube(cube)).mean())
