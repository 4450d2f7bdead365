"""Curvature products and implicit derivatives on the CPU and on another device: the same, nothing is read back."""

import pytest
import torch
from solver_tools import normals
from stand_in_device import watch
from torch.distributions import Independent, Normal
from torch.testing import assert_close

from policy_opt import GaussianPolicy, custom_root, gaussian_mlp_policy_hessian, root_jvp, root_vjp
from policy_opt.curvature import (
    fisher_operator,
    gauss_newton_operator,
    hessian_operator,
    policy_hessian,
    score_matrix,
)
from policy_opt.linear_operator import linear_map
from policy_opt.operators import LinearOperator

POLICY = GaussianPolicy(3, 2, hidden_sizes=(4,))
SIZE = POLICY.num_params
THETA = POLICY.init([torch.Generator().manual_seed(0)], dtype=torch.float64)[0] + 0.1 * normals(SIZE)
OBS, ACT, WEIGHTS = normals(5, 6, 3, seed=2), normals(5, 6, 2, seed=3), normals(5, 6, seed=4)
V = normals(4, SIZE, seed=5)  # several vectors at once


def log_prob(obs, act):
    return lambda theta: POLICY.log_prob(theta[None], obs[None], act[None])[0]


def mean(obs):
    return lambda theta: POLICY.mean(theta[None], obs[None])[0]


def distribution(obs):
    def at(theta):
        std = POLICY.log_std(theta[None])[0].exp()
        return Independent(Normal(mean(obs)(theta), std, validate_args=False), 1, validate_args=False)

    return at


OPERATORS = {
    "reverse_over_reverse": lambda t, o, a, w: hessian_operator(lambda x: (w * log_prob(o, a)(x)).sum(), t),
    "forward_over_reverse": lambda t, o, a, w: hessian_operator(
        lambda x: (w * log_prob(o, a)(x)).sum(), t, mode="forward_over_reverse"
    ),
    "gauss_newton": lambda t, o, a, w: gauss_newton_operator(mean(o), lambda z: z.square().mean(), t),
    "fisher": lambda t, o, a, w: fisher_operator(distribution(o), t),
    "per_step": lambda t, o, a, w: policy_hessian(log_prob(o, a), t, w, form="per_step"),
    "causal": lambda t, o, a, w: policy_hessian(log_prob(o, a), t, w, form="causal", mask=w > -1),
    "whole": lambda t, o, a, w: policy_hessian(log_prob(o, a), t, w.sum(1), form="whole_trajectory"),
    "scores": lambda t, o, a, w: policy_hessian(log_prob(o, a), t, w, scores=scores(t, o, a)),
    "by_hand": lambda t, o, a, w: gaussian_mlp_policy_hessian(
        POLICY, t, o.flatten(0, 1), a.flatten(0, 1), w.flatten()
    ),
    "operator": lambda t, o, a, w: LinearOperator.hessian(
        lambda x, o, a, w: (w * log_prob(o, a)(x)).sum(), t, o, a, w
    ),
}


def scores(theta, obs, act):
    return score_matrix(lambda t, s, a: log_prob(s[None], a[None])(t)[0], theta, obs, act)


@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_those_of_the_cpu(name, device):
    there = [x.to(device) for x in (THETA, OBS, ACT, WEIGHTS)]
    expected = OPERATORS[name](THETA, OBS, ACT, WEIGHTS)(V)
    v = V.to(device)
    with watch() as seen:
        product = OPERATORS[name](*there)(v)
    assert seen.read_backs == []
    assert_close(product.cpu(), expected, rtol=1e-9, atol=1e-12)


def test_a_jacobian_and_its_transpose(device):
    here, there = (linear_map(mean(OBS.to(d)), THETA.to(d)) for d in ("cpu", device))
    assert_close(there.matvec(V[0].to(device)).cpu(), here.matvec(V[0]))
    assert_close(there.rmatvec(ACT.to(device)).cpu(), here.rmatvec(ACT))


# --- implicit derivatives: theta_hat(psi) of ridge regression, (X'X + psi_0) theta = X'y psi_1 ---------------------

X, Y = normals(8, 3, seed=6), normals(8, seed=7)
PSI = torch.tensor([0.5, 2.0], dtype=torch.float64)


def ridge(device):
    """F, theta_hat as a function of psi, and psi."""
    x, y = X.to(device), Y.to(device)

    def optimality(theta, psi):
        return x.mT @ (x @ theta - psi[1] * y) + psi[0] * theta

    def solve(psi):
        gram = x.mT @ x + psi[0] * torch.eye(3, dtype=x.dtype, device=x.device)
        return torch.linalg.solve_ex(gram, psi[1] * (x.mT @ y)).result

    return optimality, solve, PSI.to(device)


def test_implicit_derivatives_are_those_of_the_closed_form(device):
    optimality, solve, psi = ridge(device)
    _, closed_form, here = ridge("cpu")
    jacobian = torch.func.jacrev(closed_form)(here)  # (3, 2)
    theta_hat, c = solve(psi), normals(3, seed=8)
    adjoint = root_vjp(optimality, theta_hat, psi, c.to(device))
    assert_close(adjoint.value.cpu(), c @ jacobian, rtol=1e-8, atol=1e-9)
    forward = root_jvp(optimality, theta_hat, psi, torch.eye(2, dtype=psi.dtype, device=device))
    assert_close(forward.value.cpu(), jacobian.mT, rtol=1e-8, atol=1e-9)
    assert adjoint.solve.ok
    assert forward.relative_residual.max() < 1e-9


def test_a_root_has_derivatives_of_every_order(device):
    optimality, solve, psi = ridge(device)
    _, closed_form, here = ridge("cpu")
    root = custom_root(optimality)(solve)

    def loss(function):
        return lambda p: function(p).square().sum()

    assert_close(torch.func.grad(loss(root))(psi).cpu(), torch.func.grad(loss(closed_form))(here))
    assert_close(torch.func.hessian(loss(root))(psi).cpu(), torch.func.hessian(loss(closed_form))(here))
    several = torch.stack([psi, 2 * psi])
    expected = torch.func.vmap(torch.func.grad(loss(closed_form)))(several.cpu())
    assert_close(torch.func.vmap(torch.func.grad(loss(root)))(several).cpu(), expected)


def test_what_an_implicit_derivative_waits_for_does_not_grow_with_its_solve():
    """The solve's border (5), the norms that a warning would name (2); nothing in its steps."""
    from stand_in_device import DEVICE

    optimality, solve, psi = ridge(DEVICE)
    theta_hat, c = solve(psi), normals(3, seed=8).to(DEVICE)
    with watch() as seen:
        root_vjp(optimality, theta_hat, psi, c)
    assert len(seen.read_backs) <= 7
