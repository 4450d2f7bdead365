"""LSMR and GMRES: SciPy's iterates, dense answers, exact derivatives of pseudo-inverses, failures in words."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch
from solver_tools import Counted, normals
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from policy_opt import SolveStatus, gmres, lsmr
from policy_opt.solve_result import LinearSolveWarning

SHAPES = pytest.mark.parametrize(("rows", "columns"), [(40, 20), (20, 40), (30, 30)])
GENERAL = normals(40, 40, seed=3) + 8 * torch.eye(40).double()


def least_squares(matrix: Tensor, b: Tensor, **kwargs):
    like = b.new_zeros(matrix.shape[-1])
    return lsmr(lambda v: v @ matrix.mT, b, rmatvec=lambda w: w @ matrix, like=like, **kwargs)


@SHAPES
def test_lsmr_gives_the_pseudo_inverse_and_the_damped_solution(rows, columns):
    matrix, b = normals(rows, columns, seed=3), normals(3, rows)
    answer = least_squares(matrix, b, rtol=1e-11).require()
    torch.testing.assert_close(answer.solution, b @ torch.linalg.pinv(matrix).T, rtol=1e-6, atol=1e-8)
    damping = torch.tensor([0.1, 1.0, 10.0]).double()
    damped = least_squares(matrix, b, rtol=1e-11, damping=damping).require()
    for x, d, row in zip(damped.solution, damping, b, strict=True):
        exact = torch.linalg.solve(matrix.T @ matrix + d * torch.eye(columns).double(), row @ matrix)
        torch.testing.assert_close(x, exact, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(damped.damping, damping)


@SHAPES
def test_lsmr_iterates_equal_scipys(rows, columns):
    matrix, b = normals(rows, columns, seed=3), normals(rows)
    for steps in (1, 2, 7):
        theirs = spla.lsmr(matrix.numpy(), b.numpy(), damp=0.5, atol=0, btol=0, conlim=0, maxiter=steps)[0]
        ours = least_squares(matrix, b, rtol=1e-30, max_steps=steps, damping=0.25)
        assert np.abs(ours.solution.numpy() - theirs).max() < 1e-13 and ours.status is SolveStatus.MAX_STEPS
        gradient = (b - ours.solution @ matrix.T) @ matrix - 0.25 * ours.solution
        relative = float(gradient.norm() / (b @ matrix).norm())
        assert float(ours.relative_residual) == pytest.approx(relative, rel=1e-9)
        assert float(ours.residual_history[-1]) == pytest.approx(relative, rel=1e-9)


def test_lsmr_counts_its_products_and_solves_deficient_ranks():
    matrix, b = normals(30, 12, seed=5), normals(30)
    matrix[:, 3] = matrix[:, 4]
    forward, backward = Counted(matrix), Counted(matrix.T)
    answer = lsmr(forward, b, rmatvec=backward, like=b.new_zeros(12), rtol=1e-10).require()
    assert forward.calls + backward.calls == answer.num_products
    torch.testing.assert_close(
        answer.solution, torch.linalg.pinv(matrix, rtol=1e-10) @ b, rtol=1e-7, atol=1e-9
    )
    alone = lsmr(lambda v: v @ matrix.T, b, like=b.new_zeros(12), rtol=1e-10).require()  # A' by autograd
    torch.testing.assert_close(alone.solution, answer.solution)
    started = lsmr(forward, b, rmatvec=backward, like=b.new_zeros(12), x0=normals(12), rtol=1e-10).require()
    assert float(((b - forward(started.solution)) @ matrix).norm()) < 1e-8


def dense(matrix: Tensor, b: Tensor, damping: float = 0.0) -> Tensor:
    if damping == 0:
        return torch.linalg.pinv(matrix) @ b
    return torch.linalg.solve(
        matrix.mT @ matrix + damping * torch.eye(matrix.shape[-1]).double(), matrix.mT @ b
    )


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 5)])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_lsmr_derivatives_are_those_of_the_pseudo_inverse(rows, columns, damping, transform):
    matrix, b = normals(rows, columns, seed=3), normals(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinearSolveWarning)  # 1e-13 may stagnate just above, at rounding
        for argument in (0, 1):
            solve = lambda a, c: least_squares(a, c, rtol=1e-13, damping=damping).solution  # noqa: E731
            ours = transform(solve, argument)(matrix, b)
            exact = transform(lambda a, c: dense(a, c, damping), argument)(matrix, b)
            torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)


def test_lsmr_derivatives_for_deficient_ranks_dampings_and_scales():
    left, right, b = normals(7, 2, seed=5), normals(2, 4, seed=6), normals(7)

    def exact(factor: Tensor) -> Tensor:  # the pseudo-inverse of a product of full-rank factors
        inner = torch.linalg.solve(factor.T @ factor, factor.T @ b)
        return right.T @ torch.linalg.solve(right @ right.T, inner)

    for transform in (jacrev, jacfwd):
        ours = transform(lambda f: least_squares(f @ right, b, rtol=1e-12).solution)(left)
        torch.testing.assert_close(ours, transform(exact)(left), rtol=1e-8, atol=1e-9)
    matrix = normals(7, 4, seed=3)
    for value in (0.0, 0.3):  # also at damping 0, where sqrt(damping) has no derivative
        d = torch.tensor(value).double()
        ours = jacrev(lambda t: least_squares(matrix, b, damping=t, rtol=1e-12).solution)(d)
        system = matrix.T @ matrix + d * torch.eye(4).double()
        x = torch.linalg.solve(system, matrix.T @ b)
        torch.testing.assert_close(ours, -torch.linalg.solve(system, x), rtol=1e-8, atol=1e-9)
    scaled = jacrev(lambda a: least_squares(a * 1e-90, b * 1e-100, rtol=1e-12).solution * 1e10)(matrix)
    torch.testing.assert_close(scaled, jacrev(lambda a: dense(a, b))(matrix), rtol=1e-8, atol=1e-9)


SECOND = {
    "jacrev of jacfwd": lambda f, t: jacrev(jacfwd(f))(t),
    "jacfwd of jacrev": lambda f, t: jacfwd(jacrev(f))(t),
    "jacfwd of jacfwd": lambda f, t: jacfwd(jacfwd(f))(t),
    "jacrev of jacrev": lambda f, t: jacrev(jacrev(f))(t),
}


@pytest.mark.parametrize("transform", SECOND.values(), ids=SECOND.keys())
def test_a_second_derivative_is_right_or_refused_and_never_zero(transform):
    """For LSMR also that of the term that moves the null space; plus exp(t), which hides a zero."""
    tall, square, b = normals(7, 4, seed=3), GENERAL[:7, :7], normals(7)
    cases = {
        "lsmr": (
            lambda t: least_squares(tall + t * tall**2, b, rtol=1e-12).solution.sum(),
            lambda t: torch.linalg.lstsq(tall + t * tall**2, b[:, None]).solution.sum(),
        ),
        "gmres": (
            lambda t: gmres(
                lambda v: v @ (square + t * square**2).T, b, rmatvec=lambda w: w @ (square + t * square**2),
                rtol=1e-13,
            ).solution.sum(),
            lambda t: torch.linalg.solve(square + t * square**2, b).sum(),
        ),
    }  # fmt: skip
    at = torch.tensor(0.01).double()
    for ours, dense_one in cases.values():
        try:
            value = transform(lambda t: ours(t) + t.exp(), at)  # noqa: B023
        except RuntimeError as error:
            assert "first derivatives only" in str(error)
        else:
            exact = jacfwd(jacfwd(lambda t: dense_one(t) + t.exp()))(at)  # noqa: B023
            torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-8)


def test_lsmr_inputs_are_named():
    matrix, b = normals(6, 4), normals(2, 6)
    with pytest.raises(ValueError, match="damping: expected numbers >= 0"):
        least_squares(matrix, b, damping=-1.0)
    with pytest.raises(ValueError, match="like: expected the batch axes"):
        lsmr(Counted(matrix), b, like=torch.zeros(3, 4).double())
    with pytest.raises(ValueError, match=r"real floating-point tensors.*twice the size"):
        lsmr(Counted(matrix), b.to(torch.complex128), like=torch.zeros(4).double())
    with pytest.raises(ValueError, match="matvec: expected the structure"):
        lsmr(lambda v: v, b, rmatvec=Counted(matrix.T), like=torch.zeros(4).double())


# --- GMRES --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [7, 30, 100])
def test_gmres_solves_with_any_restart(restart):
    b = normals(3, 40)
    operator = Counted(GENERAL)
    answer = gmres(operator, b, rtol=1e-11, restart=restart).require()
    torch.testing.assert_close(answer.solution, torch.linalg.solve(GENERAL, b.T).T, rtol=1e-8, atol=1e-9)
    assert operator.calls == answer.num_products
    damped = gmres(operator, b, damping=2.0, rtol=1e-11, restart=restart).require()
    shifted = GENERAL + 2 * torch.eye(40).double()
    torch.testing.assert_close(damped.solution, torch.linalg.solve(shifted, b.T).T, rtol=1e-8, atol=1e-9)


def test_gmres_residuals_equal_scipys():
    b, theirs = normals(40), list[float]()
    spla.gmres(
        GENERAL.numpy(), b.numpy(), rtol=0, atol=0, restart=40, maxiter=1, callback=theirs.append,
        callback_type="pr_norm",
    )  # fmt: skip
    ours = gmres(Counted(GENERAL), b, rtol=1e-30, restart=40, max_steps=20)
    np.testing.assert_allclose(ours.residual_history[1:].numpy(), theirs[:20], rtol=1e-9)


def test_gmres_preconditioned_from_the_right_keeps_the_true_residual():
    scale = torch.logspace(0, 5, 40).double()
    matrix, b = GENERAL * scale[:, None], normals(40)
    plain = gmres(Counted(matrix), b, rtol=1e-9, max_steps=60)
    better = gmres(Counted(matrix), b, rtol=1e-9, preconditioner=lambda r: r / matrix.diagonal(), restart=40)
    assert not plain.ok and better.ok
    assert float((b - better.solution @ matrix.T).norm()) <= 1e-9 * float(b.norm())


def test_gmres_stagnates_in_words_where_restarts_repeat():
    shift, b = torch.roll(torch.eye(30), 1, 0).double(), torch.eye(30)[0].double()
    assert gmres(Counted(shift), b, restart=10).status is SolveStatus.STAGNATED
    assert gmres(Counted(shift), b, restart=30).ok
    singular = GENERAL.clone()
    singular[:, 0] = singular[:, 1]
    answer = gmres(Counted(singular), normals(40), restart=40)
    assert answer.status is SolveStatus.STAGNATED and float(answer.relative_residual) < 1
    assert gmres(lambda v: v * float("nan"), b).status is SolveStatus.NONFINITE


def test_gmres_derivatives_and_vmap():
    matrix, b = GENERAL[:8, :8], normals(8)

    def ours(a: Tensor, c: Tensor) -> Tensor:
        return gmres(lambda v: v @ a.mT, c, rmatvec=lambda w: w @ a, rtol=1e-13).solution

    for transform in (jacrev, jacfwd):
        for argument in (0, 1):
            exact = transform(torch.linalg.solve, argument)(matrix, b)
            torch.testing.assert_close(transform(ours, argument)(matrix, b), exact, rtol=1e-8, atol=1e-10)
    several = torch.stack([matrix, matrix.T])
    exact = torch.stack([torch.linalg.solve(a, b) for a in several])
    torch.testing.assert_close(vmap(lambda a: ours(a, b))(several), exact, rtol=1e-8, atol=1e-10)
    forward_alone = lambda c: gmres(lambda v: v @ matrix.T, c, rtol=1e-12).solution.sum()  # noqa: E731
    torch.testing.assert_close(
        jacfwd(forward_alone)(b), torch.linalg.inv(matrix).sum(0), rtol=1e-8, atol=1e-9
    )
    with pytest.raises(ValueError, match=r"rmatvec: expected.*reverse-mode derivative"):
        grad(forward_alone)(b)


def test_gmres_inputs_are_named():
    with pytest.raises(ValueError, match="restart: expected an integer >= 1"):
        gmres(Counted(GENERAL), normals(40), restart=0)
    with pytest.raises(ValueError, match="matvec: expected a callable"):
        gmres(GENERAL, normals(40))
