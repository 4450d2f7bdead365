"""Block conjugate gradients: dense answers, fewer products, derivatives, dependent right-hand sides, and refusals."""

from __future__ import annotations

import pytest
import torch
from solver_tools import SPD, Counted, normals, symmetric
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from policy_opt import LinearOperator, SolveStatus, conjugate_gradient

HARD = symmetric(torch.logspace(0, 3, 120).double())


def test_a_block_needs_fewer_products_the_more_right_hand_sides_it_has():
    """In exact arithmetic at most p / s steps, and no more than one by one."""
    before = 300
    for size in (1, 4, 12, 40):
        b, operator = normals(size, 120), Counted(HARD)
        answer = conjugate_gradient(operator, b, block=True, rtol=1e-9).require()
        torch.testing.assert_close(answer.solution, torch.linalg.solve(HARD, b.T).T, rtol=1e-5, atol=1e-8)
        assert operator.calls == answer.num_products < before
        before = answer.num_products
    assert before <= 120 / 40 + 2
    one = conjugate_gradient(Counted(HARD), normals(1, 120), rtol=1e-9)
    same = conjugate_gradient(Counted(HARD), normals(1, 120), rtol=1e-9, block=True)
    assert abs(int(one.num_steps[0]) - int(same.num_steps[0])) <= 6  # of 200, at condition 1e3


def test_the_residuals_are_those_of_conjugate_gradients_for_a_block_of_one():
    b = normals(3, 1, 30)
    block = conjugate_gradient(Counted(SPD), b, rtol=1e-10, max_steps=8, block=True)
    plain = conjugate_gradient(Counted(SPD), b, rtol=1e-10, max_steps=8)
    torch.testing.assert_close(block.residual_history, plain.residual_history, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(block.solution, plain.solution, rtol=1e-8, atol=1e-12)


def test_dependent_zero_and_many_right_hand_sides():
    b = normals(5, 30)
    b[1], b[2], b[3] = b[0], 0, b[0] - 2 * b[4]
    answer = conjugate_gradient(Counted(SPD), b, block=True, rtol=1e-10).require()
    torch.testing.assert_close(answer.solution, torch.linalg.solve(SPD, b.T).T, rtol=1e-8, atol=1e-10)
    many = normals(50, 30)  # more than unknowns
    answer = conjugate_gradient(Counted(SPD), many, block=True, rtol=1e-10).require()
    torch.testing.assert_close(answer.solution, torch.linalg.solve(SPD, many.T).T, rtol=1e-8, atol=1e-10)
    assert answer.num_products <= 3
    scaled = b * torch.tensor([1.0, 1e-100, 1, 1e90, 1e-30], dtype=torch.float64)[:, None]
    answer = conjugate_gradient(Counted(SPD), scaled, block=True, rtol=1e-10).require()
    exact = torch.linalg.solve(SPD, scaled.T).T
    assert ((answer.solution - exact).norm(dim=-1) <= 1e-8 * exact.norm(dim=-1)).all()


def test_several_blocks_each_with_its_operator_and_damping():
    matrices, b = torch.stack([SPD, 2 * SPD, SPD + torch.eye(30).double()]), normals(3, 4, 30)
    damping = torch.tensor([0.0, 0.3, 2.0]).double()[:, None].expand(3, 4)
    answer = conjugate_gradient(lambda v: v @ matrices, b, damping=damping, block=True, rtol=1e-11).require()
    shifted = matrices + damping[:, :1, None] * torch.eye(30).double()
    torch.testing.assert_close(answer.solution, b @ torch.linalg.inv(shifted), rtol=1e-8, atol=1e-10)
    inside = vmap(lambda m, c: conjugate_gradient(lambda v: v @ m, c, block=True, rtol=1e-11).solution)
    torch.testing.assert_close(inside(matrices, b), b @ torch.linalg.inv(matrices), rtol=1e-8, atol=1e-10)
    relative = conjugate_gradient(lambda v: v @ SPD, b, relative_damping=0.1, block=True)
    assert (relative.damping == relative.damping[:, :1]).all() and relative.ok


@pytest.mark.parametrize(
    "modes", [(grad,), (jacfwd,), (jacfwd, grad), (jacrev, jacfwd), (jacfwd, jacfwd, grad)]
)
def test_derivatives_through_a_block(modes):
    b, direction = normals(2, 3, 30), symmetric(torch.linspace(-1, 1, 30).double(), 7)

    def ours(e: Tensor) -> Tensor:
        operator = LinearOperator.from_matrix(SPD + e * direction, symmetric=True)
        return (
            conjugate_gradient(operator, b * (1 + e), damping=e**2, rtol=1e-13, block=True)
            .solution.sin()
            .sum()
        )

    def closure(e: Tensor) -> Tensor:
        matvec = lambda v: v @ (SPD + e * direction)  # noqa: E731
        return (
            conjugate_gradient(matvec, b * (1 + e), damping=e**2, rtol=1e-13, block=True).solution.sin().sum()
        )

    def dense(e: Tensor) -> Tensor:
        matrix = SPD + e * direction + e**2 * torch.eye(30).double()
        return (b * (1 + e) @ torch.linalg.inv(matrix)).sin().sum()

    e = torch.tensor(0.1).double()
    if len(modes) == 1:
        torch.testing.assert_close(modes[0](closure)(e), modes[0](dense)(e), rtol=1e-8, atol=1e-10)
    for mode in modes:
        ours, dense = mode(ours), mode(dense)
    torch.testing.assert_close(ours(e), dense(e), rtol=1e-8, atol=1e-9)


def test_what_a_block_refuses_and_reports():
    indefinite, b = symmetric(torch.linspace(-1, 5, 30).double()), normals(3, 30)
    answer = conjugate_gradient(Counted(indefinite), b, block=True)
    assert (answer.status == SolveStatus.NEGATIVE_CURVATURE).all()
    p = answer.direction
    torch.testing.assert_close(((p @ indefinite) * p).sum(-1) / (p * p).sum(-1), answer.min_curvature)
    assert (answer.min_curvature < 0).all()
    b[1, 3] = torch.nan
    names = [s.name for s in conjugate_gradient(Counted(SPD), b, block=True).status]
    assert names == ["CONVERGED", "NONFINITE", "CONVERGED"]
    with pytest.raises(ValueError, match=r"damping: expected one number for each block of 3.*got several"):
        conjugate_gradient(Counted(SPD), normals(3, 30), block=True, damping=torch.arange(3).double())
    for more in ({"preconditioner": lambda r: r}, {"trust_radius": 1.0}):
        with pytest.raises(ValueError, match="block: expected no preconditioner and no trust_radius"):
            conjugate_gradient(Counted(SPD), normals(3, 30), block=True, **more)
