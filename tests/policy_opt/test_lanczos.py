"""Lanczos: both powers against dense solves, every damping from one run, Ritz values, extreme eigenvalues."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy_opt import SolveStatus, extreme_eigenvalues, lanczos_solve, normal_cg


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return (q * eigenvalues.double()) @ q.T


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = symmetric(torch.cat([torch.linspace(-9, -0.1, 30), torch.linspace(0.01, 20, 50)]))


def dense(power: int, damping: float, b: Tensor) -> Tensor:
    matrix = torch.linalg.matrix_power(MATRIX, power) + damping * torch.eye(80).double()
    return torch.linalg.solve(matrix, b[..., None])[..., 0]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("damping", [0.0, 0.3, 40.0])
def test_solves_for_both_powers_match_the_dense_ones(power, damping):
    b = normals(3, 80)
    result = lanczos_solve(lambda v: v @ MATRIX, b, power=power, damping=damping, rtol=1e-7).require()
    torch.testing.assert_close(result.solution, dense(power, damping, b), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("power", [1, 2])
def test_every_damping_from_one_run(power):
    b, calls = normals(80), 0

    def matvec(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return v @ MATRIX

    run = lanczos_solve(matvec, b, power=power, damping=0.0, rtol=1e-30, max_steps=80)
    before = calls
    for damping in (0.0, 0.05, 1.0, 30.0, 1000.0):
        answer = run.for_damping(damping).require()
        torch.testing.assert_close(answer.solution, dense(power, damping, b), rtol=1e-5, atol=1e-6)
        assert float(answer.damping) == pytest.approx(damping) and answer.num_products == power
        exact_residual = (
            b - torch.linalg.matrix_power(MATRIX, power) @ answer.solution - damping * answer.solution
        )
        assert float(answer.relative_residual) == pytest.approx(
            float(exact_residual.norm() / b.norm()), abs=1e-9
        )
    assert calls - before == 5 * power
    relative = run.for_damping(relative_damping=0.01)
    assert float(relative.damping) == pytest.approx(0.01 * 20**power, rel=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_residual_history_is_the_residual_of_every_step(power):
    """Entry j equals the recomputed residual of a run stopped after j steps (the recurrences carry no
    solve)."""
    b = normals(80)
    history = lanczos_solve(
        lambda v: v @ MATRIX, b, power=power, damping=0.5, rtol=1e-30, max_steps=30
    ).residual_history
    for step in (1, 2, 3, 10, 29):
        stopped = lanczos_solve(lambda v: v @ MATRIX, b, power=power, damping=0.5, rtol=1e-30, max_steps=step)
        assert int(stopped.num_steps) == step and stopped.num_products == step + power
        assert float(stopped.relative_residual) == pytest.approx(float(history[step]), rel=1e-9)


def test_half_the_products_of_the_normal_equations():
    """(A^2 + damping) x = A b by Lanczos on A, one product a step, and by normal_cg, two products a step."""
    b, damping = normals(80), 1.0
    right = b @ MATRIX
    ours = lanczos_solve(lambda v: v @ MATRIX, right, power=2, damping=damping, rtol=1e-8).require()
    theirs = normal_cg(lambda v: v @ MATRIX, b, damping=damping, rtol=1e-8).require()
    torch.testing.assert_close(ours.solution, theirs.solution, rtol=1e-5, atol=1e-7)
    assert ours.num_products < theirs.num_products


def test_ritz_values_are_the_spectrum_and_belong_to_each_system():
    b = normals(2, 80)
    eigenvectors = torch.linalg.eigh(MATRIX).eigenvectors
    b[1] = eigenvectors[:, :4].sum(1)  # spans four eigenvectors: the Krylov space ends after four steps
    result = lanczos_solve(lambda v: v @ MATRIX, b, rtol=1e-12, max_steps=80)
    assert int(result.num_steps[1]) == 4 and result.status[1] is SolveStatus.CONVERGED
    torch.testing.assert_close(
        result.ritz_values[1, :4], torch.linalg.eigvalsh(MATRIX)[:4], rtol=0, atol=1e-8
    )
    assert result.ritz_values[1, 4:].isnan().all()
    torch.testing.assert_close(
        result.ritz_values[0, [0, -1]], torch.linalg.eigvalsh(MATRIX)[[0, -1]], rtol=0, atol=1e-8
    )
    own = result.basis[0]
    own = own[own.norm(dim=-1) > 0.5]
    torch.testing.assert_close(own @ own.T, torch.eye(len(own)).double(), rtol=0, atol=1e-12)


def test_float32_accuracy_of_the_contraction_at_a_relative_damping():
    """x'g at damping 1e-2 |A|^2 within 1e-5, products in float32 (the claim of the benchmark, here on a small
    case)."""
    matrix = symmetric(torch.linspace(-1, 1, 300).pow(3))
    g = normals(300)
    result = lanczos_solve(
        lambda v: v @ matrix.float(), g.float(), power=2, relative_damping=1e-2, max_steps=100, rtol=0
    )
    exact = g @ torch.linalg.solve(matrix @ matrix + result.damping.double() * torch.eye(300).double(), g)
    assert float(result.solution.double() @ g / exact) == pytest.approx(1, abs=1e-5)


def test_extreme_eigenvalues_enclose():
    ends = extreme_eigenvalues(
        lambda v: v @ MATRIX, torch.zeros(2, 80).double(), generator=torch.Generator().manual_seed(0)
    )
    eigenvalues = torch.linalg.eigvalsh(MATRIX)
    assert ends.num_products == 50
    for theta, error, exact in (
        (ends.smallest, ends.smallest_error, eigenvalues[0]),
        (ends.largest, ends.largest_error, eigenvalues[-1]),
    ):
        assert ((theta - exact).abs() <= error + 1e-10).all() and ((theta - exact).abs() < 1e-3).all()


def test_other_arguments_are_refused():
    b = normals(80)
    for kwargs, message in (
        ({"power": 3}, "power: expected 1 or 2"),
        ({"x0": b}, "x0: expected None"),
        ({"preconditioner": lambda r: r}, "preconditioner: expected None"),
    ):
        with pytest.raises(ValueError, match=message):
            lanczos_solve(lambda v: v @ MATRIX, b, **kwargs)
