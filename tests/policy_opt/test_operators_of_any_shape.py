"""Solves with operators that are rectangular, not symmetric, or singular: derivatives, and warnings of wrong ones."""

from __future__ import annotations

import warnings

import pytest
import torch
from solver_tools import normals, symmetric
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, vmap

from policy_opt import (
    LinearOperator,
    SpectrumStatus,
    conjugate_gradient,
    custom_root,
    extreme_eigenpairs,
    gmres,
    lanczos_solve,
    lsmr,
    minres,
    normal_cg,
)
from policy_opt.solve_result import LinearSolveWarning

EYE = torch.eye(4).double()
AT = torch.tensor([0.1, 0.4]).double()
MODES = pytest.mark.parametrize(
    "modes", [(jacrev,), (jacfwd,), (jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd), (jacrev, jacrev)]
)


MATRICES = {shape: normals(2, *shape, seed=3) for shape in ((7, 4), (4, 7), (4, 4), (3, 6))}
REGULAR = symmetric(torch.logspace(0, 3, 6).double())


def moved(rows: int, columns: int, e: Tensor) -> Tensor:
    at, direction = MATRICES[rows, columns]
    return at + e[0] * direction + e[1].sin()


@MODES
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7)])
def test_lsmr_of_an_operator_has_derivatives_of_every_order(rows, columns, damping, modes):
    b = normals(2, rows, seed=5)

    def ours(e: Tensor) -> Tensor:
        operator = LinearOperator.from_matrix(moved(rows, columns, e))
        return lsmr(operator, b * (1 + e[1]), damping=damping + e[0] ** 2 * damping, rtol=1e-14).solution

    def dense(e: Tensor) -> Tensor:
        a, shift = moved(rows, columns, e), damping + e[0] ** 2 * damping
        if rows > columns:
            inverse = torch.linalg.inv(a.T @ a + shift * torch.eye(columns).double()) @ a.T
        else:
            inverse = a.T @ torch.linalg.inv(a @ a.T + shift * torch.eye(rows).double())
        return b * (1 + e[1]) @ inverse.T

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinearSolveWarning)  # 1e-14 may stagnate just above, at rounding
        torch.testing.assert_close(ours(AT), dense(AT), rtol=1e-9, atol=1e-10)
        for mode in modes:
            ours, dense = mode(ours), mode(dense)
        torch.testing.assert_close(ours(AT), dense(AT), rtol=1e-8, atol=1e-8)


@MODES
def test_gmres_of_an_operator_uses_the_transposes(modes):
    """Of A, and of a preconditioner that is an operator: the upper triangle, whose transpose is another map."""
    b, upper = normals(2, 4, seed=5), LinearOperator.from_matrix(torch.linalg.inv(4 * EYE + EYE.roll(1, 1)))

    def ours(e: Tensor) -> Tensor:
        operator = LinearOperator.from_matrix(4 * EYE + moved(4, 4, e))
        return gmres(operator, b, damping=e[1], rtol=1e-13, preconditioner=upper).solution

    def dense(e: Tensor) -> Tensor:
        return b @ torch.linalg.inv((4 + e[1]) * EYE + moved(4, 4, e)).T

    for mode in modes:
        ours, dense = mode(ours), mode(dense)
    torch.testing.assert_close(ours(AT), dense(AT), rtol=1e-8, atol=1e-9)


def test_a_batch_of_operators_and_its_hessian():
    matrices, b = normals(3, 6, 4, seed=7), normals(6)
    f = lambda a: lsmr(LinearOperator.from_matrix(a), b, rtol=1e-13).solution.sin().sum()  # noqa: E731
    g = lambda a: (torch.linalg.inv(a.T @ a) @ a.T @ b).sin().sum()  # noqa: E731
    torch.testing.assert_close(vmap(hessian(f))(matrices), vmap(hessian(g))(matrices), rtol=1e-7, atol=1e-8)
    stacked = lsmr(LinearOperator.from_matrix(matrices), b.expand(3, 6), rtol=1e-12).require()
    torch.testing.assert_close(stacked.solution, torch.linalg.pinv(matrices) @ b, rtol=1e-9, atol=1e-10)


def test_an_operator_knows_its_transpose():
    operator, b = LinearOperator.from_matrix(normals(4, 4)), normals(4)
    for solver in (gmres, lsmr, normal_cg):
        with pytest.raises(ValueError, match="rmatvec: expected None with a LinearOperator"):
            solver(operator, b, rmatvec=lambda w: w)
    with pytest.raises(ValueError, match="matvec: expected a square operator"):
        gmres(LinearOperator.from_matrix(normals(5, 4)), b)


def test_lsmr_under_plain_forward_mode_moves_the_null_space():
    """Once the null space stood still there: off by three quarters."""
    (wide, direction), b = MATRICES[3, 6], normals(3)
    for make in (lambda m: LinearOperator.from_matrix(m), lambda m: lambda v: v @ m.T):
        with forward_ad.dual_level():
            matrix = forward_ad.make_dual(wide, direction)
            more = {} if isinstance(make(wide), LinearOperator) else {"like": torch.zeros(6).double()}
            x = lsmr(make(matrix), b, rtol=1e-13, **more).solution
            tangent = forward_ad.unpack_dual(x).tangent
        zero = torch.tensor(0.0).double()
        exact = jacfwd(lambda e: torch.linalg.pinv(wide + e * direction) @ b)(zero)
        torch.testing.assert_close(tangent, exact, rtol=1e-8, atol=1e-9)


# --- forward mode of a singular operator ---------------------------------------------------------------------

FACTORS, C = normals(2, 6, 3), normals(6, seed=9)


def singular(e: Tensor) -> Tensor:
    factor = FACTORS[0] + e * FACTORS[1]
    return factor @ factor.T


def regular(e: Tensor) -> Tensor:
    return REGULAR + e * torch.eye(6).double()


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, lanczos_solve, gmres])
@pytest.mark.parametrize("is_operator", [True, False])
def test_forward_mode_warns_where_the_null_space_may_move(solver, is_operator):
    """A dx = db - dA x is consistent, and silent on the part of dx in the null space."""

    def solution(matrix):
        def f(e: Tensor) -> Tensor:
            m = matrix(e)
            operator = LinearOperator.from_matrix(m, symmetric=True) if is_operator else lambda v: v @ m
            return solver(operator, matrix(e) @ C, rtol=1e-10).solution

        return f

    e = torch.tensor(0.1).double()
    with pytest.warns(LinearSolveWarning, match=r"looks singular.*normal_cg or lsmr.*damping"):
        value = jacfwd(solution(singular))(e)
    factor = lambda e: FACTORS[0] + e * FACTORS[1]  # noqa: E731
    exact = jacfwd(lambda e: factor(e) @ torch.linalg.inv(factor(e).T @ factor(e)) @ factor(e).T @ C)(e)
    assert float((value - exact).norm()) > 0.1 * float(exact.norm())  # so there is something to warn of
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinearSolveWarning)
        jacfwd(solution(regular))(e)
        if solver is not lanczos_solve:
            jacfwd(lambda e: solver(lambda v: v @ singular(e), C, damping=0.1, rtol=1e-8).solution)(e)


@pytest.mark.parametrize("solver", [normal_cg, lsmr])
@pytest.mark.parametrize("is_operator", [True, False])
@pytest.mark.parametrize("mode", [jacfwd, jacrev])
def test_a_tensor_of_damping_that_is_zero_is_no_damping(solver, is_operator, mode):
    """One damped system and one that is not, both singular: once the null space of the second stood still."""
    b = normals(2, 6, seed=11)

    def ours(e: Tensor) -> Tensor:
        m, damping = singular(e), torch.stack([e**2, 0 * e])
        if is_operator:
            return solver(LinearOperator.from_matrix(m), b, damping=damping, rtol=1e-13).solution
        return solver(lambda v: v @ m, b, rmatvec=lambda w: w @ m, damping=damping, rtol=1e-13).solution

    def exact(e: Tensor) -> Tensor:
        m, factor = singular(e), FACTORS[0] + e * FACTORS[1]
        inner = torch.linalg.inv(factor.T @ factor)
        damped = torch.linalg.inv(m @ m + e**2 * torch.eye(6).double()) @ m @ b[0]
        return torch.stack([damped, factor @ inner @ inner @ factor.T @ b[1]])

    e = torch.tensor(0.4).double()
    torch.testing.assert_close(mode(ours)(e), mode(exact)(e), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", [normal_cg, lsmr])
def test_solvers_that_move_the_null_space_do_not_warn(solver):
    e = torch.tensor(0.1).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinearSolveWarning)
        for operator in (
            lambda m: LinearOperator.from_matrix(m),
            lambda m: lambda v: v @ m,
        ):
            jacfwd(lambda e: solver(operator(singular(e)), singular(e) @ C, rtol=1e-8).solution)(e)  # noqa: B023


def test_a_tag_saves_the_check_and_a_root_is_checked():
    e = torch.tensor(0.1).double()
    calls = []

    def apply(m: Tensor, v: Tensor) -> Tensor:
        calls.append(1)
        return m @ v

    def products(**tags: bool) -> int:
        calls.clear()

        def f(e: Tensor) -> Tensor:
            return minres(LinearOperator.from_callable(apply, regular(e), C, **tags), C, rtol=1e-8).solution

        jacfwd(f)(e)
        return len(calls)

    assert products(positive_definite=True) < products(symmetric=True)
    root = custom_root(lambda x, e: singular(e) @ (x - C))(lambda e: C.clone())
    with pytest.warns(LinearSolveWarning, match="looks singular"):
        jacfwd(root)(e)


def test_converged_respects_the_bound_also_in_the_whole_space():
    matrix = symmetric(torch.linspace(1, 5, 20).double())
    exact = extreme_eigenpairs(lambda v: v @ matrix, torch.zeros(20).double(), k=2, num_steps=20, rtol=1e-6)
    assert exact.status is SpectrumStatus.CONVERGED
    strict = extreme_eigenpairs(lambda v: v @ matrix, torch.zeros(20).double(), k=2, num_steps=20, rtol=1e-30)
    assert strict.status is SpectrumStatus.MAX_STEPS and (strict.errors > 0).all()
