"""What was once wrong in silence: derivatives, tiny numbers, used-up Krylov spaces, inputs."""

from __future__ import annotations

import warnings

import pytest
import torch
from solver_tools import SOLVERS, SPD, Counted, every_solver, normals
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from policy_opt import custom_root, extreme_eigenvalues, lanczos_solve, minres, normal_cg, root_jvp, root_vjp
from policy_opt.curvature import MODES
from policy_opt.linear_operator import check_symmetric, diagonal_preconditioner, hutchinson_diagonal
from policy_opt.solve_result import LinearSolveWarning

EYE, B = torch.eye(30).double(), normals(30)
ZERO, ONE = torch.zeros(()).double(), torch.ones(()).double()


def shifted(solver):
    return lambda e: solver(lambda v: v @ (SPD + e * EYE), B, rtol=1e-12).solution.sum()


SECOND = {
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f))(ZERO),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f))(ZERO),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f))(ZERO),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(ZERO),
    "grad of jvp": lambda f: grad(lambda e: jvp(f, (e,), (ONE,))[1])(ZERO),
    "jvp of grad": lambda f: jvp(grad(f), (ZERO,), (ONE,))[1],
    "jvp of jvp": lambda f: jvp(lambda e: jvp(f, (e,), (ONE,))[1], (ZERO,), (ONE,))[1],
    "grad of vjp": lambda f: grad(lambda e: vjp(f, e)[1](ONE)[0])(ZERO),
}


@every_solver
@pytest.mark.parametrize("transform", SECOND.values(), ids=SECOND.keys())
def test_a_second_derivative_of_a_closure_raises_and_is_never_zero(solver, transform):
    with pytest.raises(RuntimeError, match="first derivatives only"):
        transform(shifted(solver))
    with pytest.raises(RuntimeError, match="first derivatives only"):  # a plausible number hides the zero
        transform(lambda e: shifted(solver)(e) + e.exp())


@every_solver
def test_first_derivatives_by_every_transform(solver):
    inverse = torch.linalg.inv(SPD)
    exact = -(inverse @ inverse @ B).sum()
    f = shifted(solver)
    for value in (
        vjp(f, ZERO)[1](ONE)[0],
        jacrev(f, chunk_size=1)(ZERO),
        jvp(f, (ZERO,), (ONE,))[1],
        grad(f)(ZERO),
        jacfwd(f)(ZERO),
    ):
        torch.testing.assert_close(value, exact, rtol=1e-8, atol=1e-10)


@every_solver
def test_vmap_over_the_operator_alone(solver):
    shifts = torch.linspace(0, 2, 3).double()
    exact = torch.stack([torch.linalg.solve(SPD + e * EYE, B) for e in shifts])
    solve = lambda e: solver(lambda v: v @ (SPD + e * EYE), B, rtol=1e-12).solution  # noqa: E731
    torch.testing.assert_close(vmap(solve)(shifts), exact, rtol=1e-8, atol=1e-10)
    tangent = jvp(vmap(solve), (shifts,), (torch.ones(3).double(),))[1]
    slope = torch.stack([-torch.linalg.solve(SPD + e * EYE, x) for e, x in zip(shifts, exact, strict=True)])
    torch.testing.assert_close(tangent, slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        torch.diagonal(jacfwd(vmap(solve))(shifts), dim1=0, dim2=2).T, slope, rtol=1e-8, atol=1e-10
    )
    relative = lambda e: solver(lambda v: v @ (SPD + e * EYE), B, relative_damping=1e-2).solution  # noqa: E731
    for row, e in zip(vmap(relative)(shifts), shifts, strict=True):
        torch.testing.assert_close(row, relative(e), rtol=1e-4, atol=1e-6)
    if solver is not normal_cg:
        checked = vmap(lambda e: solver(lambda v: v @ (SPD + e * EYE), B, check_symmetry=True).solution)
        torch.testing.assert_close(checked(shifts), exact, rtol=1e-4, atol=1e-5)


def test_the_hessian_of_the_sum_of_a_root():
    root = custom_root(lambda theta, q: theta**3 + theta - q)(
        lambda q: torch.stack([_cubic_root(x) for x in q])
    )
    q = torch.tensor([0.5, 2.0]).double()
    theta = root(q)
    exact = torch.diag(-6 * theta / (3 * theta**2 + 1) ** 3)
    torch.testing.assert_close(hessian(lambda p: root(p).sum())(q), exact, rtol=1e-8, atol=1e-10)


def _cubic_root(q: Tensor) -> Tensor:
    theta = torch.zeros_like(q)
    for _ in range(60):
        theta = theta - (theta**3 + theta - q) / (3 * theta**2 + 1)
    return theta


def test_linearize_is_not_offered():
    assert "linearize" not in MODES


def test_extreme_eigenvalues_of_a_used_up_krylov_space():
    samples = normals(5, 300, seed=4)
    ends = extreme_eigenvalues(lambda v: (v @ samples.T) @ samples / 5 + 0.1 * v, torch.zeros(300).double())
    exact = torch.linalg.eigvalsh(samples @ samples.T / 5)[-1] + 0.1
    assert float(ends.smallest) == pytest.approx(0.1, abs=1e-10) and 0 < float(ends.smallest_error) < 1e-9
    assert (ends.largest - exact).abs() <= ends.largest_error and float(ends.largest_error) < 1e-9
    one = extreme_eigenvalues(lambda v: v, torch.zeros(2, 50))
    torch.testing.assert_close(one.smallest, torch.ones(2), check_dtype=False)
    torch.testing.assert_close(one.largest, torch.ones(2), check_dtype=False)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_right_hand_sides_are_solved_in_the_same_steps(solver, dtype):
    matrix, b = SPD.to(dtype), normals(3, 30).to(dtype)
    ordinary = solver(Counted(matrix), b, rtol=1e-5).require()
    exponents = (-100, 90) if dtype == torch.float32 else (-600, -1000, 900)  # 2^-100 = 8e-31
    for exponent in exponents:
        scaled = solver(Counted(matrix), torch.ldexp(b, torch.tensor(exponent)), rtol=1e-5).require()
        assert scaled.num_steps.tolist() == ordinary.num_steps.tolist()
        torch.testing.assert_close(
            torch.ldexp(scaled.solution, torch.tensor(-exponent)), ordinary.solution, rtol=1e-4, atol=1e-6
        )
    x0 = {} if solver is lanczos_solve else {"x0": normals(3, 30).to(dtype)}
    b[1] = 0
    operator = Counted(matrix)
    zero = solver(operator, b, rtol=1e-5, **x0).require()
    assert zero.solution[1].abs().max() == 0 and operator.calls < 200


def test_a_root_derivative_tells_what_it_is_worth():
    theta, psi = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.0]).double()
    good = root_vjp(lambda t, p: t - p, theta, psi, torch.ones(2).double())
    assert float(good.optimality_norm) == 0 and float(good.relative_residual) < 1e-10
    with pytest.warns(LinearSolveWarning, match="not a root"):
        off = root_vjp(lambda t, p: t**3 - p, theta + 0.05, psi, torch.ones(2).double())
    assert float(off.optimality_norm) > 0.1
    for product, vector in ((root_vjp, torch.ones(2).double()), (root_jvp, torch.ones(2).double())):
        with pytest.warns(LinearSolveWarning, match="singular"):
            flat = product(
                lambda t, p: torch.stack([t[0] - t[1], t[1] - t[0]]) + (p - psi), psi * 0 + 1, psi, vector
            )
        assert float(flat.relative_residual) > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root_vjp(lambda t, p: t - p, theta + 1, psi, theta, tolerance=float("inf"))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_small_inputs_are_named(solver):
    with pytest.raises(ValueError, match="rtol: expected a number >= 0, got None"):
        solver(Counted(SPD), B, rtol=None)
    with pytest.raises(ValueError, match=r"real floating-point tensors.*complex128.*twice the size"):
        solver(Counted(SPD), B.to(torch.complex128))
    with pytest.raises(ValueError, match=r"dense tensor.*to_dense"):
        solver(Counted(SPD), B.to_sparse())


def test_other_small_inputs_are_named():
    with pytest.raises(ValueError, match="num_steps: expected"):
        extreme_eigenvalues(Counted(SPD), B, num_steps=0)
    with pytest.raises(ValueError, match="num_probes: expected"):
        hutchinson_diagonal(Counted(SPD), B, num_probes=0)
    with pytest.raises(ValueError, match="num_probes: expected"):
        check_symmetric(Counted(SPD), B, num_probes=0)
    with pytest.raises(ValueError, match="diagonal: expected finite numbers, not all zero"):
        diagonal_preconditioner(torch.zeros(3))
    root = custom_root(lambda t, q: t - q)(lambda q: q * torch.ones(()))
    with pytest.raises(ValueError, match="q: expected positional"):
        root(q=torch.ones(()))
    with pytest.raises(ValueError, match="Python floats"):
        root(1.0)
    with pytest.raises(ValueError, match="theta_hat alone"):
        custom_root(lambda t, q: t - q)(lambda q: (q, 3))(torch.ones(()))
    assert minres(Counted(SPD), B).ok
