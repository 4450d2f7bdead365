"""Right-hand sides and operators far from 1, brought there by powers of two, which round nothing."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from policy_opt.krylov.method import NONFINITE, STAGNATED, is_capturing
from policy_opt.linear_operator import Operator, VectorSpace, host_value, norm, wide_norm
from policy_opt.solve_result import LinearSolveResult

SAFE_EXPONENT = {torch.float64: 200, torch.float16: 4}  # of b and A, with room for r'Ar to fall; others: 16


class ExtremeOperator(Exception):
    """Raised by a method whose numbers would leave the range of the precision: `unit` (...) times A is near 1."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__("the operator must be scaled")
        self.unit = unit


def power_of_two(vectors: Tensor) -> Tensor | None:
    """Powers of two (...) that bring the largest entry of each vector (..., p) near 1, or None where all are so
    near that no square leaves the range of their precision (then nothing is scaled, and nothing is paid)."""
    if vectors.numel() == 0 or is_capturing(vectors.device):
        return None
    largest = vectors.abs().amax(-1)
    exponent = torch.frexp(largest).exponent
    limit = SAFE_EXPONENT.get(vectors.dtype, 16)
    is_extreme = (exponent.abs() > limit) & (largest > 0) & largest.isfinite()
    if not bool(host_value(is_extreme).any()):
        return None
    room = math.frexp(torch.finfo(vectors.dtype).max)[1] - 2
    power = torch.where(is_extreme, -exponent, 0).clamp(-room, room)
    return torch.ldexp(torch.ones_like(largest), power)


def unit_of_operator(product: Tensor, v: Tensor) -> Tensor | None:
    """Powers of two (...) that bring |A v| / |v| near 1, or None where it is."""
    size = norm(v)
    return power_of_two(product / torch.where(size > 0, size, 1.0)[..., None])


def rescaled(
    answer: LinearSolveResult, vectors: VectorSpace, of_x: Tensor, of_A: Tensor | float
) -> LinearSolveResult:
    """The answer for x from that for of_x x, of an operator that was of_A times smaller, (...) each.

    A solution that this precision cannot hold is not one: 0, infinity, or a few bits of a subnormal number.
    """
    flat = vectors.flatten(answer.solution, "x")
    x = flat / of_x[..., None]
    direction = vectors.flatten(answer.direction, "x") / of_x[..., None]
    lost = wide_norm(x.detach() * of_x[..., None] - flat.detach())
    is_held = lost <= torch.finfo(flat.dtype).eps * wide_norm(flat.detach())
    code = torch.where(is_held | ~answer.converged, answer.status_code, STAGNATED)
    code = torch.where(x.detach().isfinite().all(-1), code, NONFINITE)
    return dataclasses.replace(
        answer,
        solution=vectors.unflatten(torch.where((code == NONFINITE)[..., None], torch.nan, x)),
        direction=vectors.unflatten(direction),
        status_code=code,
        min_curvature=answer.min_curvature * of_A,
        damping=answer.damping * of_A,
    )


class ScaledOperator(Operator):
    """unit A, unit (...); the products are counted by the operator that is scaled."""

    def __init__(self, operator: Operator, unit: Tensor) -> None:
        damping = None if operator.damping is None else operator.damping * unit
        super().__init__(operator.matvec, operator.vectors, damping)
        self.unscaled, self.unit = operator, unit

    def __call__(self, v: Tensor) -> Tensor:
        self.num_products += 1
        return self.unscaled(v) * self.unit[..., None]
