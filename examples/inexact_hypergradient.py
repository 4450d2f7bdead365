"""Hypergradient with an inexact inner solve: what a residual |F| of the inner problem costs the outer gradient.

Inner: logistic regression, F(w, log_l2) = gradient of its loss = 0. Outer: the loss on held-out data, tuned by
log_l2 (one number per feature). root_vjp says |F| with the derivative, and warns above its tolerance; with
custom_root the outer Hessian follows, too.
"""

import torch
from torch.func import grad, hessian

from policy_opt import LinearOperator, conjugate_gradient, custom_root, root_vjp

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
X, y, X_held, y_held = torch.randn(80, 5), torch.randn(80) > 0, torch.randn(40, 5), torch.randn(40) > 0
log_l2 = torch.zeros(5)


def nll(w, X, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(X @ w, y.to(w))


def inner(w, log_l2):
    return nll(w, X, y) + 0.5 * (log_l2.exp() * w.square()).sum() / 10


def fit(log_l2, tolerance):
    """Newton's method, each step solved by conjugate gradients, until |F| <= tolerance."""
    w = torch.zeros(5)
    while (F := grad(inner)(w, log_l2)).norm() > tolerance:
        w = w - conjugate_gradient(LinearOperator.hessian(inner, w, log_l2), F, rtol=0.1).solution
    return w


hypergradients = {}
for tolerance in (1e-2, 1e-4, 1e-10):
    w = fit(log_l2, tolerance)
    result = root_vjp(grad(inner), w, log_l2, grad(nll)(w, X_held, y_held), tolerance=0.1)
    hypergradients[tolerance] = result.value
    print(f"|F| = {result.optimality_norm:.1e}: {result.value.tolist()}")

optimum = custom_root(grad(inner))(lambda log_l2: fit(log_l2, 1e-10))
outer_hessian = hessian(lambda p: nll(optimum(p), X_held, y_held))(log_l2)
print("curvature of the outer problem:", torch.linalg.eigvalsh(outer_hessian).tolist())
