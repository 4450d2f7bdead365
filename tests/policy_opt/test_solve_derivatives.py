"""The solvers on pytrees, under vmap, and their derivatives against dense solves and finite differences."""

from __future__ import annotations

import warnings

import pytest
import torch
from solver_tools import SPD, Counted, every_solver, normals, symmetric
from torch import Tensor

from policy_opt import LinearSolveResult, conjugate_gradient
from policy_opt.solve_result import LinearSolveWarning


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
