"""The iterative solvers: every fault found in other libraries is a property here, and each test can fail."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policy_opt import (
    LinearSolveResult,
    SolveStatus,
    as_scipy_operator,
    conjugate_gradient,
    lanczos_solve,
    minres,
    normal_cg,
)
from policy_opt.linear_operator import (
    check_symmetric,
    diagonal_preconditioner,
    hutchinson_diagonal,
    linear_map,
)
from policy_opt.solve_result import LinearSolveError, LinearSolveWarning

SOLVERS = {"cg": conjugate_gradient, "normal_cg": normal_cg, "minres": minres, "lanczos": lanczos_solve}
INDEFINITE = {name: SOLVERS[name] for name in ("normal_cg", "minres", "lanczos")}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
every_indefinite_solver = pytest.mark.parametrize("solver", INDEFINITE.values(), ids=INDEFINITE.keys())


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix (p, p) with the given spectrum and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return ((q * eigenvalues) @ q.T).to(eigenvalues.dtype)


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counted:
    """v -> A v for rows, counting its calls."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.calls = matrix, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.calls += 1
        return v @ self.matrix.T


def true_residual(solver, matrix: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Relative residual of the system that the solver solves, computed here and not by the library."""
    if solver is normal_cg:
        matrix, b = matrix.T @ matrix, b @ matrix
    return (b - x @ matrix.T).norm(dim=-1) / b.norm(dim=-1)


SPD = symmetric(torch.linspace(1, 50, 30, dtype=torch.float64))
MIXED = symmetric(torch.cat([torch.linspace(-9, -1, 12), torch.linspace(0.5, 20, 18)]).double())


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


def test_hutchinson_diagonal_is_exact_for_a_diagonal_and_usable_otherwise():
    diagonal = torch.linspace(1, 9, 30, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    exact = hutchinson_diagonal(lambda v: diagonal * v, diagonal, num_probes=1, generator=generator)
    torch.testing.assert_close(exact, diagonal)
    noisy = hutchinson_diagonal(Counted(SPD), diagonal, num_probes=400, generator=generator)
    assert (noisy - SPD.diagonal()).abs().max() < 0.15 * SPD.diagonal().max()
    matrix = SPD + torch.diag(1000 * torch.rand(30, generator=generator).double())
    estimate = hutchinson_diagonal(Counted(matrix), diagonal, num_probes=100, generator=generator)
    b = normals(30)
    assert (
        conjugate_gradient(Counted(matrix), b, preconditioner=diagonal_preconditioner(estimate)).num_steps
        < conjugate_gradient(Counted(matrix), b).num_steps
    )


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


# --- failures are statuses, never success -------------------------------------------------------------------


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


# --- pytrees, vmap, derivatives -----------------------------------------------------------------------------


@every_solver
def test_pytree_right_hand_side(solver):
    b = {"w": normals(4, 5), "b": normals(10)}

    def matvec(v):
        out = torch.cat([v["b"], v["w"].reshape(-1)]) @ SPD.T
        return {"b": out[:10], "w": out[10:].reshape(4, 5)}

    result = solver(matvec, b, rtol=1e-12).require()
    flat = torch.linalg.solve(SPD, torch.cat([b["b"], b["w"].reshape(-1)]))
    torch.testing.assert_close(result.solution["w"].reshape(-1), flat[10:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.solution["b"], flat[:10], rtol=1e-9, atol=1e-11)


@every_solver
def test_inside_vmap_with_a_batched_operator(solver):
    matrices = torch.stack([symmetric(torch.linspace(1, 5 + i, 8, dtype=torch.float64), i) for i in range(4)])
    b = normals(4, 8)
    result = torch.func.vmap(lambda a, c: solver(lambda v: a @ v, c, rtol=1e-11))(matrices, b)
    assert isinstance(result, LinearSolveResult) and result.ok and result.status.shape == (4,)
    torch.testing.assert_close(result.solution, torch.linalg.solve(matrices, b), rtol=1e-8, atol=1e-10)


def loss_through(solver, matrix: Tensor, b: Tensor, damping: Tensor) -> Tensor:
    x = solver(lambda v: v @ matrix.mT, b, damping=damping, rtol=1e-14, max_steps=400).solution
    return (x**3).sum() + x.sin().sum()


@every_solver
def test_gradient_through_a_solve_matches_finite_differences(solver):
    """Float64, 1e-8, for A, b and the damping; central differences at two step sizes."""
    generator = torch.Generator().manual_seed(3)
    matrix = symmetric(torch.linspace(1, 4, 6, dtype=torch.float64)).requires_grad_()
    b, damping = normals(6).requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinearSolveWarning)  # 1e-14 may stagnate just above, at rounding
        gradients = torch.autograd.grad(loss_through(solver, matrix, b, damping), (matrix, b, damping))
    for index, (at, gradient) in enumerate(zip((matrix, b, damping), gradients, strict=True)):
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        direction = direction + direction.mT if direction.ndim == 2 else direction
        expected = float((gradient * direction).sum())
        for step in (1e-4, 2e-4):
            values = []
            for sign in (2, 1, -1, -2):  # fourth order
                point = [matrix.detach(), b.detach(), damping.detach()]
                point[index] = point[index] + sign * step * direction
                values.append(float(loss_through(solver, *point)))
            difference = (-values[0] + 8 * values[1] - 8 * values[2] + values[3]) / (12 * step)
            assert difference == pytest.approx(expected, rel=1e-8, abs=1e-8)


@every_solver
def test_transforms_of_a_solve_match_those_of_the_dense_solve(solver):
    matrices = torch.stack([symmetric(torch.linspace(1, 5 + i, 4, dtype=torch.float64), i) for i in range(3)])
    b = normals(3, 4)

    def ours(a: Tensor, c: Tensor) -> Tensor:
        return solver(lambda v: a @ v, c, rtol=1e-13, atol=1e-15).solution

    def dense(a: Tensor, c: Tensor) -> Tensor:
        return torch.linalg.solve(a, c[..., None])[..., 0]

    for transform in (
        lambda f: torch.func.jacrev(f, argnums=(0, 1))(matrices[0], b[0]),
        lambda f: torch.func.jacfwd(f, argnums=(0, 1))(matrices[0], b[0]),
        lambda f: torch.func.vmap(torch.func.grad(lambda a, c: (f(a, c) ** 2).sum(), argnums=(0, 1)))(
            matrices, b
        ),
        lambda f: torch.func.grad(lambda a: (torch.func.vmap(f)(a, b) ** 2).sum())(matrices),
    ):
        for left, right in zip(
            *map(torch.utils._pytree.tree_leaves, map(transform, (ours, dense))), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def test_second_derivatives_of_a_closed_over_operator_raise_instead_of_being_wrong():
    b = normals(30)

    def loss(a: Tensor) -> Tensor:
        return (conjugate_gradient(lambda v: a @ v, b).solution ** 2).sum()

    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.func.hessian(loss)(SPD)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.func.jacrev(torch.func.jacrev(lambda a: conjugate_gradient(lambda v: a @ v, b[:4]).solution))(
            SPD[:4, :4]
        )
    matrix = SPD.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(matrix), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


def test_a_failed_solve_inside_a_gradient_warns():
    b = normals(30).requires_grad_()
    x = conjugate_gradient(Counted(SPD), b, max_steps=2).solution
    with pytest.warns(LinearSolveWarning, match="MAX_STEPS"):
        x.sum().backward()


def test_no_graph_is_kept_through_the_iterations():
    matrix = SPD.clone().requires_grad_()
    x = conjugate_gradient(lambda v: v @ matrix.T, normals(30), rtol=1e-12).solution
    seen, stack = set(), [x.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    assert len(seen) < 15  # unrolled, 30 steps would leave hundreds of nodes


# --- SciPy bridge -------------------------------------------------------------------------------------------


def test_scipy_operator_gives_gmres_and_blocks():
    operator = as_scipy_operator(Counted(MIXED), normals(30))
    b = normals(30)
    x, info = spla.gmres(operator, b.numpy(), rtol=1e-12, restart=40)
    assert info == 0
    np.testing.assert_allclose(x, torch.linalg.solve(MIXED, b).numpy(), atol=1e-9)
    block = normals(30, 4).numpy()
    np.testing.assert_allclose(operator @ block, MIXED.numpy() @ block, atol=1e-12)
    tree = {"a": torch.zeros(10).double(), "b": torch.zeros(4, 5).double()}
    doubled = as_scipy_operator(lambda v: {k: 2 * leaf for k, leaf in v.items()}, tree)
    np.testing.assert_allclose(doubled @ block, 2 * block)
    with pytest.raises(ValueError, match="one vector"):
        as_scipy_operator(Counted(MIXED), normals(2, 30))


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


def test_a_nonsymmetric_operator_is_refused():
    matrix, b = normals(30, 30, seed=4), normals(30)
    for solver in (conjugate_gradient, minres, lanczos_solve):
        with pytest.raises(ValueError, match=r"matvec: expected a symmetric operator.*rmatvec"):
            solver(Counted(matrix), b, check_symmetry=True)
        solver(Counted(SPD), b, check_symmetry=True).require()
    with pytest.raises(ValueError, match=r"symmetric operator because rmatvec is missing"):
        normal_cg(Counted(matrix), b)
    check_symmetric(Counted(MIXED.float()), b.float())


def test_trust_radius_arguments():
    with pytest.raises(ValueError, match="trust_radius: expected a positive"):
        conjugate_gradient(Counted(SPD), normals(30), trust_radius=-1.0)
    with pytest.raises(ValueError, match="no preconditioner"):
        conjugate_gradient(Counted(SPD), normals(30), trust_radius=1.0, preconditioner=lambda r: r)


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


# --- the package as a library -----------------------------------------------------------------------------------


def test_import_is_light():
    """Nothing but torch, numpy and scipy is loaded, in under 0.2 s beyond torch."""
    code = (
        "import sys, time, torch; start = time.perf_counter();"
        "from policy_opt import hvp, conjugate_gradient, normal_cg, minres, lanczos_solve, root_vjp;"
        "print(time.perf_counter() - start, [m for m in ('mujoco', 'gymnasium', 'matplotlib') if m in "
        "sys.modules])"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            " ", 1
        )
        for _ in range(2)
    ]
    assert min(float(seconds) for seconds, _ in outputs) < 0.2
    assert outputs[0][1].strip() == "[]"
