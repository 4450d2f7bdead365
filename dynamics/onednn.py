"""Matrix products by oneDNN, with gradients.

torch multiplies float32 matrices by MKL, which on an AMD processor with AVX-512 reaches AVX2's rate alone. oneDNN,
which torch brings along as well, is twice as fast there, and about as fast without AVX-512 (docs/performance.md). But
each call costs more, there are no batches, and the operations have no derivatives: `affine` adds them. They are the
operations that torch's own compiler calls. Where they are missing, `has_onednn` says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as plain_linear

MIN_MULTIPLICATIONS = 4_000_000  # of a layer; with fewer, calls cost more than they save


def has_onednn(like: Tensor) -> bool:
    """Whether tensors of this device and dtype can be multiplied here."""
    return (
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (like.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b' + bias: a (R, in), b (out, in), any strides or packed, bias (out,). Not differentiable."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def packed(b: Tensor) -> Tensor:
    """A copy of b (out, in), laid out for the processor: every `product` with b itself does that anew."""
    return torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), None)


def affine(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """x W + b with gradients: x (R, in), W (in, out), b (out,).

    The gradient in W costs a product even where nothing asks for it: detach W where it is not needed.
    """
    return _Affine.apply(x, weights, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear` by the faster product, gradients only: x (..., in), W (out, in), b (out,)."""
    many = x.numel() * len(weight) >= MIN_MULTIPLICATIONS
    if not many or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type) or not has_onednn(x):
        return plain_linear(x, weight, bias)
    return affine(x.flatten(0, -2), weight.t(), bias).unflatten(0, x.shape[:-1])


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return product(x, weights.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weights = ctx.saved_tensors
        by_input, by_weights, by_bias = ctx.needs_input_grad
        return (
            product(grad, weights) if by_input else None,
            product(x.t(), grad.t()) if by_weights else None,
            grad.sum(0) if by_bias else None,
        )
