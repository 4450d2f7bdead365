"""Linear systems whose answers are known: the material of `policy_opt.testing`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["positive_definite", "symmetric", "square", "least_squares"]
KINDS: tuple[Kind, ...] = ("positive_definite", "symmetric", "square", "least_squares")


@dataclass(frozen=True)
class System:
    """A (m, n), in float64, and what is known of it."""

    name: str
    matrix: Tensor
    condition: float
    """Largest over smallest singular value; infinite where A is singular."""


def with_spectrum(eigenvalues: Tensor, seed: int) -> Tensor:
    """Symmetric, with these eigenvalues and random eigenvectors."""
    size = len(eigenvalues)
    q = torch.linalg.qr(normals(seed, size, size))[0]
    matrix = (q * eigenvalues.double()) @ q.T
    return (matrix + matrix.T) / 2


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _system(name: str, matrix: Tensor) -> System:
    s = torch.linalg.svdvals(matrix)
    is_singular = s[-1] <= 1e-14 * len(s) * s[0]
    return System(name, matrix, math.inf if is_singular else float(s[0] / s[-1]))


def laplacian(size: int) -> Tensor:
    """Of a path with both ends held: 2 on the diagonal, -1 beside it."""
    ones = torch.ones(size - 1, dtype=torch.float64)
    return 2 * torch.eye(size).double() - torch.diag(ones, 1) - torch.diag(ones, -1)


def _definite() -> Iterator[System]:
    spectra = {
        "a multiple of the identity": torch.full((12,), 3.0),
        "evenly spread 1 to 10": torch.linspace(1, 10, 20),
        "three clusters": torch.tensor([1.0] * 6 + [5.0] * 6 + [9.0] * 6),
        "logarithmic, condition 1e2": torch.logspace(-2, 0, 24),
        "logarithmic, condition 1e4": torch.logspace(-4, 0, 24),
        "logarithmic, condition 1e10": torch.logspace(-10, 0, 20),
        "one large outlier": torch.cat([torch.linspace(1, 2, 19), torch.tensor([1e6])]),
        "one small outlier": torch.cat([torch.linspace(1, 2, 19), torch.tensor([1e-6])]),
        "a single equation": torch.tensor([7.0]),
        "two equations": torch.tensor([1.0, 4.0]),
    }
    for seed, (name, spectrum) in enumerate(spectra.items()):
        yield _system(name, with_spectrum(spectrum, seed))
    yield _system("diagonal", torch.diag(torch.linspace(1, 30, 30).double()))
    yield _system("Laplacian of a path, held", laplacian(30))
    index = torch.arange(1, 7).double()
    yield _system("Hilbert, 6", 1 / (index[:, None] + index - 1))


def _indefinite() -> Iterator[System]:
    spectra = {
        "half negative": torch.cat([-torch.linspace(1, 5, 10), torch.linspace(1, 8, 12)]),
        "plus and minus 1": torch.tensor([1.0] * 8 + [-1.0] * 7),
        "one negative": torch.cat([torch.tensor([-3.0]), torch.linspace(1, 9, 20)]),
        "negative definite": -torch.logspace(-2, 0, 20),
        "indefinite, condition 1e4": torch.logspace(-4, 0, 20) * (-1.0) ** torch.arange(20),
        "indefinite, condition 1e10": torch.logspace(-10, 0, 20) * (-1.0) ** torch.arange(20),
    }
    for seed, (name, spectrum) in enumerate(spectra.items(), 20):
        yield _system(name, with_spectrum(spectrum, seed))
    block = torch.cat([torch.cat([torch.eye(8), torch.ones(8, 1)], 1), torch.ones(1, 9)], 0).double()
    block[8, 8] = 0
    yield _system("saddle point", block)
    yield _system("exchange", torch.eye(10).flip(0).double())


def _singular() -> Iterator[System]:
    difference = torch.eye(30)[1:] - torch.eye(30)[:-1]
    yield _system("Laplacian of a path, free", (difference.T @ difference).double())
    yield _system("diag(1, 2, 3, 0)", torch.diag(torch.tensor([1.0, 2, 3, 0]).double()))
    yield _system("rank 4 of 20", with_spectrum(torch.cat([torch.linspace(1, 5, 4), torch.zeros(16)]), 31))
    spectrum = torch.cat([torch.logspace(-2, 0, 15), torch.zeros(5)])
    yield _system("singular, semi-definite, condition 1e2", with_spectrum(spectrum, 32))
    yield _system("zero", torch.zeros(6, 6).double())


def _nonsymmetric() -> Iterator[System]:
    yield _system("random plus 8 I", normals(40, 30, 30) + 8 * torch.eye(30).double())
    yield _system("triangular", torch.triu(0.3 * normals(41, 20, 20)).fill_diagonal_(2.0))
    yield _system("Jordan block at 2", 2 * torch.eye(15).double() + torch.diag(torch.ones(14).double(), 1))
    advection = laplacian(25) + torch.diag(torch.full((24,), 0.7).double(), 1)
    yield _system("advection and diffusion", advection - torch.diag(torch.full((24,), 0.7).double(), -1))
    yield _system("cyclic shift", torch.roll(torch.eye(12), 1, 0).double())
    quarter = torch.tensor([[0.0, -1], [1, 0]]).double()
    yield _system("rotations", torch.block_diag(*[(1 + 0.2 * i) * quarter for i in range(6)]))


def _rectangular() -> Iterator[System]:
    yield _system("tall", normals(50, 30, 12))
    yield _system("wide", normals(51, 12, 30))
    yield _system("a column", normals(52, 9, 1))
    yield _system("a row", normals(53, 1, 9))
    q, r = torch.linalg.qr(normals(54, 25, 10))[0], torch.linalg.qr(normals(55, 10, 10))[0]
    yield _system("tall, condition 1e3", (q * torch.logspace(-3, 0, 10).double()) @ r)
    deficient = normals(56, 20, 10)
    deficient[:, 3] = deficient[:, 4]
    yield _system("tall, columns repeated", deficient)


def systems(kind: Kind) -> list[System]:
    """Every system that a solver of this kind may be asked."""
    found = list(_definite()) + list(_singular())
    if kind != "positive_definite":
        found += _indefinite()
    if kind in ("square", "least_squares"):
        found += _nonsymmetric()
    if kind == "least_squares":
        found += _rectangular()
    return found


def random_system(kind: Kind, seed: int) -> tuple[System, Tensor, float]:
    """A system of random size, rank, signs, condition and scale, a right-hand side (2, m), consistent or not, of
    another scale, and the power of ten of its solution: all within 1e-30 to 1e30."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    size, columns = whole(1, 30), whole(1, 30)
    rank = whole(1, size)
    spectrum = torch.logspace(-whole(0, 6), 0, rank).double()
    if kind != "positive_definite":
        spectrum = spectrum * torch.randn(rank, generator=generator).sign()
    matrix = with_spectrum(torch.cat([spectrum, torch.zeros(size - rank).double()]), seed)
    if kind == "square" and whole(0, 1):
        matrix = matrix @ torch.linalg.qr(normals(seed + 1, size, size))[0]
    if kind == "least_squares":
        matrix = matrix @ normals(seed + 1, size, columns)
    b = normals(seed + 2, 2, size)
    if whole(0, 1):
        b = normals(seed + 2, 2, matrix.shape[1]) @ matrix.T  # consistent
    of_A, of_b = whole(-30, 30), whole(-30, 30)
    system = _system(f"random {seed}: rank {rank} of {size}, 1e{of_A}, b 1e{of_b}", matrix)
    return System(system.name, matrix * 10.0**of_A, system.condition), b * 10.0**of_b, of_b - of_A
