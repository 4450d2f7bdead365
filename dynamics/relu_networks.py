"""B ReLU networks of one shape, by the fastest matrix products that allow the derivatives that are needed.

torch multiplies float32 matrices by MKL. oneDNN, which torch brings along as well, is at least as fast, and twice as
fast on AMD processors (docs/performance.md), but each call costs more, there are no batches, and the operations have
no derivatives. So networks with much to multiply go through oneDNN one after another, with a backward pass of
our own; all others go through torch in one batch.

The operations are those that torch's own compiler calls. Where they are missing, everything goes through torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Derivatives = Literal["all", "first", "none"]
"""Those of every order and under every transform; gradients alone; or none, and the weights may be copied."""
Function = Callable[[Tensor], Tensor]

MIN_MULTIPLICATIONS = 10_000_000  # per network and call; with fewer, calls cost more than they save


def relu_networks(weights: Sequence[Tensor], biases: Sequence[Tensor], derivatives: Derivatives) -> Function:
    """x (B, R, in) -> (B, R, out) for the layers' weights (B, in, out) and biases (B, 1, out).

    The values are equal up to rounding whatever the derivatives. With "none", later changes of the weights may or may
    not have an effect.
    """
    batched = _network([_batched_layer(W, b) for W, b in zip(weights, biases, strict=True)])
    if derivatives == "all" or not _has_onednn(weights[0]):
        return batched
    layer = _packed_layer if derivatives == "none" else _trainable_layer
    per_row = sum(W[0].numel() for W in weights)
    single: list[Function] = []  # made when first used

    def networks(x: Tensor) -> Tensor:
        if x.shape[1] * per_row < MIN_MULTIPLICATIONS:
            return batched(x)
        if not single:
            layers = [map(layer, _apart(W), _apart(b[:, 0])) for W, b in zip(weights, biases, strict=True)]
            single.extend(_network(network) for network in zip(*layers, strict=True))
        return _together([network(y) for network, y in zip(single, _apart(x), strict=True)])

    return networks


def _network(layers: Sequence[Function]) -> Function:
    *hidden, last = layers

    def network(x: Tensor) -> Tensor:
        for layer in hidden:
            x = layer(x).relu_()  # oneDNN's own ReLU would turn nan into 0
        return last(x)

    return network


def _batched_layer(weights: Tensor, biases: Tensor) -> Function:
    return lambda x: torch.baddbmm(biases, x, weights)


def _packed_layer(weights: Tensor, bias: Tensor) -> Function:
    """The weights laid out for the processor once; otherwise every call does it anew."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weights.t().contiguous(), None)
    return lambda x: _product(x, packed, bias)


def _trainable_layer(weights: Tensor, bias: Tensor) -> Function:
    return lambda x: _Affine.apply(x, weights, bias)


class _Affine(torch.autograd.Function):
    """x W + b: x (R, in), W (in, out), b (out,)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return _product(x, weights.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weights = ctx.saved_tensors
        by_input = _product(grad, weights) if ctx.needs_input_grad[0] else None
        return by_input, _transposed_product(x, grad), grad.sum(0)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b' + bias"""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a' b, with the shorter side as the rows, which is faster"""
    if a.shape[1] <= b.shape[1]:
        return _product(a.t(), b.t())
    return _product(b.t(), a.t()).t()


def _apart(x: Tensor) -> Sequence[Tensor]:
    return x.unbind() if len(x) > 1 else [x.squeeze(0)]  # a view, whose gradient is one, too


def _together(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0)


def _has_onednn(weights: Tensor) -> bool:
    return (
        weights.device.type == "cpu"
        and weights.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weights.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
