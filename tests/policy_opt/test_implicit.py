"""Implicit derivatives against closed forms and finite differences."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from policy_opt import conjugate_gradient, custom_root, lanczos_solve, minres, normal_cg, root_jvp, root_vjp
from policy_opt.solve_result import LinearSolveWarning

close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FEATURES, TARGETS = normals(20, 6), normals(20, seed=1)
PENALTY = torch.tensor([0.5, 2.0, 1.0, 0.3, 4.0, 1.5], dtype=torch.float64)


def ridge_gradient(theta: Tensor, penalty: Tensor) -> Tensor:
    return FEATURES.T @ (FEATURES @ theta - TARGETS) + penalty * theta


def ridge(penalty: Tensor) -> Tensor:
    """Closed form, differentiable by autograd: the oracle. (Some batched and mixed derivatives of
    torch.linalg.solve itself are wrong in torch 2.13; those of `inv` are right.)"""
    return torch.linalg.inv(FEATURES.T @ FEATURES + torch.diag_embed(penalty)) @ (FEATURES.T @ TARGETS)


def tight(solver):
    return functools.partial(solver, rtol=1e-13, max_steps=200)


SOLVES = {
    "default": None,
    "cg": tight(conjugate_gradient),
    "minres": tight(minres),
    "lanczos": tight(lanczos_solve),
    "normal_cg": tight(normal_cg),
}


@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES.keys())
def test_adjoint_forward_and_dense_agree_on_ridge(solve):
    jacobian = torch.func.jacrev(ridge)(PENALTY)  # (theta, psi)
    theta_hat = ridge(PENALTY)
    cotangents, tangents = normals(3, 6, seed=2), normals(4, 6, seed=3)
    adjoint = root_vjp(ridge_gradient, theta_hat, PENALTY, cotangents, solve=solve)
    forward = root_jvp(ridge_gradient, theta_hat, PENALTY, tangents, solve=solve)
    close(adjoint.value, cotangents @ jacobian)
    close(forward.value, tangents @ jacobian.T)
    close(adjoint.value @ tangents.T, cotangents @ forward.value.T)
    close(
        root_vjp(ridge_gradient, theta_hat, PENALTY, cotangents[0], solve=solve).value,
        cotangents[0] @ jacobian,
    )
    assert adjoint.solve.relative_residual.shape == (3,)


COUPLING = normals(4, 4, seed=5)


def nonsymmetric(theta: Tensor, psi: Tensor) -> Tensor:
    """F with a Jacobian that is not symmetric; the root is psi-dependent through a nonlinearity."""
    return (
        theta
        + 0.3 * torch.tanh(COUPLING @ theta)
        - psi.sin().sum() * torch.ones(4).double()
        - psi[0] * psi[1]
    )


def newton(psi: Tensor) -> Tensor:
    theta = torch.zeros(4).double()
    for _ in range(50):
        theta = theta - torch.linalg.solve(
            torch.func.jacrev(nonsymmetric)(theta, psi), nonsymmetric(theta, psi)
        )
    return theta


def test_the_default_solve_is_right_for_a_nonsymmetric_jacobian():
    psi = torch.tensor([0.3, -0.8], dtype=torch.float64)
    theta_hat, step = newton(psi), 1e-3
    columns = []
    for direction in torch.eye(2).double():
        at = [newton(psi + k * step * direction) for k in (2, 1, -1, -2)]
        columns.append((-at[0] + 8 * at[1] - 8 * at[2] + at[3]) / (12 * step))
    differences = torch.stack(columns, 1)  # (theta, psi)
    adjoint = root_vjp(nonsymmetric, theta_hat, psi, torch.eye(4).double())
    forward = root_jvp(nonsymmetric, theta_hat, psi, torch.eye(2).double())
    torch.testing.assert_close(adjoint.value, differences, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(forward.value.T, differences, rtol=1e-9, atol=1e-9)
    # Negative control: treating the Jacobian as symmetric is refused rather than wrong.
    with pytest.raises(ValueError, match="rmatvec"):
        root_vjp(nonsymmetric, theta_hat, psi, torch.ones(4).double(), solve=normal_cg)


def test_pytrees_on_both_sides():
    def optimality(theta, psi):
        return {"a": theta["a"] * psi["scale"] - 1.0, "b": theta["b"] - theta["a"].sum() * psi["shift"]}

    psi = {"scale": torch.tensor(2.0).double(), "shift": normals(3)}
    theta = {"a": torch.full((2,), 0.5).double(), "b": psi["shift"]}
    cotangent = {"a": torch.ones(2).double(), "b": torch.ones(3).double()}
    value = root_vjp(optimality, theta, psi, cotangent).value
    # theta.a = 1/scale (twice), theta.b = (2/scale) shift
    close(value["scale"], -2 / psi["scale"] ** 2 - 2 / psi["scale"] ** 2 * psi["shift"].sum())
    close(value["shift"], torch.ones(3).double())
    tangent = {"scale": torch.tensor(1.0).double(), "shift": torch.zeros(3).double()}
    close(root_jvp(optimality, theta, psi, tangent).value["a"], torch.full((2,), -0.25).double())


def test_derivatives_of_root_products_compose_with_vmap():
    penalties = torch.stack([PENALTY, 2 * PENALTY])
    thetas = torch.stack([ridge(p) for p in penalties])
    ones = torch.ones(6).double()
    values = torch.func.vmap(lambda t, p: root_vjp(ridge_gradient, t, p, ones).value)(thetas, penalties)
    for value, penalty in zip(values, penalties, strict=True):
        close(value, ones @ torch.func.jacrev(ridge)(penalty))


implicit_ridge = custom_root(ridge_gradient)(lambda penalty: ridge(penalty).detach())


def outer(theta: Tensor) -> Tensor:
    return (theta**3).sum() + theta.sin().sum()


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda p: outer(f(p)))(PENALTY),
    "jacrev": lambda f: torch.func.jacrev(f)(PENALTY),
    "jacfwd": lambda f: torch.func.jacfwd(f)(PENALTY),
    "vmap": lambda f: torch.func.vmap(f)(torch.stack([PENALTY, 2 * PENALTY])),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda p: outer(f(p))))(
        torch.stack([PENALTY, 2 * PENALTY])
    ),
    "hessian": lambda f: torch.func.hessian(lambda p: outer(f(p)))(PENALTY),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f))(PENALTY),
    "jacfwd, three times": lambda f: torch.func.jacfwd(torch.func.jacfwd(torch.func.jacfwd(f)))(PENALTY),
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f))(PENALTY),
    "third": lambda f: torch.func.jacrev(torch.func.hessian(lambda p: outer(f(p))))(PENALTY),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_custom_root_under_transforms_and_in_higher_orders(transform):
    close(transform(implicit_ridge), transform(ridge), rtol=1e-8, atol=1e-9)


def test_custom_root_with_plain_autograd_twice():
    def second(f) -> Tensor:
        penalty = PENALTY.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(outer(f(penalty)), penalty, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), penalty)[0]

    close(second(implicit_ridge), second(ridge), rtol=1e-8, atol=1e-9)


def test_custom_root_of_an_iterative_solver_with_every_argument_and_auxiliary():
    """A solver with Python control flow; gradients of all arguments, pytrees and a non-tensor included."""

    @custom_root(
        lambda theta, data, penalty, _: data["x"].T @ (data["x"] @ theta - data["y"]) + penalty * theta
    )
    def fit(data, penalty, num_steps):
        theta = torch.zeros(6).double()
        for _ in range(num_steps):
            theta = theta - 0.01 * (data["x"].T @ (data["x"] @ theta - data["y"]) + penalty * theta)
        return theta

    def loss(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
        return outer(fit({"x": x, "y": y}, penalty, 6000))

    def exact(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
        return outer(torch.linalg.solve(x.T @ x + torch.diag(penalty), x.T @ y))

    ours = torch.func.grad(loss, argnums=(0, 1, 2))(FEATURES, TARGETS, PENALTY)
    theirs = torch.func.grad(exact, argnums=(0, 1, 2))(FEATURES, TARGETS, PENALTY)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_a_failed_solve_inside_a_derivative_warns():
    weak = custom_root(ridge_gradient, solve=functools.partial(conjugate_gradient, max_steps=1))(ridge)
    with pytest.warns(LinearSolveWarning, match="MAX_STEPS"):
        torch.func.grad(lambda p: outer(weak(p)))(PENALTY)


def test_what_a_root_may_not_close_over_is_refused():
    """The derivative would be lost in silence, or the axes of a vmap misread."""
    weight = torch.ones(6, dtype=torch.float64, requires_grad=True)
    hidden = custom_root(lambda theta, p: weight * theta - p)(lambda p: p / weight.detach())
    with pytest.raises(ValueError, match=r"optimality: .*closes over a differentiated tensor"):
        hidden(PENALTY)
    with torch.no_grad():
        close(hidden(PENALTY), PENALTY)

    def scaled(e: Tensor) -> Tensor:
        return custom_root(lambda theta, p: theta * e - p)(lambda p: p / e)(PENALTY).sum()

    with pytest.raises(ValueError, match="closes over a differentiated tensor"):
        torch.func.grad(scaled)(PENALTY[0])
    with pytest.raises(ValueError, match="closes over a tensor of a vmap"):
        torch.func.vmap(scaled)(PENALTY)
    with pytest.raises(ValueError, match=r"optimality: expected F.*shaped as theta"):
        custom_root(lambda theta, p: theta.sum() - p.sum())(lambda p: p)(PENALTY)


def test_a_singular_jacobian_inside_a_derivative_warns():
    flat = custom_root(lambda theta, p: torch.stack([theta[0] - theta[1], theta[1] - theta[0]]) + 0 * p)(
        torch.ones_like
    )
    with pytest.warns(LinearSolveWarning, match="singular"):
        torch.func.grad(lambda p: flat(p)[0])(PENALTY[:2])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="cotangent"):
        root_vjp(ridge_gradient, ridge(PENALTY), PENALTY, torch.ones(5).double())
    with pytest.raises(ValueError, match="tangent"):
        root_jvp(ridge_gradient, ridge(PENALTY), PENALTY, torch.ones(5).double())
