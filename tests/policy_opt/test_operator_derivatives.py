"""Derivatives of solves with an operator: every order, every nesting, against closed forms."""

from __future__ import annotations

import functools
import itertools
import warnings

import pytest
import torch
from solver_tools import SOLVERS, normals, symmetric
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

from policy_opt import (
    LinearOperator,
    conjugate_gradient,
    custom_root,
    gmres,
    lanczos_solve,
    lsmr,
    minres,
    normal_cg,
)
from policy_opt.solve_result import LinearSolveWarning

A = symmetric(torch.linspace(1, 3, 3, dtype=torch.float64))
EYE, B, U = torch.eye(3, dtype=torch.float64), normals(3), normals(3, 3, seed=5)
POINT, DIRECTION = torch.tensor([0.0, 0.5]).double(), torch.tensor([1.0, 0.3]).double()


def system(e: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric matrix at e_0 = 0, moved by a matrix that is not; and a right-hand side."""
    return A + 0.3 * e[0] * U + 0.1 * e[1] ** 2 * U @ U.T, B + e.sum() * B.flip(0)


def through(solver):
    def solution(e: Tensor) -> Tensor:
        matrix, b = system(e)
        operator = LinearOperator.from_callable(lambda m, v: m @ v, matrix, B, symmetric=True)
        return solver(operator, b, rtol=1e-13).solution

    return solution


def exact(e: Tensor) -> Tensor:
    """By `inv`: some mixed and batched derivatives of torch.linalg.solve are wrong in torch 2.13."""
    matrix, b = system(e)
    return torch.linalg.inv(matrix) @ b


def dense_solve(e: Tensor) -> Tensor:
    return torch.linalg.solve(*system(e))


def scalar(f):
    return lambda e: (f(e).reshape(-1).sin() * torch.arange(1, f(e).numel() + 1)).sum()


TRANSFORMS = {
    "grad": (1, lambda f: grad(scalar(f))),
    "jacrev": (1, jacrev),
    "jacrev, one row at a time": (1, lambda f: jacrev(f, chunk_size=1)),
    "jacfwd": (1, jacfwd),
    "vjp": (1, lambda f: lambda e: (lambda y, pull: pull(torch.ones_like(y))[0])(*vjp(f, e))),
    "jvp": (1, lambda f: lambda e: jvp(f, (e,), (DIRECTION,))[1]),
    "hessian": (2, lambda f: hessian(scalar(f))),
    "vmap": (0, lambda f: lambda e: vmap(f)(torch.stack([e, 2 * e])).sum(0)),
}


def nestings(depth: int, max_order: int) -> list[tuple[str, ...]]:
    names = itertools.chain(*(itertools.product(TRANSFORMS, repeat=k) for k in range(1, depth + 1)))
    return [n for n in names if 0 < sum(TRANSFORMS[name][0] for name in n) <= max_order]


def transformed(f, names: tuple[str, ...]) -> Tensor:
    for name in names:
        f = TRANSFORMS[name][1](f)
    return f(POINT)


@functools.cache
def expected_of(names: tuple[str, ...]) -> Tensor:
    transformed(dense_solve, names)  # the claim is for what raises no error there
    return transformed(exact, names)


def check_nesting(solution, names: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at its first forward mode
        expected = expected_of(names)
        torch.testing.assert_close(transformed(solution, names), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("names", nestings(2, 2), ids=" of ".join)
def test_every_nesting_of_two_transforms(names):
    check_nesting(through(conjugate_gradient), names)


ROOT = custom_root(lambda x, m, b: m @ x - b)(lambda m, b: torch.linalg.solve(m, b))
ALL_SOLVERS = SOLVERS | {"gmres": gmres, "lsmr": lsmr}
SOLUTIONS = {name: through(solver) for name, solver in ALL_SOLVERS.items()} | {
    "root": lambda e: ROOT(*system(e))
}


@pytest.mark.slow
@pytest.mark.parametrize("solution", SOLUTIONS.values(), ids=SOLUTIONS.keys())
def test_every_nesting_of_three_transforms(solution):
    for names in nestings(3, 3):
        check_nesting(solution, names)


POLES = {
    "cg": lambda e: conjugate_gradient(LinearOperator.from_matrix(A + e * EYE), B, rtol=1e-13).solution,
    "damping": lambda e: minres(LinearOperator.from_matrix(A), B, damping=e, rtol=1e-13).solution,
    "normal_cg": lambda e: normal_cg(LinearOperator.from_matrix(A + e * EYE), B, rtol=1e-13).solution,
    "lanczos": lambda e: lanczos_solve(LinearOperator.from_matrix(A).damped(e), B, rtol=1e-13).solution,
    "gmres": lambda e: gmres(LinearOperator.from_matrix(A + e * EYE), B, rtol=1e-13).solution,
    "lsmr": lambda e: lsmr(LinearOperator.from_matrix(A + e * EYE), B, rtol=1e-13).solution,
    "root": custom_root(lambda x, e: A @ x + e * x - B)(lambda e: torch.linalg.solve(A + e * EYE, B)),
}


@pytest.mark.parametrize("solution", POLES.values(), ids=POLES.keys())
@pytest.mark.parametrize(
    "modes",
    [modes for k in (1, 2, 3) for modes in itertools.product((jacfwd, jacrev), repeat=k)],
    ids=lambda modes: "-".join(mode.__name__ for mode in modes),
)
def test_the_derivatives_of_a_resolvent(solution, modes):
    """d^k/de^k (A + e)^-1 b = (-1)^k k! (A + e)^-(k+1) b, for k = 1, 2, 3."""
    e, expected = torch.tensor(0.2, dtype=torch.float64), torch.linalg.solve(A + 0.2 * EYE, B)
    for k, mode in enumerate(modes, 1):
        solution, expected = mode(solution), -k * torch.linalg.solve(A + 0.2 * EYE, expected)
    torch.testing.assert_close(solution(e), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ALL_SOLVERS.values(), ids=ALL_SOLVERS.keys())
def test_plain_autograd_three_times_and_forward_mode(solver):
    def third(f) -> Tensor:
        e = POINT.clone().requires_grad_()
        value = f(e).sum()
        for _ in range(2):
            value = torch.autograd.grad(value, e, create_graph=True)[0].sin().sum()
        return torch.autograd.grad(value, e)[0]

    torch.testing.assert_close(third(through(solver)), third(exact), rtol=1e-8, atol=1e-8)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(through(solver)(forward_ad.make_dual(POINT, DIRECTION))).tangent
    torch.testing.assert_close(tangent, jacrev(exact)(POINT) @ DIRECTION, rtol=1e-9, atol=1e-9)


SETTINGS = {
    "relative damping": dict(relative_damping=1e-2),
    "a start": dict(x0=normals(3, seed=9)),
    "atol, which is of b alone": dict(atol=1e-10, rtol=0.0),
    "checked symmetry": dict(check_symmetry=True),
    "a preconditioner": dict(preconditioner=LinearOperator.from_diagonal(1 / A.diagonal())),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_with_every_setting_and_over_a_batch_of_operators(solver, setting):
    """vmap over the operator with one b, and its second derivative."""
    foreign = {lanczos_solve: ("x0", "preconditioner"), normal_cg: ("check_symmetry",)}.get(solver, ())
    if set(setting) & set(foreign):
        pytest.skip(f"{solver.__name__} does not take it")
    matrices = torch.stack([A, A + EYE, 2 * A + EYE])

    def solution(matrix: Tensor) -> Tensor:
        return solver(LinearOperator.from_matrix(matrix), B, **{"rtol": 1e-13} | setting).solution

    damping = vmap(lambda m: solver(LinearOperator.from_matrix(m), B, **{"rtol": 1e-13} | setting).damping)
    shifts = damping(matrices).double()

    def dense(matrix: Tensor, shift: Tensor) -> Tensor:
        if solver is normal_cg:
            return torch.linalg.inv(matrix.T @ matrix + shift * EYE) @ (matrix.T @ B)
        return torch.linalg.inv(matrix + shift * EYE) @ B

    close = torch.testing.assert_close
    close(vmap(solution)(matrices), vmap(dense)(matrices, shifts), rtol=1e-8, atol=1e-8)
    ours = vmap(hessian(lambda m: solution(m).sin().sum()))(matrices)
    theirs = vmap(hessian(lambda m, s: dense(m, s).sin().sum()))(matrices, shifts)
    close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("is_batched", [True, False])
def test_a_batch_of_systems_each_with_its_damping(solver, is_batched):
    matrices = torch.stack([A, A + EYE, 2 * A + EYE]) if is_batched else A
    b, damping = normals(3, 3, seed=4), torch.tensor([0.1, 0.2, 0.3]).double()

    def ours(m: Tensor, b: Tensor, d: Tensor) -> Tensor:
        return solver(LinearOperator.from_matrix(m), b, damping=d, rtol=1e-13).solution.sin().sum()

    def dense(m: Tensor, b: Tensor, d: Tensor) -> Tensor:
        left, right = (m.mT @ m, b[..., None]) if solver is normal_cg else (m, b[..., None])
        right = m.mT @ right if solver is normal_cg else right
        return (torch.linalg.inv(left + d[:, None, None] * EYE) @ right).sin().sum()

    for transform in (
        lambda f: grad(f, argnums=(0, 1, 2)),
        lambda f: jacfwd(grad(f, argnums=(0, 1, 2)), argnums=2),
        lambda f: jacrev(jacfwd(f, argnums=2), argnums=0),
    ):
        torch.testing.assert_close(
            transform(ours)(matrices, b, damping),
            transform(dense)(matrices, b, damping),
            rtol=1e-8,
            atol=1e-9,
        )


def test_of_an_operator_and_of_a_pytree():
    """grad, vmap and jacrev take the operator itself; b a pytree, the operator a Hessian."""
    operator = LinearOperator.from_matrix(A)
    gradient = grad(lambda a: minres(a, B, rtol=1e-13).solution.square().sum())(operator)
    expected = grad(lambda m: (torch.linalg.inv(m) @ B).square().sum())(A)
    torch.testing.assert_close(gradient.parameters, expected)
    theta = {"a": normals(2), "b": normals(3, seed=2)}

    def loss(t: dict[str, Tensor], scale: Tensor) -> Tensor:
        return scale * (t["a"] ** 4).sum() + (t["a"].sum() * t["b"]).sin().sum() + (t["b"] ** 2).sum()

    def ours(scale: Tensor) -> Tensor:
        x = minres(LinearOperator.hessian(loss, theta, scale), theta, rtol=1e-13).solution
        return torch.cat(pytree.tree_leaves(x))

    def dense(scale: Tensor) -> Tensor:
        matrix = LinearOperator.hessian(loss, theta, scale).to_dense()
        return torch.linalg.inv(matrix) @ torch.cat(pytree.tree_leaves(theta))

    scale = torch.tensor(2.0).double()
    for mode in (jacfwd, jacrev):
        torch.testing.assert_close(
            mode(jacfwd(ours))(scale), mode(jacfwd(dense))(scale), rtol=1e-8, atol=1e-8
        )


FACTORS = [normals(5, 3, seed=k) for k in range(4)]


def singular(e: Tensor) -> tuple[Tensor, Tensor]:
    """A (5, 5) of rank 3 whose null spaces move with e, and its pseudo-inverse."""
    u, v = FACTORS[0] + e * FACTORS[1], FACTORS[2] + e.sin() * FACTORS[3]
    return u @ v.T, v @ torch.linalg.inv(v.T @ v) @ torch.linalg.inv(u.T @ u) @ u.T


@pytest.mark.parametrize(
    "modes", [(jacfwd,), (jacrev,), (jacfwd, jacfwd), (jacrev, jacfwd), (jacrev, jacrev)]
)
@pytest.mark.parametrize("is_consistent", [True, False])
@pytest.mark.parametrize("solver", [normal_cg, lsmr])
def test_derivatives_of_a_singular_system_are_the_pseudo_inverses(modes, is_consistent, solver):
    """Golub and Pereyra 1973, by differentiating the full-rank factorisation instead."""
    b, e = normals(5, seed=8), torch.tensor(0.3).double()

    def right(e: Tensor) -> Tensor:
        return singular(e)[0] @ b if is_consistent else b

    ours = lambda e: solver(LinearOperator.from_matrix(singular(e)[0]), right(e), rtol=1e-13).solution  # noqa: E731
    exact = lambda e: singular(e)[1] @ right(e)  # noqa: E731
    torch.testing.assert_close(ours(e), exact(e), rtol=1e-10, atol=1e-10)

    def closure(e: Tensor) -> Tensor:
        a = singular(e)[0]
        return solver(lambda v: v @ a.T, right(e), rmatvec=lambda w: w @ a, rtol=1e-13).solution

    if len(modes) == 1:
        torch.testing.assert_close(modes[0](closure)(e), modes[0](exact)(e), rtol=1e-8, atol=1e-8)
    for mode in modes:
        ours, exact = mode(ours), mode(exact)
    torch.testing.assert_close(ours(e), exact(e), rtol=1e-8, atol=1e-8)


def test_what_an_operator_may_not_close_over_is_refused():
    def hidden(e: Tensor) -> Tensor:
        operator = LinearOperator.from_callable(lambda m, v: m @ v + e * v, A, B, symmetric=True)
        return conjugate_gradient(operator, B).solution.sum()

    e = torch.tensor(0.0).double()
    for transform in (
        grad(hidden),
        jacfwd(hidden),
        jacrev(jacfwd(hidden)),
        lambda e: vmap(grad(hidden))(e[None]),
    ):
        with pytest.raises(ValueError, match="closes over a differentiated tensor; pass that tensor"):
            transform(e)
    with pytest.raises(ValueError, match="closes over a differentiated tensor"):
        hidden(e.clone().requires_grad_())
    with pytest.raises(ValueError, match="closes over a tensor of a vmap"):
        vmap(hidden)(e[None])


def test_what_is_no_function_is_not_differentiated():
    """A solution cut at a trust radius, or taken from another run's basis."""

    def operators(m: Tensor) -> Tensor:
        return conjugate_gradient(LinearOperator.from_matrix(m), B, trust_radius=0.1).solution.sum()

    def closures(m: Tensor) -> Tensor:
        return conjugate_gradient(lambda v: v @ m, B, trust_radius=0.1).solution.sum()

    def basis(m: Tensor) -> Tensor:
        return lanczos_solve(LinearOperator.from_matrix(m), B).for_damping(0.5).solution.sum()

    def basis_of_closure(m: Tensor) -> Tensor:
        return lanczos_solve(lambda v: v @ m, B).for_damping(0.5).solution.sum()

    for f in (operators, closures, basis, basis_of_closure):
        for mode in (grad, jacfwd, jacrev):
            with pytest.raises(RuntimeError, match=r"no function that can be differentiated.*detach"):
                mode(f)(A)
        assert f(A) == f(A).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ALL_SOLVERS.values(), ids=ALL_SOLVERS.keys())
def test_an_absolute_tolerance_is_one_of_b_alone(solver, dtype):
    """A cotangent of 1e-6 lies below atol = 1e-4 and was once solved by zero."""
    a, b = A.to(dtype), B.to(dtype)
    for is_operator in (True, False):

        def f(m: Tensor) -> Tensor:
            matvec = LinearOperator.from_matrix(m) if is_operator else lambda v: v @ m.mT  # noqa: B023
            needs_transpose = not is_operator and solver in (gmres, lsmr)  # noqa: B023
            more = {"rmatvec": lambda w: w @ m} if needs_transpose else {}
            return 1e-6 * solver(matvec, b, rtol=0.0, atol=1e-4, **more).solution.sum()

        exact = grad(lambda m: 1e-6 * (torch.linalg.inv(m) @ b).sum())(a)
        for value in (grad(f)(a), jacfwd(f)(a)):
            torch.testing.assert_close(value, exact, rtol=3e-3, atol=1e-10, check_dtype=False)


def test_a_failed_solve_inside_a_derivative_warns():
    matrix, b = symmetric(torch.linspace(1, 500, 30).double()), normals(30)
    with pytest.warns(LinearSolveWarning, match="MAX_STEPS"):
        grad(lambda m: conjugate_gradient(LinearOperator.from_matrix(m), b, max_steps=2).solution.sum())(
            matrix
        )


def derivative_by_jvp(f):
    return lambda e: jvp(f, (e,), (torch.ones_like(e),))[1]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", ["operator", "closure", "gmres", "lsmr", "root"])
def test_a_compiled_program_calls_the_solver_as_it_is(name):
    """Right, or an error; once the tangent was lost where a compiled function pushed one through a closure."""
    f = {
        "operator": lambda e: minres(LinearOperator.from_matrix(A + e * EYE), B, rtol=1e-13).solution.sum(),
        "closure": lambda e: minres(lambda v: v @ (A + e * EYE), B, rtol=1e-13).solution.sum(),
        "gmres": lambda e: gmres(
            lambda v: v @ (A + e * EYE), B, rmatvec=lambda w: w @ (A + e * EYE), rtol=1e-13
        ).solution.sum(),
        "lsmr": lambda e: lsmr(
            lambda v: v @ (A + e * EYE), B, rmatvec=lambda w: w @ (A + e * EYE), rtol=1e-13
        ).solution.sum(),
        "root": lambda e: POLES["root"](e).sum(),
    }[name]
    e = torch.tensor(0.2, dtype=torch.float64)
    inverse = torch.linalg.inv(A + e * EYE)
    slope = -(inverse @ inverse @ B).sum()
    compiled = torch.compile(f, backend="eager")
    torch.testing.assert_close(compiled(e), (inverse @ B).sum())
    leaf = e.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], slope)
    torch.testing.assert_close(torch.compile(derivative_by_jvp(f), backend="eager")(e), slope)
    try:
        inside = torch.compile(lambda e: grad(f)(e), backend="eager")(e)
    except AssertionError as error:  # torch 2.13, of every function that its compiler does not trace
        assert "False != True" in str(error)
    else:
        torch.testing.assert_close(inside, slope)
    torch.compiler.reset()
    with pytest.raises(Exception, match="disable"):
        torch.compile(f, backend="eager", fullgraph=True)(e)
