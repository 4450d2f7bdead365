"""The scripts in examples/ that need policy_opt alone, against dense linear algebra."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.nn.utils import parameters_to_vector
from torch.utils import _pytree as pytree

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> dict:
    default = torch.get_default_dtype()
    try:
        return runpy.run_path(str(EXAMPLES / name))
    finally:
        torch.set_default_dtype(default)


def raveled(tree):
    """A pytree as one vector, and the way back."""
    leaves, spec = pytree.tree_flatten(tree)

    def unravel(flat: Tensor):
        parts = flat.split([leaf.numel() for leaf in leaves])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return pytree.tree_unflatten(shaped, spec)

    return parameters_to_vector(leaves), unravel


def test_influence_functions():
    s = run("influence_functions.py")
    point, unravel = raveled(s["theta"])
    dense = hessian(lambda p: s["loss"](unravel(p), s["inputs"], s["targets"]))(point)
    one = lambda p, x, y: s["sample_loss"](unravel(p), x, y)  # noqa: E731
    g_test = grad(one)(point, s["test_input"], s["test_target"])
    g = vmap(grad(one), in_dims=(None, 0, 0))(point, s["inputs"], s["targets"])
    exact = g @ torch.linalg.solve(dense, g_test) / len(g)
    torch.testing.assert_close(s["influence"], exact, rtol=1e-7, atol=1e-9)


def test_inexact_hypergradient():
    s = run("inexact_hypergradient.py")
    inner, nll = s["inner"], s["nll"]

    def outer(p: Tensor) -> Tensor:
        """Newton's method unrolled, with dense Hessians: differentiable by autograd."""
        w = torch.zeros(5).double()
        for _ in range(8):
            w = w - torch.linalg.inv(jacfwd(grad(inner))(w, p)) @ grad(inner)(w, p)
        return nll(w, s["X_held"], s["y_held"])

    p = s["log_l2"]
    exact = grad(outer)(p)
    errors = [(value - exact).norm() for value in s["hypergradients"].values()]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-10
    torch.testing.assert_close(s["outer_hessian"], jacrev(grad(outer))(p), rtol=1e-7, atol=1e-9)


def test_natural_gradient():
    s = run("natural_gradient.py")
    point, unravel = raveled(s["theta"])

    def exact(obs: Tensor) -> Tensor:
        """E[score score'] by enumeration of the actions."""
        log_probs = lambda p: s["policy"](unravel(p), obs).logits  # (32, 3)  # noqa: E731
        scores = jacrev(log_probs)(point)  # (32, 3, p)
        weights = log_probs(point).exp()[..., None, None] / len(obs)
        fisher = (weights * scores[..., :, None] * scores[..., None, :]).sum((0, 1))
        g = grad(lambda p: s["mean_reward"](unravel(p), obs))(point)
        return torch.linalg.inv(fisher + 1e-3 * torch.eye(len(point)).double()) @ g

    ours, _ = raveled(s["natural_gradient"](s["theta"], s["obs"]))
    torch.testing.assert_close(ours, exact(s["obs"]), rtol=1e-7, atol=1e-9)
    b = unravel(jacrev(exact)(s["obs"]).reshape(len(point), -1).T[0])["b"]
    torch.testing.assert_close(s["sensitivity"][:, 0, 0], b, rtol=1e-6, atol=1e-8)
