"""Weight-transform networks (MACAW section 4.2), and what their outputs mean as a policy.

    [W, b] = C z + c        z (L) a latent code of the layer, C (o i + o, L) and c (o i + o) its transform
    y      = W x + b

For one input, a gradient step of a plain layer changes W by a matrix of rank one; one of z, C and c by any.
Parameters are dictionaries of tensors, for `torch.func`; functions are of one task, unless they say otherwise.

First values, as released: z ~ N(0, 1/o^2), C and c uniform within 1/sqrt(L).

Differs from the paper: no step changes z alone. As in the released code all of z, C and c adapt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import relu

from admrl.solving.sac import uniform
from policy_opt.categorical_policy import Categoricals, gumbel, one_hot

Params = dict[str, Tensor]
Layers = dict[str, tuple[Tensor, Tensor]]  # name -> W (o, i), b (o)


@dataclass(frozen=True)
class TransformNet:
    """ReLU layers and a linear output; with a head, a second output of the last hidden layer and an action."""

    sizes: tuple[int, ...]  # S, hidden ..., outputs
    latent_size: int  # L
    head_sizes: tuple[int, ...] = ()  # h + A, hidden ..., 1; none: no head

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every layer by name."""
        body = {f"body{n}": pair for n, pair in enumerate(zip(self.sizes, self.sizes[1:], strict=False))}
        head = {
            f"head{n}": pair for n, pair in enumerate(zip(self.head_sizes, self.head_sizes[1:], strict=False))
        }
        return body | head

    def init(self, generator: torch.Generator) -> Params:
        """First values; see the head of this page."""
        params: Params = {}
        for name, (i, o) in self.shapes.items():
            z = torch.randn(self.latent_size, generator=generator, dtype=torch.float32) / o
            transform = torch.empty(o * i + o, self.latent_size, dtype=torch.float32)
            offset = torch.empty(o * i + o, dtype=torch.float32)
            for tensor in (transform, offset):
                uniform(tensor, 1 / math.sqrt(self.latent_size), generator)
            params |= {f"{name}_z": z, f"{name}_transform": transform, f"{name}_offset": offset}
        return params

    def layers(self, params: Params) -> Layers:
        """W (o, i) and b (o) of every layer."""
        found: Layers = {}
        for name, (i, o) in self.shapes.items():
            flat = params[f"{name}_transform"] @ params[f"{name}_z"] + params[f"{name}_offset"]  # C z + c
            found[name] = flat[: o * i].view(o, i), flat[o * i :]
        return found

    def hidden(self, layers: Layers, x: Tensor) -> Tensor:
        """The last hidden layer: (..., S) -> (..., h); layers of one task, or (M, ...) for x (M, N, S)."""
        for n in range(len(self.sizes) - 2):
            x = relu(affine(layers[f"body{n}"], x))
        return x

    def output(self, layers: Layers, x: Tensor) -> Tensor:
        """(..., S) -> (..., outputs)"""
        return self.output_of(layers, self.hidden(layers, x))

    def output_of(self, layers: Layers, hidden: Tensor) -> Tensor:
        """The output from the last hidden layer."""
        return affine(layers[f"body{len(self.sizes) - 2}"], hidden)

    def head(self, layers: Layers, hidden: Tensor, act: Tensor) -> Tensor:
        """The head's number: (..., h), (..., A) -> (...)."""
        x = torch.cat([hidden, act], dim=-1)
        for n in range(len(self.head_sizes) - 2):
            x = relu(affine(layers[f"head{n}"], x))
        return affine(layers[f"head{len(self.head_sizes) - 2}"], x)[..., 0]


def affine(layer: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """W x + b of rows x (..., i)."""
    weight, bias = layer
    return x @ weight.transpose(-1, -2) + bias.unsqueeze(-2)


class Head(Protocol):
    """What the policy's outputs mean."""

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """log pi(a|s): (..., A), unit actions (..., A) -> (...)."""

    def most_likely(self, output: Tensor) -> Tensor:
        """The unit action without noise (..., A)."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """Unit actions (..., A) of standard normal noise (..., A)."""


@dataclass(frozen=True)
class GaussianHead:
    """a ~ N(tanh(output), sigma^2), sigma fixed, in unit actions."""

    sigma: float

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """See `Head`."""
        z = (act - torch.tanh(output)) / self.sigma
        return -(0.5 * z.square() + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum(-1)

    def most_likely(self, output: Tensor) -> Tensor:
        """See `Head`."""
        return torch.tanh(output)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """See `Head`."""
        return torch.tanh(output) + self.sigma * noise


@dataclass(frozen=True)
class ChoiceHead:
    """One of A choices, as a one-hot vector; the outputs are logits."""

    def log_prob(self, output: Tensor, act: Tensor) -> Tensor:
        """See `Head`."""
        return Categoricals(output.log_softmax(-1)).log_prob(act)

    def most_likely(self, output: Tensor) -> Tensor:
        """See `Head`."""
        return one_hot(output)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """See `Head`."""
        return one_hot(output + gumbel(noise))
