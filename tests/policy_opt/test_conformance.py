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
from policy_opt.testing_systems import KINDS, random_system, systems


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
    """Seven solvers, over 9000 solves, 560 of them of random systems, half in each precision. (With 250 random
    systems a precision, 3000 in all, they held it, too; that takes ten minutes.)"""
    solver, kind, options = SOLVERS[name]
    report = check_solver(solver, kind, options=options, num_random=40)
    assert report.ok, str(report)
    assert report.num_cases >= 800


# --- negative controls --------------------------------------------------------------------------------------


def test_faults_are_found_by_their_rules():
    def broken_rules(solver: Callable[..., Any], kind: Any = "symmetric") -> set[str]:
        return set(check_solver(solver, kind, num_random=2, every=8, dtypes=(torch.float64,)).broken)

    def liar(matvec, b, **more):
        answer = minres(matvec, b, **more)
        return dataclasses.replace(answer, status_code=torch.zeros_like(answer.status_code))

    assert {"honest", "steps"} <= broken_rules(liar)

    def sloppy(matvec, b, *, rtol, **more):
        return minres(matvec, b, rtol=100 * rtol, **more)

    assert "honest" in broken_rules(sloppy)

    def blind_to_scale(matvec, b, *, rtol, **more):  # an absolute tolerance, as some libraries have it
        return minres(matvec, b, rtol=rtol, atol=1e-12, **more)

    assert {"honest", "scale"} <= broken_rules(blind_to_scale)

    def without_start(matvec, b, *, x0=None, **more):
        answer = minres(matvec, b, **more)
        return answer if x0 is None else dataclasses.replace(answer, solution=answer.solution + 1e-3 * x0)

    assert {"zero", "start"} & broken_rules(without_start)

    def one_stop_for_all(matvec, b, **more):
        answer = minres(matvec, b, **more)
        return dataclasses.replace(
            answer, status_code=answer.status_code.amax().expand(answer.status_code.shape)
        )

    assert "breakdown" in broken_rules(one_stop_for_all)

    def explodes(matvec, b, **more):
        answer = minres(matvec, b, **more)
        bad = ~answer.converged[..., None]
        return dataclasses.replace(
            answer, solution=torch.where(bad, 1e10 * (1 + answer.solution), answer.solution)
        )

    assert {"bounded", "least squares"} <= broken_rules(explodes)

    def long_in_the_null_space(matvec, b, **more):  # which no residual sees but for rounding
        answer = minres(matvec, b, **more)
        far = answer.solution + 1e20 * (b - matvec(answer.solution))
        return dataclasses.replace(
            answer, solution=torch.where(answer.converged[..., None], answer.solution, far)
        )

    assert "bounded" in broken_rules(long_in_the_null_space)

    for solver, kind in (
        (conjugate_gradient, "positive_definite"),
        (minres, "symmetric"),
        (gmres, "square"),
        (lsmr, "least_squares"),
    ):

        def undamped(matvec, b, *, damping=0.0, **more):
            return solver(matvec, b, **more)  # noqa: B023

        options = SOLVERS["lsmr"][2] if solver is lsmr else ALL_OPTIONS
        report = check_solver(undamped, kind, options=options, num_random=0, every=8, dtypes=(torch.float64,))
        assert set(report.broken) == {"damping", "honest"}, str(report)

    def slow_from_a_start(matvec, b, *, rtol, x0=None, **more):
        return minres(matvec, b, x0=x0, rtol=rtol if x0 is None else 9 * rtol, **more)

    report = check_solver(slow_from_a_start, "symmetric", num_random=0, every=3, dtypes=(torch.float64,))
    assert "honest" in report.broken

    def raises(matvec, b, **more):
        raise ZeroDivisionError

    assert broken_rules(raises) == {"answers"}

    def cg_on_indefinite(matvec, b, **more):
        return conjugate_gradient(matvec, b, **more)

    assert "solves" in broken_rules(cg_on_indefinite)


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
