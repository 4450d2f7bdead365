"""Operators that carry their tensors: every constructor and rule of algebra against its dense matrix."""

from __future__ import annotations

import warnings

import pytest
import torch
from solver_tools import normals
from torch import Tensor

from policy_opt import LinearOperator, as_scipy_operator, conjugate_gradient, minres
from policy_opt.curvature import hessian_operator

A, B, S = normals(5, 5), normals(5, 5, seed=2), normals(3, 5, seed=3)
SHIFT = torch.tensor(0.3, dtype=torch.float64)
EYE = torch.eye(5, dtype=torch.float64)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch: CSR is in beta
    CSR = S.to_sparse_csr()
of = LinearOperator.from_matrix


def rows(matrix: Tensor, v: Tensor) -> Tensor:
    return matrix @ v


PAIRS = {
    "matrix": (of(A), A),
    "rectangular": (of(S), S),
    "COO": (LinearOperator.from_sparse(S.to_sparse()), S),
    "CSR": (LinearOperator.from_sparse(CSR), S),
    "diagonal": (LinearOperator.from_diagonal(A[0]), torch.diag(A[0])),
    "callable": (LinearOperator.from_callable(rows, S, S[0]), S),
    "callable, transpose": (LinearOperator.from_callable(rows, S, S[0], transpose=lambda m, w: m.T @ w), S),
    "sum": (of(A) + of(B), A + B),
    "difference": (of(A) - LinearOperator.from_callable(rows, B, B[0]), A - B),
    "product": (of(S) @ LinearOperator.from_callable(rows, B, B[0]), S @ B),
    "multiple": (2 * of(S), 2 * S),
    "tensor multiple": (of(S) * SHIFT, SHIFT * S),
    "damped": (of(A).damped(SHIFT), A + SHIFT * EYE),
    "gram": (LinearOperator.from_callable(rows, S, S[0]).gram(), S.T @ S),
    "nested": ((of(S) @ (of(A).T + of(B)).damped(1.0)) * -1.0, -S @ (A.T + B + EYE)),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())


@every_pair
def test_an_operator_is_its_matrix(pair):
    operator, matrix = pair
    m, n = matrix.shape
    assert operator.shape == (m, n) and operator.dtype == torch.float64
    v, w = normals(2, 3, n, seed=7), normals(2, 3, m, seed=8)
    for left, right in (
        (operator.to_dense(), matrix),
        (operator(v), v @ matrix.T),
        (operator(v[0, 0]), matrix @ v[0, 0]),
        (operator.T.to_dense(), matrix.T),
        (operator.T(w), w @ matrix),
        (operator.T.T(v), v @ matrix.T),
        (operator.with_parameters(operator.parameters).detach().to_dense(), matrix),
    ):
        torch.testing.assert_close(left, right)


@every_pair
def test_derivatives_and_vmap_reach_every_leaf(pair):
    """Of a function of the operator itself: finite differences along all leaves at once; vmap over the leaves."""
    operator, v = pair[0], normals(5, seed=9)

    def f(a: LinearOperator) -> Tensor:
        return a(v).sin().sum() + a.T(a(v)).square().sum()

    leaves, tree = torch.utils._pytree.tree_flatten(operator)
    directions = [normals(*leaf.shape, seed=11) for leaf in leaves]

    def moved(step: float) -> LinearOperator:
        return torch.utils._pytree.tree_unflatten(
            [leaf + step * d for leaf, d in zip(leaves, directions, strict=True)], tree
        )

    gradient = torch.func.grad(f)(operator)
    assert isinstance(gradient, LinearOperator)
    slope = sum(
        (g * d).sum() for g, d in zip(torch.utils._pytree.tree_leaves(gradient), directions, strict=True)
    )
    values = [f(moved(k * 1e-3)) for k in (2, 1, -1, -2)]
    torch.testing.assert_close(
        slope, (-values[0] + 8 * values[1] - 8 * values[2] + values[3]) / 12e-3, rtol=1e-7, atol=1e-7
    )
    stacked = torch.utils._pytree.tree_map(lambda a, b: torch.stack([a, b]), operator, moved(1.0))
    torch.testing.assert_close(torch.func.vmap(f)(stacked), torch.stack([f(operator), f(moved(1.0))]))


THETA = {"w": normals(2, 2), "b": normals(3)}
INPUTS = normals(6, 2, seed=4)


def network(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ theta["w"]) @ torch.ones(2, 3).double() + theta["b"]


def test_curvature_operators_are_their_dense_matrices_and_differentiable():
    flat, tree = torch.utils._pytree.tree_flatten(THETA)
    point = torch.cat([leaf.reshape(-1) for leaf in flat])

    def unravel(p: Tensor) -> dict[str, Tensor]:
        parts = [a.reshape(b.shape) for a, b in zip(p.split([4, 3]), flat, strict=True)]
        return torch.utils._pytree.tree_unflatten(parts, tree)

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return torch.logsumexp(z, -1).sum() + (z**4).sum() * x.mean()

    def dense_hessian(x: Tensor) -> Tensor:
        return torch.func.hessian(lambda p: loss(network(unravel(p), x), x))(point)

    def dense_gauss_newton(x: Tensor) -> Tensor:
        z = network(unravel(point), x)
        jacobian = torch.func.jacrev(lambda p: network(unravel(p), x))(point).reshape(-1, 7)
        outer = torch.func.hessian(lambda y: loss(y, x))(z).reshape(z.numel(), z.numel())
        return jacobian.T @ outer @ jacobian

    def dense_fisher(x: Tensor) -> Tensor:  # the mean over states of J'(diag p - p p') J
        jacobian = torch.func.jacrev(lambda p: network(unravel(p), x))(point)  # (6, 3, 7)
        p = network(unravel(point), x).softmax(-1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return (jacobian.mT @ inner @ jacobian).mean(0)

    def categorical(theta: dict[str, Tensor], x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Categorical(logits=network(theta, x))

    made = {
        lambda x: LinearOperator.hessian(lambda t, x: loss(network(t, x), x), THETA, x): dense_hessian,
        lambda x: LinearOperator.gauss_newton(network, loss, THETA, x): dense_gauss_newton,
        lambda x: LinearOperator.fisher(categorical, THETA, x): dense_fisher,
    }
    for make, dense in made.items():
        operator = make(INPUTS)
        assert operator.is_symmetric and operator.shape == (7, 7)
        torch.testing.assert_close(operator.to_dense(), dense(INPUTS))
        torch.testing.assert_close(
            torch.func.jacrev(lambda x, make=make: make(x).to_dense())(INPUTS),
            torch.func.jacrev(dense)(INPUTS),
        )
        b = THETA
        x = minres(operator.damped(0.5), b, rtol=1e-10).require().solution
        expected = torch.linalg.solve(dense(INPUTS) + 0.5 * torch.eye(7), point)
        torch.testing.assert_close(torch.cat([x["w"].reshape(-1), x["b"]]), expected, rtol=1e-7, atol=1e-8)


def test_the_fisher_matrix_moves_with_theta():
    """F(theta) v differentiated in theta, both places of theta in KL(theta || .) included."""

    def product(theta: Tensor) -> Tensor:
        make = lambda t: torch.distributions.Normal(t[0], t[1].exp())  # noqa: E731
        return LinearOperator.fisher(make, theta)(torch.ones(2).double())

    theta = torch.tensor([0.2, 0.4], dtype=torch.float64)  # F = diag(exp(-2 t_1), 2)
    exact = torch.tensor([[0, -2 * torch.exp(-2 * theta[1])], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacrev(product)(theta), exact)


def test_a_batch_of_matrices_and_the_tools_around_operators():
    matrices = torch.stack([A @ A.T + EYE, B @ B.T + EYE])
    operator, b = of(matrices, positive_definite=True), normals(2, 5, seed=6)
    torch.testing.assert_close(operator.to_dense(), matrices)
    answer = conjugate_gradient(operator, b, rtol=1e-12).require()
    torch.testing.assert_close(answer.solution, torch.linalg.solve(matrices, b))
    assert as_scipy_operator(of(A), b[0]).matvec(b[0].numpy()) == pytest.approx((A @ b[0]).numpy())


def test_tags():
    spd = of(A @ A.T, positive_definite=True)
    assert spd.is_symmetric and (spd + spd).is_positive_definite and spd.damped(1.0).is_positive_definite
    assert not (spd - spd).is_positive_definite and (spd - spd).is_symmetric
    assert not spd.damped(-1.0).is_positive_definite and not (spd @ spd).is_symmetric
    diagonal = LinearOperator.from_diagonal(A[0])
    assert (diagonal @ diagonal).is_diagonal and not (diagonal + spd).is_diagonal


def test_an_operator_with_dropout_is_refused():
    """Every product would be with another matrix."""

    def noisy(theta: Tensor) -> Tensor:
        return torch.nn.functional.dropout(theta**2, 0.5).sum()

    theta = A[0]
    for product in (
        lambda: LinearOperator.hessian(noisy, theta)(theta),
        lambda: LinearOperator.gauss_newton(lambda t: torch.dropout(t, 0.5, True), noisy, theta)(theta),
        lambda: LinearOperator.fisher(lambda t: torch.distributions.Normal(noisy(t), 1.0), theta)(theta),
        lambda: hessian_operator(noisy, theta, mode="forward_over_reverse")(theta),
    ):
        with pytest.raises(ValueError, match="draws random numbers"):
            product()
    kept = hessian_operator(noisy, theta)  # one draw, whose graph is kept
    torch.testing.assert_close(kept(theta), kept(theta))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"matrix: expected shape \(..., m, n\)"):
        of(A[0])
    with pytest.raises(ValueError, match="matrix: expected torch's sparse COO or CSR"):
        LinearOperator.from_sparse(A)
    with pytest.raises(ValueError, match="apply: expected a callable"):
        LinearOperator.from_callable(A, A, A[0])
    with pytest.raises(ValueError, match=r"A \+ B: expected equal shapes"):
        of(A) + of(S)
    with pytest.raises(ValueError, match=r"A @ B: expected as many columns"):
        of(S) @ of(S)
    with pytest.raises(ValueError, match=r"A @ B: expected a LinearOperator, got Tensor.*A\(v\)"):
        of(A) @ A[0]
    with pytest.raises(ValueError, match=r"matvec: expected a square operator.*\(3, 5\)"):
        conjugate_gradient(of(S), A[0])
    with pytest.raises(ValueError, match="v: expected the structure"):
        of(S)(S[:, 0])
    with pytest.raises(ValueError, match="matrix: expected real"):
        of(A + 1j)
