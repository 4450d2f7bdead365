"""Tanh networks with flat parameters: M networks of one shape as a single (M, p) tensor.

h_0 = x,  h_l = tanh(h_{l-1} W_l + b_l),  output = h_{L-1} W_L + b_L
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mlp:
    """Layer sizes only; the parameters (M, p) travel as an argument.

    Order in the flat vector: W_1 (in, out) row-major, b_1, W_2, ...
    """

    sizes: tuple[int, ...]

    @property
    def num_params(self) -> int:
        """p"""
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    def init(
        self, generators: Sequence[torch.Generator], *, output_scale: float = 1.0, dtype: torch.dtype
    ) -> Tensor:
        """(M, p): columns of every W have length 1 (the last layer: output_scale), biases 0 ("normc")."""
        rows = []
        for generator in generators:
            parts = []
            for layer, (i, o) in enumerate(pairwise(self.sizes)):
                W = torch.randn(i, o, generator=generator, device=generator.device, dtype=dtype)
                scale = output_scale if layer == len(self.sizes) - 2 else 1.0
                parts += [(scale * W / W.norm(dim=0)).flatten(), W.new_zeros(o)]
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of theta (M, p): [(W (M, in, out), b (M, 1, out)), ...]."""
        shapes = []
        for i, o in pairwise(self.sizes):
            shapes += [(i, o), (1, o)]
        parts = theta.split([prod(s) for s in shapes], dim=-1)
        views = [part.unflatten(-1, s) for part, s in zip(parts, shapes, strict=True)]
        return list(zip(views[::2], views[1::2], strict=True))

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (M, p), x (M, R, in) -> (M, R, out)."""
        return self.function(theta)(x)

    def function(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """The networks with their parameters looked up once, for many calls: x (M, R, in) -> (M, R, out)."""
        *hidden, (W, b) = self.layers(theta)

        def network(x: Tensor) -> Tensor:
            for V, c in hidden:
                x = torch.tanh(torch.baddbmm(c, x, V))
            return torch.baddbmm(b, x, W)

        return network

    def linearize(
        self, theta: Tensor, x: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Products with the Jacobian of the outputs in theta, at cached activations.

        Returns:
            jvp: (M, p) -> (M, R, out), and vjp: (M, R, out) -> (M, p).
        """
        layers = self.layers(theta)
        h = [x]  # h_0 ... h_{L-1}, (M, R, size)
        for W, b in layers[:-1]:
            h.append(torch.tanh(torch.baddbmm(b, h[-1], W)))
        slopes = [1 - a.square() for a in h[1:]]  # tanh' at each hidden layer

        def jvp(v: Tensor) -> Tensor:
            # dz_l = h_{l-1} dW_l + db_l + dh_{l-1} W_l,  dh_l = tanh' dz_l
            tangents = self.layers(v)
            dz = torch.baddbmm(tangents[0][1], h[0], tangents[0][0])
            for layer in range(1, len(layers)):
                dh = slopes[layer - 1] * dz
                dz = torch.baddbmm(tangents[layer][1], h[layer], tangents[layer][0])
                dz = torch.baddbmm(dz, dh, layers[layer][0])
            return dz

        def vjp(u: Tensor) -> Tensor:
            # dL/dW_l = h_{l-1}' u_l,  dL/db_l = sum u_l,  u_{l-1} = tanh' (u_l W_l')
            parts: list[Tensor] = []
            for layer in reversed(range(len(layers))):
                parts += [u.sum(1), (h[layer].transpose(1, 2) @ u).flatten(1)]
                if layer:
                    u = slopes[layer - 1] * (u @ layers[layer][0].transpose(1, 2))
            return torch.cat(parts[::-1], dim=-1)

        return jvp, vjp
