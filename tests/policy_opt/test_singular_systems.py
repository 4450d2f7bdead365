"""MINRES-QLP on singular, inconsistent systems, and every solver far from 1: known answers, nothing huge, no lie."""

from __future__ import annotations

import math

import pytest
import torch
from solver_tools import SPD, Counted, normals, symmetric
from torch import Tensor

from policy_opt import SolveStatus, conjugate_gradient, gmres, lanczos_solve, lsmr, minres, normal_cg

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def shortest(matrix: Tensor, b: Tensor, rank_tolerance: float) -> Tensor:
    return b.double() @ torch.linalg.pinv(matrix.double(), rtol=rank_tolerance, hermitian=True)


def path_laplacian(size: int) -> Tensor:
    difference = torch.eye(size)[1:] - torch.eye(size)[:-1]
    return (difference.T @ difference).double()


@BOTH
def test_the_shortest_least_squares_solution_of_a_diagonal_system(dtype):
    answer = minres(lambda v: v * torch.tensor([1.0, 2, 3, 0], dtype=dtype), torch.ones(4, dtype=dtype))
    assert answer.status is SolveStatus.STAGNATED and float(answer.relative_residual) == pytest.approx(0.5)
    exact = torch.tensor([1, 1 / 2, 1 / 3, 0], dtype=dtype)
    torch.testing.assert_close(answer.solution, exact, rtol=1e-6, atol=1e-6)


@BOTH
def test_the_laplacian_of_a_path(dtype):
    matrix, b = path_laplacian(50).to(dtype), normals(4, 50).to(dtype)
    answer = minres(Counted(matrix), b, rtol=1e-6 if dtype == torch.float32 else 1e-12)
    exact = shortest(matrix, b, 1e-6)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-7
    assert (answer.status == SolveStatus.STAGNATED).all()
    assert ((answer.solution - exact).norm(dim=-1) <= tolerance * exact.norm(dim=-1)).all()
    consistent = minres(Counted(matrix), b - b.mean(-1, keepdim=True), rtol=1e-4).require()
    torch.testing.assert_close(consistent.solution.double(), exact, rtol=0, atol=2e-2)


@BOTH
@pytest.mark.parametrize("condition", [1e1, 1e3])
def test_random_singular_systems_reach_the_least_squares_residual(dtype, condition):
    """Random sizes, ranks and signs: the residual within 1 % of the least, x no longer than the shortest by 1 %."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(15):
        size = int(torch.randint(5, 60, (), generator=generator))
        rank = int(torch.randint(1, size, (), generator=generator))
        spectrum = torch.logspace(-math.log10(condition), 0, rank).double()
        spectrum = spectrum * torch.randn(rank, generator=generator).sign()
        matrix = symmetric(torch.cat([spectrum, torch.zeros(size - rank).double()]), seed).to(dtype)
        b = normals(3, size, seed=seed).to(dtype)
        answer = minres(Counted(matrix), b, rtol=1e-7 if dtype == torch.float32 else 1e-11)
        exact = shortest(matrix, b, 1e-2 / condition)
        residual = [
            (b.double() - x.double() @ matrix.double()).norm(dim=-1) for x in (answer.solution, exact)
        ]
        assert not answer.converged.any()
        assert (residual[0] <= 1.01 * residual[1]).all()
        assert (answer.solution.norm(dim=-1) <= 1.01 * exact.norm(dim=-1)).all()


@BOTH
def test_no_solver_returns_worse_than_its_start_on_a_singular_system(dtype):
    matrix, b = path_laplacian(40).to(dtype), normals(3, 40).to(dtype)
    for solver in (conjugate_gradient, minres, lanczos_solve, gmres):
        answer = solver(Counted(matrix), b, rtol=1e-7)
        assert not answer.converged.any()
        x, product = answer.solution, answer.solution @ matrix
        is_closer = (b - product).norm(dim=-1) <= 1.001 * b.norm(dim=-1)
        is_lower = (x * (product / 2 - b)).sum(
            -1
        ) < 0  # the energy, of which conjugate gradients take the least
        assert (is_closer | (is_lower & (solver is conjugate_gradient))).all() and x.norm() < 1e6, solver


def test_inside_a_batch_a_singular_system_disturbs_nobody():
    singular = symmetric(torch.cat([torch.zeros(4), torch.linspace(-3, 5, 16)]).double())
    regular = symmetric(torch.linspace(1, 5, 20).double())
    matrices, b = torch.stack([singular, regular, singular]), normals(3, 20)
    b[2] = b[2] @ singular
    answer = minres(lambda v: (matrices @ v[..., None])[..., 0], b, rtol=1e-10)
    names = [status.name for status in answer.status]
    assert names == ["STAGNATED", "CONVERGED", "CONVERGED"]
    torch.testing.assert_close(answer.solution[1], torch.linalg.solve(regular, b[1]), rtol=1e-8, atol=1e-9)


# --- numbers far from 1 -------------------------------------------------------------------------------------

SYMMETRIC = {
    "cg": conjugate_gradient,
    "minres": minres,
    "normal_cg": normal_cg,
    "lanczos": lanczos_solve,
    "gmres": gmres,
    "lsmr": lsmr,
}


@BOTH
@pytest.mark.parametrize("solver", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_operators_and_right_hand_sides_of_any_scale(solver, dtype):
    """|A| and |b| from 1e-30 to 1e30: solved where the precision holds the solution, never CONVERGED where not."""
    unscaled = torch.linalg.solve(SPD, normals(2, 30).T).T
    least, most = (1e-30, 1e30) if dtype == torch.float32 else (1e-300, 1e300)
    for of_A in (-30, -15, 0, 15, 30):
        for of_b in (-30, -12, 0, 12, 30):
            matrix, b = (SPD * 10.0**of_A).to(dtype), (normals(2, 30) * 10.0**of_b).to(dtype)
            answer = solver(Counted(matrix), b, rtol=1e-5)
            exact = unscaled * 10.0 ** (of_b - of_A)
            is_right = (answer.solution.double() - exact).norm() <= 1e-3 * exact.norm()
            assert bool(is_right) if answer.ok else True, (of_A, of_b, "CONVERGED")
            if least < float(exact.abs().max()) < most:
                assert answer.ok and is_right, (of_A, of_b, answer.describe())


@pytest.mark.parametrize("solver", SYMMETRIC.values(), ids=SYMMETRIC.keys())
@pytest.mark.parametrize("size", [1e-165, 1e-300, 1e150, 1e300])
def test_right_hand_sides_at_the_ends_of_float64(solver, size):
    b = normals(2, 30)
    answer = solver(Counted(SPD), b * size, rtol=1e-10).require()
    torch.testing.assert_close(answer.solution / size, torch.linalg.solve(SPD, b.T).T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("solver", [s for s in SYMMETRIC.values() if s is not lanczos_solve])
def test_a_zero_right_hand_side_with_a_start_holds_no_batch(solver):
    operator, b = Counted(SPD), normals(3, 30)
    b[1] = 0
    kwargs = {"rmatvec": operator} if solver in (lsmr, normal_cg) else {}
    answer = solver(operator, b, x0=normals(3, 30), rtol=1e-6, **kwargs).require()
    assert operator.calls < 130 and answer.solution[1].abs().max() == 0
