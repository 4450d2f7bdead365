"""The iterative solvers: right answers, the promised tolerance, the promised number of products."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_tools import (
    MIXED,
    SPD,
    Counted,
    every_indefinite_solver,
    every_solver,
    normals,
    symmetric,
    true_residual,
)

from policy_opt import SolveStatus, as_scipy_operator, conjugate_gradient, lanczos_solve, minres, normal_cg
from policy_opt.linear_operator import linear_map

# --- right answers ------------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_solution_matches_the_dense_one(solver, dtype, batch):
    b = normals(*batch, 30).to(dtype)
    result = solver(Counted(SPD.to(dtype)), b, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    exact = torch.linalg.solve(SPD, b.double()[..., None])[..., 0]
    assert result.ok and result.solution.dtype == dtype
    assert result.relative_residual.shape == result.num_steps.shape == result.damping.shape == batch
    assert result.residual_history.shape[:-1] == batch
    error = (result.solution.double() - exact).norm() / exact.norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


@every_indefinite_solver
def test_indefinite_systems_are_solved(solver):
    b = normals(3, 30)
    result = solver(Counted(MIXED), b, rtol=1e-11, max_steps=300).require()
    exact = torch.linalg.solve(MIXED, b.T).T
    torch.testing.assert_close(result.solution, exact, rtol=0, atol=1e-8)
    if solver is not normal_cg:
        assert (result.min_curvature < 0).all()


@every_solver
def test_damping_is_added_and_reported(solver):
    b, damping = normals(2, 30), torch.tensor([0.5, 7.0], dtype=torch.float64)
    result = solver(Counted(SPD), b, damping=damping, rtol=1e-12).require()
    matrix, rhs = (SPD @ SPD, b @ SPD) if solver is normal_cg else (SPD, b)
    for i in range(2):
        exact = torch.linalg.solve(matrix + damping[i] * torch.eye(30).double(), rhs[i])
        torch.testing.assert_close(result.solution[i], exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.damping, damping)


@every_solver
def test_relative_damping_is_in_units_of_the_operator(solver):
    """Multiplying A by 1000 must not change what relative damping means; the value used is reported."""
    b, scale = normals(30), 1000.0
    small = solver(Counted(SPD), b, relative_damping=1e-2, rtol=1e-12).require()
    large = solver(Counted(scale * SPD), b, relative_damping=1e-2, rtol=1e-12).require()
    power = 2 if solver is normal_cg else 1
    assert float(large.damping / small.damping) == pytest.approx(scale**power, rel=1e-6)
    assert float(small.damping) == pytest.approx(1e-2 * 50**power, rel=0.1)
    torch.testing.assert_close(large.solution * scale, small.solution, rtol=1e-8, atol=1e-12)


def test_two_recipes_for_a_nonsymmetric_matrix_agree_with_lsmr():
    matrix, b, damping = normals(20, 20, seed=5) + 3 * torch.eye(20).double(), normals(20), 0.3
    ours = normal_cg(
        lambda v: v @ matrix.T, b, rmatvec=lambda w: w @ matrix, damping=damping, rtol=1e-13
    ).require()
    by_transposing = normal_cg(
        lambda v: v @ matrix.T,
        b,
        rmatvec=linear_map(lambda v: matrix @ v, b).rmatvec,
        damping=damping,
        rtol=1e-13,
    ).require()
    operator = as_scipy_operator(lambda v: v @ matrix.T, b, rmatvec=lambda w: w @ matrix)
    theirs = spla.lsmr(operator, b.numpy(), damp=damping**0.5, atol=1e-15, btol=1e-15, maxiter=400)[0]
    np.testing.assert_allclose(ours.solution.numpy(), theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_transposing.solution, ours.solution, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_preconditioner", [False, True])
def test_conjugate_gradient_iterates_equal_scipys(with_preconditioner):
    b, diagonal = normals(30), SPD.diagonal() + torch.arange(30).double()
    matrix = SPD + torch.diag(torch.arange(30).double())
    kwargs = {"preconditioner": lambda r: r / diagonal} if with_preconditioner else {}
    scipy_m = spla.LinearOperator((30, 30), lambda r: r / diagonal.numpy()) if with_preconditioner else None
    iterates: list[np.ndarray] = []
    spla.cg(
        matrix.numpy(), b.numpy(), rtol=0, maxiter=20, M=scipy_m, callback=lambda x: iterates.append(x.copy())
    )
    for step in (1, 2, 5, 12, 20):
        ours = conjugate_gradient(Counted(matrix), b, rtol=1e-30, max_steps=step, **kwargs).solution
        assert np.abs(ours.numpy() - iterates[step - 1]).max() < 1e-12


@pytest.mark.parametrize("with_preconditioner", [False, True])
def test_minres_iterates_equal_scipys(with_preconditioner):
    b, diagonal = normals(30), torch.linspace(1, 3, 30, dtype=torch.float64)
    kwargs = {"preconditioner": lambda r: r / diagonal} if with_preconditioner else {}
    scipy_m = spla.LinearOperator((30, 30), lambda r: r / diagonal.numpy()) if with_preconditioner else None
    iterates: list[np.ndarray] = []
    spla.minres(
        MIXED.numpy(), b.numpy(), rtol=0, maxiter=20, M=scipy_m, callback=lambda x: iterates.append(x.copy())
    )
    for step in (1, 2, 5, 12, 20):
        ours = minres(Counted(MIXED), b, rtol=1e-30, max_steps=step, **kwargs)
        assert np.abs(ours.solution.numpy() - iterates[step - 1]).max() < 1e-12
        assert float(ours.relative_residual) == pytest.approx(float(ours.residual_history[-1]), rel=1e-8)


def test_a_good_preconditioner_saves_steps():
    scale = torch.logspace(0, 4, 30, dtype=torch.float64)
    matrix, b = SPD * scale.sqrt() * scale.sqrt()[:, None], normals(30)
    for solver in (conjugate_gradient, minres):
        plain = solver(Counted(matrix), b, rtol=1e-9, max_steps=2000)
        better = solver(
            Counted(matrix), b, rtol=1e-9, preconditioner=lambda r: r / matrix.diagonal()
        ).require()
        assert better.num_steps < 0.5 * plain.num_steps
        assert float(true_residual(solver, matrix, b, better.solution)) <= 1e-9


# --- the tolerance is tested on the true residual of the returned x -----------------------------------------


@every_solver
@given(
    exponent=st.floats(0, 5),
    negative=st.integers(0, 6),
    seed=st.integers(0, 1000),
    rtol=st.sampled_from([1e-3, 1e-9]),
)
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
def test_converged_means_the_returned_x_is_within_tolerance(solver, exponent, negative, seed, rtol):
    eigenvalues = torch.logspace(0, exponent, 12, dtype=torch.float64)
    eigenvalues[:negative] *= -1
    matrix, b = symmetric(eigenvalues, seed), normals(2, 12, seed=seed)
    result = solver(Counted(matrix), b, rtol=rtol)
    recomputed = true_residual(solver, matrix, b, result.solution)
    torch.testing.assert_close(result.relative_residual, recomputed, rtol=1e-3, atol=1e-12)
    assert (recomputed[result.converged] <= rtol * (1 + 1e-6) + 1e-13).all()
    if negative == 0 and exponent < 3:
        assert result.ok


@every_solver
def test_unreachable_tolerance_in_float32_stagnates_where_the_recurrence_claims_success(solver):
    matrix, b = symmetric(torch.logspace(0, 4, 40).float()), normals(40).float()
    result = solver(Counted(matrix), b, rtol=1e-9, max_steps=2000)
    assert result.status in (SolveStatus.STAGNATED, SolveStatus.MAX_STEPS)
    assert float(result.relative_residual) > 1e-9
    if (
        solver is conjugate_gradient
    ):  # negative control: without recomputing, this would have been "converged"
        assert float(result.residual_history.min()) < 1e-9


@every_solver
def test_absolute_tolerance(solver):
    b = 1e-3 * normals(30)
    loose = solver(Counted(SPD), b, rtol=0.0, atol=1e-2 if solver is not normal_cg else 1.0)
    assert loose.ok and loose.num_products <= 2 and float(loose.solution.norm()) == 0
    tight = solver(Counted(SPD), b, rtol=0.0, atol=1e-9, max_steps=100)
    assert tight.ok and float(tight.num_steps) > 1


# --- counting -----------------------------------------------------------------------------------------------


def test_one_operator_call_per_step_and_one_to_check():
    b = normals(4, 30)
    for solver, per_step, extra in ((conjugate_gradient, 1, 1), (minres, 1, 1), (lanczos_solve, 1, 1)):
        operator = Counted(SPD)
        result = solver(operator, b, rtol=1e-30, max_steps=7)
        assert operator.calls == result.num_products == 7 * per_step + extra
        assert result.num_steps.tolist() == [7] * 4
    operator = Counted(MIXED)
    result = normal_cg(operator, b, rtol=1e-30, max_steps=7)
    assert (
        operator.calls == result.num_products == 2 * 7 + 2 + 2
    )  # A'b and the check of symmetry; the residual
    operator, transpose = Counted(MIXED), Counted(MIXED.T)
    result = normal_cg(operator, b, rmatvec=transpose, rtol=1e-30, max_steps=7)
    assert (operator.calls, transpose.calls, result.num_products) == (8, 9, 17)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres], ids=["cg", "minres"])
def test_converged_x0_costs_one_product(solver):
    operator, b = Counted(SPD), normals(30)
    exact = torch.linalg.solve(SPD, b)
    result = solver(operator, b, x0=exact, rtol=1e-9)
    assert result.ok and operator.calls == result.num_products == 1 and result.num_steps == 0
    torch.testing.assert_close(result.solution, exact)


@pytest.mark.parametrize("solver", [conjugate_gradient, normal_cg, minres], ids=["cg", "normal_cg", "minres"])
def test_a_near_x0_saves_steps(solver):
    b = normals(30)
    exact = torch.linalg.solve(SPD, b)
    near = solver(Counted(SPD), b, x0=exact + 1e-6 * normals(30, seed=9), rtol=1e-8).require()
    assert near.num_steps < solver(Counted(SPD), b, rtol=1e-8).num_steps


@every_solver
def test_zero_right_hand_side(solver):
    operator = Counted(SPD)
    result = solver(operator, torch.zeros(2, 30).double())
    assert result.ok and operator.calls <= (2 if solver is normal_cg else 0)
    assert result.solution.abs().max() == 0 and (result.relative_residual == 0).all()


@every_solver
def test_scalar_and_one_by_one(solver):
    """A size taken from the sum of the shape is zero for a scalar: 3 x = 6 must give 2."""
    scalar = solver(lambda v: 3 * v, torch.tensor(6.0)).require()
    assert scalar.solution.shape == () and float(scalar.solution) == pytest.approx(2)
    one = solver(lambda v: 3 * v, torch.tensor([6.0])).require()
    assert one.solution.shape == (1,) and float(one.solution) == pytest.approx(2)
    many = solver(lambda v: 3 * v, torch.tensor([[6.0], [3.0]])).require()
    torch.testing.assert_close(many.solution, torch.tensor([[2.0], [1.0]]))


@every_solver
@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_few_steps(solver, max_steps):
    operator, b = Counted(SPD), normals(30)
    result = solver(operator, b, max_steps=max_steps)
    assert result.status is SolveStatus.MAX_STEPS and int(result.num_steps) == max_steps
    assert result.residual_history.shape[-1] == max_steps + 1
    assert float(result.relative_residual) == pytest.approx(
        float(true_residual(solver, SPD, b, result.solution)), rel=1e-9
    )
    if max_steps == 0:
        assert result.solution.abs().max() == 0 and float(result.relative_residual) == 1


@pytest.mark.gpu
@every_solver
def test_gpu_gives_what_the_cpu_gives(solver):
    b = normals(3, 30)
    here = solver(Counted(SPD), b, rtol=1e-10).require()
    there = solver(Counted(SPD.cuda()), b.cuda(), rtol=1e-10).require()
    torch.testing.assert_close(there.solution.cpu(), here.solution, rtol=1e-7, atol=1e-9)
    assert there.num_steps.cpu().tolist() == here.num_steps.tolist()
    with pytest.raises(ValueError, match=r"x0: expected.*cuda"):
        conjugate_gradient(Counted(SPD.cuda()), b.cuda(), x0=b)
