"""The conformance suite: our solvers hold all rules, and solvers with a known fault break the rule of that fault."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_opt import conjugate_gradient, gmres, lanczos_solve, lsmr, minres, normal_cg
from policy_opt.testing import ALL_OPTIONS, RULES, check_solver
from policy_opt.testing_systems import KINDS, random_system, systems, with_spectrum


def as_least_squares(matvec, b, *, rmatvec, like, **kwargs):
    """`normal_cg`, which is for square systems, on rows of zeros and with columns of zeros to spare."""
    rows, columns = b.shape[-1], like.shape[-1]
    size = max(rows, columns)

    def padded(vector: Tensor, length: int) -> Tensor:
        return torch.nn.functional.pad(vector, (0, length - vector.shape[-1]))

    if "x0" in kwargs:
        kwargs["x0"] = padded(kwargs["x0"], size)
    answer = normal_cg(
        lambda v: padded(matvec(v[..., :columns]), size),
        padded(b, size),
        rmatvec=lambda w: padded(rmatvec(w[..., :rows]), size),
        **kwargs,
    )
    return dataclasses.replace(answer, solution=answer.solution[..., :columns])


NO_START = ALL_OPTIONS - {"x0", "preconditioner"}
SOLVERS: dict[str, tuple[Callable[..., Any], Any, frozenset[str]]] = {
    "cg": (conjugate_gradient, "positive_definite", ALL_OPTIONS),
    "block cg": (
        functools.partial(conjugate_gradient, block=True),
        "positive_definite",
        ALL_OPTIONS - {"preconditioner"},
    ),
    "minres": (minres, "symmetric", ALL_OPTIONS),
    "lanczos": (lanczos_solve, "symmetric", NO_START),
    "gmres": (gmres, "square", ALL_OPTIONS),
    "lsmr": (lsmr, "least_squares", ALL_OPTIONS - {"preconditioner"}),
    "normal_cg": (as_least_squares, "least_squares", ALL_OPTIONS - {"preconditioner"}),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_our_solvers_hold_a_sample_of_the_suite(name):
    solver, kind, options = SOLVERS[name]
    report = check_solver(solver, kind, options=options, num_random=2, every=13)
    assert report.ok, str(report)
    assert report.num_cases >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_our_solvers_hold_the_whole_suite(name):
    """Seven solvers, over 9000 solves, 560 of them of random systems, half in each precision. (With 150 random
    systems a precision, 2100 in all, they held it, too; that takes some minutes.)"""
    solver, kind, options = SOLVERS[name]
    report = check_solver(solver, kind, options=options, num_random=40)
    assert report.ok, str(report)
    assert report.num_cases >= 800


def almost_out_of_reach(seed):
    """A singular (n, n) of at most 8 equations, b (3, n) that hardly has a part in its range, and sigma."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(2, 9, (), generator=generator))
    rank = int(torch.randint(1, size, (), generator=generator))
    smallest = -3 * float(torch.rand((), generator=generator))
    spectrum = torch.cat([torch.logspace(smallest, 0, rank), torch.zeros(size - rank)]).double()
    matrix = with_spectrum(spectrum, seed)
    range_of = torch.linalg.eigh(matrix)[1][:, size - rank :]
    b = torch.randn(3, size, generator=generator, dtype=torch.float64)
    share = 10.0 ** (-3 * torch.rand(3, 1, generator=generator, dtype=torch.float64))
    b = b - (1 - share) * (b @ range_of @ range_of.T)
    return matrix, b, 10.0**smallest


@pytest.mark.parametrize("name", ["cg", "block cg", "minres", "lanczos", "gmres"])
def test_the_rounding_of_a_product_is_no_curvature(name):
    """p'Ap of a p that A maps to 0 is rounding, of the size of |A|, of which b has shown a small part: with the
    largest p'Ap in place of |A|, conjugate gradients answered a third of these systems by an x 1e15 times too
    long."""
    for seed in range(250):
        matrix, b, least = almost_out_of_reach(seed)
        x = SOLVERS[name][0](lambda v, A=matrix: v @ A.T, b, rtol=1e-6).solution
        assert bool((x.norm(dim=-1) <= 100 * b.norm(dim=-1) / least).all()), seed


# --- negative controls --------------------------------------------------------------------------------------


def liar(matvec, b, **more):
    answer = minres(matvec, b, **more)
    return dataclasses.replace(answer, status_code=torch.zeros_like(answer.status_code))


def sloppy(matvec, b, *, rtol, **more):
    return minres(matvec, b, rtol=100 * rtol, **more)


def blind_to_scale(matvec, b, *, rtol, **more):
    """An absolute tolerance, as some libraries have it."""
    return minres(matvec, b, rtol=rtol, atol=1e-12, **more)


def keeps_a_part_of_the_start(matvec, b, *, x0=None, **more):
    answer = minres(matvec, b, **more)
    return answer if x0 is None else dataclasses.replace(answer, solution=answer.solution + 1e-3 * x0)


def one_status_for_all(matvec, b, **more):
    answer = minres(matvec, b, **more)
    return dataclasses.replace(answer, status_code=answer.status_code.amax().expand(answer.status_code.shape))


def leaks_beside_nan(matvec, b, **more):
    """A neighbour that broke down changes what is called converged by half a per cent."""
    answer = minres(matvec, b, **more)
    factor = torch.where(b.isnan().any(), 1.005, 1.0)
    return dataclasses.replace(answer, solution=answer.solution * factor)


def with_what_failed(change: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """MINRES with x = change(matvec, b, x) where it did not converge."""

    def solver(matvec, b, **more):
        answer = minres(matvec, b, **more)
        x = torch.where(answer.converged[..., None], answer.solution, change(matvec, b, answer.solution))
        return dataclasses.replace(answer, solution=x)

    return solver


def slow_from_a_start(matvec, b, *, rtol, x0=None, **more):
    return minres(matvec, b, x0=x0, rtol=rtol if x0 is None else 9 * rtol, **more)


def raises(matvec, b, **more):
    raise ZeroDivisionError


def undamped(solver: Callable[..., Any]) -> Callable[..., Any]:
    return lambda matvec, b, *, damping=0.0, **more: solver(matvec, b, **more)


FAULTS: dict[str, tuple[Callable[..., Any], Any, set[str]]] = {  # solver, kind, rules that it breaks
    "liar": (liar, "symmetric", {"honest", "steps"}),
    "sloppy": (sloppy, "symmetric", {"honest"}),
    "blind to scale": (blind_to_scale, "symmetric", {"honest", "scale"}),
    "keeps a part of the start": (keeps_a_part_of_the_start, "symmetric", {"zero", "start"}),
    "slow from a start": (slow_from_a_start, "symmetric", {"honest"}),
    "one status for all": (one_status_for_all, "symmetric", {"breakdown"}),
    "leaks beside NaN": (leaks_beside_nan, "symmetric", {"breakdown"}),
    "explodes": (
        with_what_failed(lambda A, b, x: 1e10 * (1 + x)),
        "symmetric",
        {"bounded", "least squares"},
    ),
    "long in the null space, which no residual sees but for rounding": (
        with_what_failed(lambda A, b, x: x + 1e20 * (b - A(x))),
        "symmetric",
        {"bounded"},
    ),
    "conjugate gradients on indefinite systems": (conjugate_gradient, "symmetric", {"solves"}),
    "raises": (raises, "symmetric", {"answers"}),
    "undamped, definite": (undamped(conjugate_gradient), "positive_definite", {"damping", "honest"}),
    "undamped, symmetric": (undamped(minres), "symmetric", {"damping", "honest"}),
    "undamped, square": (undamped(gmres), "square", {"damping", "honest"}),
    "undamped, least squares": (undamped(lsmr), "least_squares", {"damping", "honest"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_by_their_rules(name):
    solver, kind, rules = FAULTS[name]
    options = SOLVERS["lsmr"][2] if kind == "least_squares" else ALL_OPTIONS
    every = 3 if solver is slow_from_a_start else 8  # it is often better than it says
    report = check_solver(solver, kind, options=options, num_random=2, every=every, dtypes=(torch.float64,))
    assert rules <= set(report.broken), str(report)
    if "undamped" in name or name in ("raises", "leaks beside NaN"):
        assert rules == set(report.broken), "and no other rule"


def test_the_material_and_the_report():
    assert [len(systems(kind)) for kind in KINDS] == [18, 26, 32, 38]
    for seed in range(50):
        system, b, _ = random_system("least_squares", seed)
        assert b.shape == (2, len(system.matrix)) and system.matrix.abs().max() < 1e36
    report = check_solver(minres, "symmetric", num_random=0, every=13, dtypes=(torch.float64,))
    assert "all hold" in str(report) and set(report.cases) == set(RULES) and report.cases["honest"] > 10
    with pytest.raises(ValueError, match="kind: expected one of"):
        check_solver(minres, "hermitian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="options: expected some of"):
        check_solver(minres, "symmetric", options={"guess"})
