"""Failures of the solvers are statuses, never success; bad input is named. Every fault was found in a library."""

from __future__ import annotations

import functools

import pytest
import torch
from solver_tools import MIXED, SOLVERS, SPD, Counted, every_solver, normals, symmetric, true_residual
from torch import Tensor

from policy_opt import SolveStatus, conjugate_gradient, lanczos_solve, minres, normal_cg
from policy_opt.solve_result import LinearSolveError


def test_negative_curvature_is_found_and_returned():
    b = normals(3, 30)
    result = conjugate_gradient(Counted(MIXED), b)
    assert (result.status == SolveStatus.NEGATIVE_CURVATURE).all() and not result.ok
    p = result.direction
    curvature = (p * (p @ MIXED.T)).sum(-1) / (p * p).sum(-1)
    assert (curvature < 0).all()
    torch.testing.assert_close(curvature, result.min_curvature)
    # The iterate before the bad direction is returned, not one that stepped along it.
    assert (result.solution.norm(dim=-1) < 10 * torch.linalg.solve(MIXED, b.T).norm()).all()


@every_solver
def test_singular_consistent_systems_are_solved(solver):
    eigenvalues = torch.cat([torch.zeros(5), torch.linspace(1, 9, 20)]).double()
    matrix = symmetric(eigenvalues)
    b = normals(25) @ matrix
    result = solver(Counted(matrix), b, rtol=1e-9).require()
    least_norm = torch.linalg.pinv(matrix, rtol=1e-10) @ b
    torch.testing.assert_close(result.solution, least_norm, rtol=0, atol=1e-7)


def test_singular_inconsistent_systems_never_converge_and_minres_gives_least_squares():
    eigenvalues = torch.cat([torch.zeros(5), torch.linspace(1, 9, 20)]).double()
    matrix, b = symmetric(eigenvalues), normals(25)
    best = (b - matrix @ torch.linalg.pinv(matrix, rtol=1e-10) @ b).norm() / b.norm()
    for solver in (conjugate_gradient, minres, lanczos_solve):
        result = solver(Counted(matrix), b, rtol=1e-9)
        assert not result.ok and float(result.relative_residual) >= float(best) - 1e-9
    result = minres(Counted(matrix), b, rtol=1e-9)
    assert result.status is SolveStatus.STAGNATED
    assert float(result.relative_residual) == pytest.approx(float(best), rel=1e-6)
    assert normal_cg(Counted(matrix), b, rtol=1e-9).ok  # the normal equations always have a solution
    nothing = minres(lambda v: 0 * v, b)
    assert nothing.status is SolveStatus.STAGNATED and nothing.solution.abs().max() == 0


@every_solver
def test_ill_conditioned_1e10(solver):
    matrix, b = symmetric(torch.logspace(-10, 0, 30, dtype=torch.float64)), normals(30)
    result = solver(Counted(matrix), b, rtol=1e-10, max_steps=120)
    recomputed = float(true_residual(solver, matrix, b, result.solution))
    assert result.ok == (recomputed <= 1e-10)
    assert not (solver is conjugate_gradient and result.ok)  # 120 steps do not do it


@every_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_inputs_are_nonfinite_results(solver, bad):
    b = normals(30)
    poisoned = b.clone()
    poisoned[3] = bad
    for result in (solver(Counted(SPD), poisoned), solver(lambda v: v @ SPD * bad, b)):
        assert result.status is SolveStatus.NONFINITE and not result.ok
        assert result.solution.isnan().all()
        with pytest.raises(LinearSolveError, match="NONFINITE"):
            result.require()
    if solver is not lanczos_solve:
        assert solver(Counted(SPD), b, x0=poisoned).status is SolveStatus.NONFINITE


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_operator_that_turns_nonfinite_later(solver):
    calls = 0

    def matvec(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return v @ SPD if calls < 9 else v * float("nan")

    assert solver(matvec, normals(30), rtol=1e-12).status is SolveStatus.NONFINITE


@every_solver
def test_each_system_gets_what_it_gets_alone(solver):
    """A batch of easy, hard, impossible, NaN and zero systems: nobody disturbs a neighbour."""
    easy = symmetric(torch.linspace(1, 1.5, 40, dtype=torch.float64))
    hard = symmetric(torch.logspace(-2, 0, 40, dtype=torch.float64))
    mixed = symmetric(torch.linspace(-1, 1, 40, dtype=torch.float64))
    broken = easy * float("nan")
    matrices = torch.stack([easy, hard, mixed, broken, easy])
    b = normals(5, 40)
    b[4] = 0
    together = solver(lambda v: (matrices @ v[..., None])[..., 0], b, rtol=1e-9, max_steps=15)
    for i in range(5):
        alone = solver(
            lambda v, i=i: (matrices[i : i + 1] @ v[..., None])[..., 0], b[i : i + 1], rtol=1e-9, max_steps=15
        )
        assert together.status[i] is alone.status[0]
        assert int(together.num_steps[i]) == int(alone.num_steps)
        if alone.status[0] is not SolveStatus.NONFINITE:
            close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-9)
            close(together.solution[i], alone.solution[0])
    assert together.status[0] is SolveStatus.CONVERGED and together.status[3] is SolveStatus.NONFINITE


def test_result_explains_itself():
    result = conjugate_gradient(Counted(SPD), normals(2, 30), rtol=1e-12, max_steps=3)
    with pytest.raises(LinearSolveError, match=r"2 of 2 systems MAX_STEPS .*relative residual .*max_steps"):
        result.require()
    assert all(isinstance(s.value, str) and s.value.endswith(".") for s in SolveStatus)


# --- Steihaug -----------------------------------------------------------------------------------------------


def quadratic(matrix: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (x * (x @ matrix.T)).sum(-1) - (b * x).sum(-1)


def test_trust_radius():
    b = normals(3, 30)
    free = conjugate_gradient(Counted(SPD), b, rtol=1e-10).require()
    length = free.solution.norm(dim=-1)
    inside = conjugate_gradient(Counted(SPD), b, rtol=1e-10, trust_radius=2 * float(length.max())).require()
    torch.testing.assert_close(inside.solution, free.solution)
    radius = 0.3 * float(length.min())
    result = conjugate_gradient(Counted(SPD), b, rtol=1e-10, trust_radius=radius)
    assert (result.status == SolveStatus.TRUST_RADIUS).all()
    torch.testing.assert_close(result.solution.norm(dim=-1), torch.full((3,), radius, dtype=torch.float64))
    # At least as good as the Cauchy point (the best step along b), which guarantees trust-region convergence.
    model = functools.partial(quadratic, SPD, b)
    step = torch.minimum(
        (b * b).sum(-1) / (b * (b @ SPD.T)).sum(-1),
        torch.full((3,), radius, dtype=torch.float64) / b.norm(dim=-1),
    )
    assert (model(result.solution) <= model(step[:, None] * b) + 1e-12).all()


def test_negative_curvature_goes_to_the_trust_radius():
    b = normals(2, 30)
    result = conjugate_gradient(Counted(MIXED), b, trust_radius=5.0)
    assert (result.status == SolveStatus.NEGATIVE_CURVATURE).all()
    torch.testing.assert_close(result.solution.norm(dim=-1), torch.full((2,), 5.0).double())
    model = functools.partial(quadratic, MIXED, b)
    before = conjugate_gradient(Counted(MIXED), b).solution
    assert (model(result.solution) < model(before)).all()


# --- bad input ----------------------------------------------------------------------------------------------


@every_solver
def test_bad_input_is_named_with_a_remedy(solver):
    b = normals(30)
    with pytest.raises(ValueError, match=r"b: expected floating-point.*int64.*double"):
        solver(Counted(SPD), torch.arange(30))
    with pytest.raises(ValueError, match=r"matvec: expected.*got.*29.*leading axis"):
        solver(lambda v: v[..., :29], b)
    with pytest.raises(ValueError, match=r"matvec: expected torch.float64.*float32.*one dtype"):
        solver(lambda v: v.float(), b)
    with pytest.raises(ValueError, match=r"matvec: expected a callable.*Tensor.*lambda"):
        solver(SPD, b)
    with pytest.raises(ValueError, match=r"damping: expected.*batch shape"):
        solver(Counted(SPD), b, damping=torch.ones(3))
    with pytest.raises(ValueError, match="rtol: expected"):
        solver(Counted(SPD), b, rtol=-1.0)
    with pytest.raises(ValueError, match="max_steps: expected"):
        solver(Counted(SPD), b, max_steps=-1)
    with pytest.raises(ValueError, match="relative_damping: expected"):
        solver(Counted(SPD), b, relative_damping=-1.0)
    with pytest.raises(ValueError, match="x0"):
        solver(Counted(SPD), b, x0=normals(29))
    with pytest.raises(ValueError, match=r"b: expected.*float32"):
        solver(lambda v: v, {"a": b, "c": b.float()})


def test_trust_radius_arguments():
    with pytest.raises(ValueError, match="trust_radius: expected a positive"):
        conjugate_gradient(Counted(SPD), normals(30), trust_radius=-1.0)
    with pytest.raises(ValueError, match="no preconditioner"):
        conjugate_gradient(Counted(SPD), normals(30), trust_radius=1.0, preconditioner=lambda r: r)
