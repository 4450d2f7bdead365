"""The solvers on the CPU and on another device: the same answers; the host waits no more for more steps."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from solver_tools import MIXED, SOLVERS, SPD, normals
from stand_in_device import DEVICE, watch
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from policy_opt import (
    LinearOperator,
    as_scipy_operator,
    conjugate_gradient,
    diagonal_preconditioner,
    extreme_eigenpairs,
    extreme_eigenvalues,
    gmres,
    hutchinson_diagonal,
    lanczos_solve,
    log_determinant,
    lsmr,
    minres,
    normal_cg,
    stochastic_trace,
)
from policy_opt.linear_operator import check_symmetric
from policy_opt.testing import ALL_OPTIONS, check_solver

B = normals(3, 30)
CASES = {
    **SOLVERS,
    "gmres": gmres,
    "lsmr": lsmr,
    "cg_damped": partial(conjugate_gradient, damping=torch.tensor(0.5)),
    "cg_relative": partial(conjugate_gradient, relative_damping=1e-2),
    "cg_radius": partial(conjugate_gradient, trust_radius=0.1),
    "cg_preconditioned": partial(conjugate_gradient, preconditioner=lambda r: r / 20),
    "cg_checked": partial(conjugate_gradient, check_symmetry=True),
    "minres_damped": partial(minres, damping=0.5),
    "lanczos_squared": partial(lanczos_solve, power=2, relative_damping=1e-2),
    "lsmr_damped": partial(lsmr, damping=0.5),
    "normal_cg_relative": partial(normal_cg, relative_damping=1e-2),
    "gmres_damped": partial(gmres, damping=0.5),
}
# The host waits once for whether b is far from 1 and once for whether the answer was verified; normal equations wait
# for the operator's size and symmetry, too, checks and eigenvalues for themselves.
MOST_READ_BACKS = {name: 3 for name in CASES} | {
    "normal_cg": 5, "lsmr": 5, "lsmr_damped": 6, "cg_checked": 4, "lanczos_squared": 4, "normal_cg_relative": 7
}  # fmt: skip


def product_with(matrix, device):
    there = matrix.to(device)
    return lambda v: v @ there.mT


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_cpu(name, device):
    expected = CASES[name](product_with(SPD, "cpu"), B, rtol=1e-10)
    answer = CASES[name](product_with(SPD, device), B.to(device), rtol=1e-10)
    assert answer.solution.device.type == answer.status_code.device.type == device.type
    assert answer.status.tolist() == expected.status.tolist()
    assert_close(answer.solution.cpu(), expected.solution, rtol=1e-8, atol=1e-10)
    assert_close(answer.relative_residual.cpu(), expected.relative_residual, rtol=0, atol=2e-10)
    assert (answer.num_steps.cpu() - expected.num_steps).abs().max() <= 2


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_back_in_a_step(name):
    counts = []
    for max_steps in (3, 25):
        solver, matvec, b = CASES[name], product_with(SPD, DEVICE), B.to(DEVICE)
        with watch() as seen:
            solver(matvec, b, rtol=1e-14, max_steps=max_steps)
        counts.append(len(seen.read_backs))
    assert counts[0] == counts[1] <= MOST_READ_BACKS[name]


def test_single_precision_waits_once_more():
    with watch() as seen:
        answer = conjugate_gradient(product_with(SPD.float(), DEVICE), B.float().to(DEVICE), rtol=1e-4)
    assert len(seen.read_backs) == 3  # whether the operator is far from 1, by its first product
    assert answer.ok


@pytest.mark.parametrize("restart", [1, 5, 29])
def test_restarts_of_a_device_that_is_behind_its_host(restart, device):
    """The host is up to eight steps ahead: it must neither step out of a basis nor take an old "no" for a new one."""
    matrix = torch.diag(torch.linspace(1, 3, 30).double()) + 0.1 * normals(30, 30)
    expected = gmres(product_with(matrix, "cpu"), B, restart=restart, rtol=1e-10).require()
    answer = gmres(product_with(matrix, device), B.to(device), restart=restart, rtol=1e-10).require()
    assert answer.num_steps.tolist() == expected.num_steps.tolist()
    assert_close(answer.solution.cpu(), expected.solution)


def test_a_cycle_that_only_believed_that_it_was_done(device):
    """In single precision the recurrence of conjugate gradients lies, and the loop starts again."""
    eigenvalues = torch.logspace(-3, 0, 30)
    b = B.float() * eigenvalues
    expected = conjugate_gradient(lambda v: eigenvalues * v, b, rtol=2e-7)
    there = eigenvalues.to(device)
    answer = conjugate_gradient(lambda v: there * v, b.to(device), rtol=2e-7)
    assert answer.status.tolist() == expected.status.tolist()
    assert float(answer.relative_residual.max()) <= 2 * float(expected.relative_residual.max())


def test_a_block_waits_for_its_eigenvalues_alone(device):
    expected = conjugate_gradient(product_with(SPD, "cpu"), B, block=True, rtol=1e-10).require()
    with watch() as seen:
        answer = conjugate_gradient(product_with(SPD, device), B.to(device), block=True, rtol=1e-10)
    assert_close(answer.require().solution.cpu(), expected.solution)
    if device.type != "cpu":
        steps = seen.read_backs.count("_linalg_eigh")
        assert (
            answer.num_steps.max() <= steps <= answer.num_steps.max() + 8
        )  # as far as the host may be ahead
        assert len(seen.read_backs) - steps == 2


def test_numbers_far_from_one(device):
    for scale in (1e-200, 1e250):
        answer = minres(product_with(SPD, device), scale * B.to(device), rtol=1e-10).require()
        assert_close(answer.solution.cpu() / scale, torch.linalg.solve(SPD, B.mT).mT)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, normal_cg, lanczos_solve, lsmr, gmres])
def test_derivatives_of_a_solve(solver, device):
    """Of an operator that carries its tensors: second order, forward, reverse and batched."""

    def loss(matrix, b):
        operator = LinearOperator.from_matrix(matrix, positive_definite=solver is not gmres)
        return solver(operator, b, rtol=1e-13).solution.square().sum()

    matrix, b = SPD[:4, :4], B[0, :4]
    gradient = torch.func.grad(loss, argnums=1)
    there = matrix.to(device), b.to(device)
    assert_close(torch.func.grad(loss)(*there).cpu(), torch.func.grad(loss)(matrix, b))
    assert_close(
        torch.func.jacfwd(gradient, argnums=1)(*there).cpu(),
        torch.func.jacfwd(gradient, argnums=1)(matrix, b),
    )
    batch = torch.stack([b, 2 * b])
    rows = torch.func.vmap(gradient, in_dims=(None, 0))
    assert_close(rows(there[0], batch.to(device)).cpu(), rows(matrix, batch))


@pytest.mark.parametrize("solver", [conjugate_gradient, minres, normal_cg, lanczos_solve, lsmr])
def test_derivatives_of_a_solve_with_a_closure(solver, device):
    def gradients(where):
        matrix = SPD[:4, :4].to(where).requires_grad_()
        b = B[:2, :4].to(where).requires_grad_()
        x = solver(lambda v: v @ matrix.mT, b, rtol=1e-13).solution
        return torch.autograd.grad(x.square().sum(), (matrix, b))

    for there, here in zip(gradients(device), gradients("cpu"), strict=True):
        assert_close(there.cpu(), here)


def test_lanczos_answers_for_other_dampings(device):
    answers = [
        lanczos_solve(product_with(MIXED, where), B.to(where), power=2, rtol=0.0, max_steps=20)
        for where in ("cpu", device)
    ]
    here, there = (a.for_damping(relative_damping=1e-2).solution for a in answers)
    assert_close(there.cpu(), here)
    assert_close(answers[1].ritz_values.cpu(), answers[0].ritz_values)


def test_a_start_and_a_damping_of_another_device_are_named():
    matvec, b = product_with(SPD, DEVICE), B.to(DEVICE)
    for name, wrong in (("x0", B), ("matvec", None)):
        product = matvec if wrong is not None else (lambda v: v.cpu())
        with pytest.raises(ValueError, match=rf"{name}: expected.*standin"):
            minres(product, b, x0=wrong)


def random_functions(matvec, like):
    """Those that draw numbers, by a generator of the CPU."""

    def seeded():
        return torch.Generator().manual_seed(0)

    pairs = extreme_eigenpairs(matvec, like, k=2, num_steps=25, generator=seeded())
    ends = extreme_eigenvalues(matvec, like, num_steps=25, generator=seeded())
    return {
        "pairs": pairs.values,
        "errors": pairs.errors,
        "vectors": pairs.vectors.abs(),
        "smallest": ends.smallest,
        "largest": ends.largest,
        "trace": stochastic_trace(matvec, like, num_probes=4, generator=seeded()).value,
        "log_det": log_determinant(matvec, like, num_probes=4, generator=seeded()).value,
        "diagonal": hutchinson_diagonal(matvec, like, num_probes=4, generator=seeded()),
    }


def test_random_numbers_are_the_same_on_every_device(device):
    there = random_functions(product_with(SPD, device), B[0].to(device))
    for name, value in random_functions(product_with(SPD, "cpu"), B[0]).items():
        assert there[name].device.type == device.type
        assert_close(there[name].cpu(), value, msg=name)
    check_symmetric(product_with(SPD, device), B.to(device), generator=torch.Generator().manual_seed(0))


def test_operators_on_a_device(device):
    matrix = SPD[:5, :5].to(device)
    dense = LinearOperator.from_matrix(matrix, symmetric=True)
    diagonal = LinearOperator.from_diagonal(matrix.diagonal())
    both = (2.0 * (dense + diagonal) @ dense.T - dense.gram()).damped(0.1)
    here = SPD[:5, :5]
    expected = 2 * (here + torch.diag(here.diagonal())) @ here - here @ here + 0.1 * torch.eye(5).double()
    assert_close(both.to_dense().cpu(), expected)
    assert both.device.type == device.type
    precondition = diagonal_preconditioner(matrix.diagonal(), damping=0.1)
    assert_close(precondition(B[:, :5].to(device)).cpu(), B[:, :5] / (here.diagonal() + 0.1))


def test_scipy_sees_a_device_through_copies(device):
    operator = as_scipy_operator(product_with(SPD, device), B[0].to(device))
    with watch() if device.type != "cpu" else nullcontext() as seen:
        product = operator @ B[0].numpy()
    assert_close(torch.from_numpy(product), SPD @ B[0])
    if seen is not None:
        assert len(seen.read_backs) == len(seen.uploads) == 1


def on_the_device(solver):
    """The solver there, for callers on the CPU."""

    def moved(tree, where):
        return pytree.tree_map_only(torch.Tensor, lambda x: x.to(where), tree)

    def there(function):
        return lambda v: moved(function(moved(v, "cpu")), DEVICE)

    def solve(matvec, b, **settings):
        settings = {k: there(v) if callable(v) else moved(v, DEVICE) for k, v in settings.items()}
        return moved(solver(there(matvec), moved(b, DEVICE), **settings), "cpu")

    return solve


SUITE = {
    "cg": (conjugate_gradient, "positive_definite", ALL_OPTIONS),
    "block": (partial(conjugate_gradient, block=True), "positive_definite", ALL_OPTIONS - {"preconditioner"}),
    "minres": (minres, "symmetric", ALL_OPTIONS),
    "lanczos": (lanczos_solve, "symmetric", ALL_OPTIONS - {"x0", "preconditioner"}),
    "gmres": (gmres, "square", ALL_OPTIONS),
    "lsmr": (lsmr, "least_squares", ALL_OPTIONS - {"preconditioner"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
def test_solvers_on_a_device_hold_a_sample_of_the_conformance_suite(name):
    solver, kind, options = SUITE[name]
    report = check_solver(on_the_device(solver), kind, options=options, num_random=2, every=29)
    assert report.ok, str(report)
    assert report.num_cases >= 20
