"""The per-step policy Hessian of a tanh Gaussian policy by a hand-written forward pass: the fast path on a CPU.

`policy_hessian(..., form="per_step")` does the same for any policy by autograd; a test holds the two together. Here
everything that does not depend on v is computed once, and a product is the R-operator pass (Pearlmutter 1994):

    l = sum_a -z^2/2 - s,  z = (act - mu) exp(-s),      dl/dmu = e = z exp(-s),   dl/ds = q = z^2 - 1
    f = 1/n sum_i w_i exp(l_i(theta') - l_i(theta)),    u_i = g_i'v = e.Rmu + q.Rs

    forward    Rz_l = h_{l-1} RW_l + Rb_l + Rh_{l-1} W_l,         Rh_l = t_l Rz_l,           t = 1 - h^2
    output     Rd_L = w (u e + Re),  Re = -exp(-2s) Rmu - 2 e Rs;    Rs' = w (u q + Rq),  Rq = -2 e Rmu - 2 z^2 Rs
    backward   Rd_{l-1} = t (Rd_l W_l' + d_l RW_l') - 2 h Rh (d_l W_l'),   RgradW_l = h_{l-1}'Rd_l + Rh_{l-1}'d_l

For k vectors at once the activations are (rows, k, size), so that every product is one large matrix product. Samples
come in blocks that stay in the cache: arrays of a whole batch would travel through memory at each elementwise step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.linear_operator import Matvec, VectorSpace

# Samples times vectors in one block: 512 kB an array at width 32 in float32 (measured best).
ROWS_PER_BLOCK = 4096
MIN_ROWS = 128


@dataclass(frozen=True)
class _Block:
    """What a block of samples contributes that does not depend on v; n rows."""

    inputs: list[Tensor]  # h_0 ... h_{L-1}, (n, size)
    slopes: list[Tensor]  # t_1 ... t_{L-1}, (n, 1, size)
    deltas: list[Tensor]  # d_1 ... d_L = w dl/dz_l, (n, size)
    bends: list[Tensor]  # -2 h_l (d_{l+1} W_{l+1}'), (n, 1, size): d(t)/dz times what is sent back
    weights: Tensor  # (n, 1, 1), already divided by the number of samples
    e: Tensor  # (n, 1, A)
    q: Tensor


@torch.no_grad()
def gaussian_mlp_policy_hessian(
    policy: GaussianPolicy, theta: Tensor, obs: Tensor, act: Tensor, weights: Tensor
) -> Matvec:
    """v -> H v, (..., p) -> (..., p), of the per-step importance-weighted return, averaged over the n samples.

    theta (p,), obs (n, S), act (n, A), weights (n,), advantages or returns. Not differentiable (everything is
    detached); use `policy_hessian` where derivatives of the product are wanted.

    Raises ValueError for shapes that do not fit the policy, or mixed dtypes.
    """
    _check(policy, theta, obs, act, weights)
    sizes = policy.mlp.sizes
    layers = [(W[0], b[0]) for W, b in policy.mlp.layers(theta.detach()[None, : policy.mlp.num_params])]
    log_std = policy.log_std(theta.detach()[None])[0]
    act = policy.to_unit(act)
    x = policy.normalize(obs[None])[0]
    scaled = (weights / len(obs)).detach()

    def blocks(num_rows: int) -> list[_Block]:
        parts = zip(x.split(num_rows), act.split(num_rows), scaled.split(num_rows), strict=True)
        return [_prepare(layers, log_std, *part) for part in parts]

    cache: dict[int, list[_Block]] = {}
    has_std = policy.fixed_log_std is None
    num_net = policy.mlp.num_params

    def product(v: Tensor) -> Tensor:
        if v.shape[-1:] != theta.shape or v.dtype != theta.dtype:
            raise ValueError(
                f"v: expected {theta.dtype} (..., {len(theta)}), got {v.dtype} {tuple(v.shape)}; pass "
                "flat vectors"
            )
        flat = v.detach().reshape(-1, len(theta))  # (k, p)
        k = len(flat)
        num_rows = max(ROWS_PER_BLOCK // k, MIN_ROWS)
        if num_rows not in cache:
            cache[num_rows] = blocks(num_rows)
        tangents, v_std = _split(flat[:, :num_net], sizes), flat[:, num_net:]
        grads = [_Sides(*map(torch.zeros_like, side)) for side in tangents]
        grad_std = torch.zeros_like(v_std)
        for block in cache[num_rows]:
            _add_product(block, layers, log_std, tangents, v_std if has_std else None, grads, grad_std)
        return torch.cat([*_join(grads, k), grad_std], dim=1).reshape(v.shape)

    return torch.no_grad()(product)


def _prepare(
    layers: list[tuple[Tensor, Tensor]], log_std: Tensor, x: Tensor, act: Tensor, weights: Tensor
) -> _Block:
    """Forward and backward pass of one block."""
    inputs = [x.contiguous()]
    for W, b in layers[:-1]:
        inputs.append(torch.tanh(torch.addmm(b, inputs[-1], W)))
    z = (act - torch.addmm(layers[-1][1], inputs[-1], layers[-1][0])) * torch.exp(-log_std)
    e = z * torch.exp(-log_std)
    deltas, slopes, bends = [weights[:, None] * e], list[Tensor](), list[Tensor]()
    for (W, _), h in zip(layers[:0:-1], inputs[:0:-1], strict=True):
        back, slope = deltas[0] @ W.T, 1 - h * h
        deltas.insert(0, slope * back)
        slopes.insert(0, slope[:, None])
        bends.insert(0, (-2 * h * back)[:, None])
    return _Block(inputs, slopes, deltas, bends, weights[:, None, None], e[:, None], (z * z - 1)[:, None])


def _add_product(
    block: _Block,
    layers: list[tuple[Tensor, Tensor]],
    log_std: Tensor,
    tangents: list[_Sides],  # RW_l, RW_l', Rb_l
    v_std: Tensor | None,  # (k, A)
    grads: list[_Sides],  # added to: h'Rd, d'Rh, sum Rd
    grad_std: Tensor,
) -> None:
    """One R-operator pass over a block."""
    n, k = len(block.weights), len(grad_std)
    last = len(layers) - 1
    moved: list[Tensor] = []  # Rh_1 ... Rh_{L-1}, (n, k, size)
    for layer, (RW, _, Rb) in enumerate(tangents):
        Rz = torch.addmm(Rb.reshape(-1), block.inputs[layer], RW.flatten(1)).view(n, k, -1)
        if layer:
            Rz.view(n * k, -1).addmm_(moved[-1].view(n * k, -1), layers[layer][0])
        if layer < last:
            moved.append(Rz.mul_(block.slopes[layer]))
    Rmu, e = Rz, block.e
    u = (e * Rmu).sum(-1, keepdim=True)  # (n, k, 1)
    Re = -torch.exp(-2 * log_std) * Rmu
    if v_std is not None:
        u = u + (block.q @ v_std.T).transpose(1, 2)
        Re = Re - 2 * e * v_std
        Rq = -2 * e * Rmu - 2 * (block.q + 1) * v_std
        grad_std += (block.weights * (u * block.q + Rq)).sum(0)
    Rd = block.weights * (u * e + Re)
    for layer in range(last, -1, -1):
        forward, backward, bias = grads[layer]
        bias += Rd.sum(0)
        forward.view(len(forward), -1).addmm_(block.inputs[layer].T, Rd.view(n, -1))
        if layer:
            Rh, delta = moved[layer - 1], block.deltas[layer]
            backward.view(len(backward), -1).addmm_(delta.T, Rh.view(n, -1))
            back = delta @ tangents[layer].backward.flatten(1)  # d RW', (n, k in)
            back.view(n * k, -1).addmm_(Rd.view(n * k, -1), layers[layer][0].T)
            Rd = back.view(n, k, -1).mul_(block.slopes[layer - 1]).addcmul_(block.bends[layer - 1], Rh)


class _Sides(NamedTuple):
    """A layer's vectors, or products, for k directions, in the two layouts of one wide matrix product."""

    forward: Tensor  # (in, k, out)
    backward: Tensor  # (out, k, in)
    bias: Tensor  # (k, out)


def _split(flat: Tensor, sizes: tuple[int, ...]) -> list[_Sides]:
    """(k, net parameters) as layers; both sides hold the same numbers."""
    parts, start = [], 0
    for i, o in pairwise(sizes):
        W = flat[:, start : start + i * o].reshape(-1, i, o)
        bias = flat[:, start + i * o : start + (i + 1) * o]
        parts.append(_Sides(W.transpose(0, 1).contiguous(), W.permute(2, 0, 1).contiguous(), bias))
        start += (i + 1) * o
    return parts


def _join(grads: list[_Sides], k: int) -> list[Tensor]:
    """[(k, in out), (k, out), ...]: the two sides of each layer hold different terms and are added."""
    return [
        part
        for side in grads
        for part in (
            (side.forward.transpose(0, 1) + side.backward.permute(1, 2, 0)).reshape(k, -1),
            side.bias,
        )
    ]


def _check(policy: GaussianPolicy, theta: Tensor, obs: Tensor, act: Tensor, weights: Tensor) -> None:
    VectorSpace([theta, obs, act, weights], "theta, obs, act, weights")
    expected = [(policy.num_params,), (len(obs), policy.obs_size), (len(obs), policy.act_size), (len(obs),)]
    got = [tuple(t.shape) for t in (theta, obs, act, weights)]
    if expected != got:
        raise ValueError(
            f"theta, obs, act, weights: expected shapes {expected}, got {got}; "
            "flatten trajectories and steps into one sample axis, and take one policy"
        )
