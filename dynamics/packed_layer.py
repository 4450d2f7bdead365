"""A wide layer with its weights laid out for the processor ahead of time.

The product of the few rows of a rollout with a 1000 x 1000 matrix spends a fifth of its time on bringing it into
the kernel's order, anew in every step. oneDNN can do that once, as torch's own compiler has it done
(docs/performance.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]

MIN_WIDTH = 512  # below it, the call costs more than the order of the weights


def dense_layer(weights: Tensor, biases: Tensor) -> Layer:
    """x (B, R, in) -> (B, R, out) for weights (B, in, out), biases (B, 1, out)."""
    return lambda x: torch.baddbmm(biases, x, weights)


def packed_layer(weights: Tensor, biases: Tensor) -> Layer:
    """`dense_layer` up to rounding, faster where the weights can be packed. Not differentiable.

    The weights are copied: later changes have no effect.
    """
    if not _can_pack(weights):
        return dense_layer(weights, biases)
    # not oneDNN's fused ReLU, which would turn nan into 0
    pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    parts = [(pack(W.t().contiguous(), None), b[0]) for W, b in zip(weights.detach(), biases, strict=True)]

    def layer(x: Tensor) -> Tensor:
        return torch.stack([multiply(y, W, b, "none", [], "") for y, (W, b) in zip(x, parts, strict=True)])

    return layer


def _can_pack(weights: Tensor) -> bool:
    return (
        weights.device.type == "cpu"
        and weights.dtype in (torch.float32, torch.bfloat16)
        and min(weights.shape[-2:]) >= MIN_WIDTH
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weights.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
