"""What is built around an operator: preconditioners, the check of symmetry, the bridge to SciPy."""

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch
from solver_tools import MIXED, SPD, Counted, normals

from policy_opt import as_scipy_operator, conjugate_gradient, lanczos_solve, minres, normal_cg
from policy_opt.linear_operator import check_symmetric, diagonal_preconditioner, hutchinson_diagonal


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


def test_a_nonsymmetric_operator_is_refused():
    matrix, b = normals(30, 30, seed=4), normals(30)
    for solver in (conjugate_gradient, minres, lanczos_solve):
        with pytest.raises(ValueError, match=r"matvec: expected a symmetric operator.*rmatvec"):
            solver(Counted(matrix), b, check_symmetry=True)
        solver(Counted(SPD), b, check_symmetry=True).require()
    with pytest.raises(ValueError, match=r"symmetric operator because rmatvec is missing"):
        normal_cg(Counted(matrix), b)
    check_symmetric(Counted(MIXED.float()), b.float())
