"""B ReLU networks of one shape, by the fastest matrix products that allow the derivatives that are needed.

Networks with much to multiply go through oneDNN, one after another; all others through torch in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from dynamics.onednn import affine, has_onednn, packed, product

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
    if derivatives == "all" or not has_onednn(weights[0]):
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
    transposed = packed(weights.t())
    return lambda x: product(x, transposed, bias)


def _trainable_layer(weights: Tensor, bias: Tensor) -> Function:
    return lambda x: affine(x, weights, bias)


def _apart(x: Tensor) -> Sequence[Tensor]:
    return x.unbind() if len(x) > 1 else [x.squeeze(0)]  # a view, whose gradient is one, too


def _together(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0)
