"""The solvers by name, matrices with a known spectrum, and the residual computed here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy_opt import conjugate_gradient, lanczos_solve, minres, normal_cg

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
