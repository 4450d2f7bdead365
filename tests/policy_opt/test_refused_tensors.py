"""Complex and sparse tensors wherever one may be given: named, with an advice that loses nothing."""

import warnings

import pytest
import torch

from policy_opt import (
    as_scipy_operator,
    conjugate_gradient,
    custom_root,
    diagonal_preconditioner,
    extreme_eigenvalues,
    fisher_vp,
    gauss_newton_vp,
    gmres,
    hutchinson_diagonal,
    hvp,
    lanczos_solve,
    linear_map,
    lsmr,
    minres,
    normal_cg,
    policy_hessian,
    root_jvp,
    root_vjp,
)
from policy_opt.linear_operator import check_symmetric

REAL = torch.tensor([1.0, 2.0, 3.0, 4.0])
BATCH = torch.eye(4)
SOLVERS = {f.__name__: f for f in (conjugate_gradient, normal_cg, minres, lanczos_solve, gmres, lsmr)}
PLACES = {
    **{f"{n}, b": ("b", lambda x, f=f: f(lambda v: v, x)) for n, f in SOLVERS.items()},
    **{f"{n}, matvec": ("matvec", lambda x, f=f: f(lambda v: x, REAL)) for n, f in SOLVERS.items()},
    **{
        f"{n}, damping": ("damping", lambda x, f=f: f(lambda v: v, BATCH, damping=x))
        for n, f in SOLVERS.items()
    },
    **{
        f"{n}, x0": ("x0", lambda x, f=f: f(lambda v: v, REAL, x0=x))
        for n, f in SOLVERS.items()
        if n != "lanczos_solve"
    },
    **{
        f"{n}, preconditioner": (
            "preconditioner",
            lambda x, f=f: f(lambda v: v, REAL, preconditioner=lambda v: x),
        )
        for n, f in SOLVERS.items()
        if n not in ("lanczos_solve", "lsmr")
    },
    "hvp, theta": ("theta", lambda x: hvp(lambda q: (q.abs() ** 2).sum(), x, x)),
    "hvp, v": ("v", lambda x: hvp(lambda q: (q**2).sum(), REAL, x)),
    "hvp, v of a dict": ("v", lambda x: hvp(lambda q: (q["a"] ** 2).sum(), {"a": REAL}, {"a": x})),
    "gauss_newton_vp, v": ("v", lambda x: gauss_newton_vp(lambda q: q, lambda y: (y**2).sum(), REAL, x)),
    "fisher_vp, v": ("v", lambda x: fisher_vp(lambda q: torch.distributions.Normal(q, 1.0), REAL, x)),
    "policy_hessian, weights": (
        "weights",
        lambda x: policy_hessian(lambda q: q[:, None] * BATCH, REAL, x, form="whole_trajectory"),
    ),
    "extreme_eigenvalues": ("like", lambda x: extreme_eigenvalues(lambda v: v, x)),
    "hutchinson_diagonal": ("like", lambda x: hutchinson_diagonal(lambda v: v, x)),
    "check_symmetric": ("like", lambda x: check_symmetric(lambda v: v, x)),
    "as_scipy_operator": ("like", lambda x: as_scipy_operator(lambda v: v, x)),
    "diagonal_preconditioner": ("diagonal", diagonal_preconditioner),
    "root_vjp, theta_hat": ("theta", lambda x: root_vjp(torch.sub, x, REAL, REAL)),
    "root_vjp, cotangent": ("b", lambda x: root_vjp(torch.sub, REAL, REAL, x)),
    "root_jvp, tangent": ("tangent", lambda x: root_jvp(torch.sub, REAL, REAL, x)),
    "custom_root, args": (
        "args",
        lambda x: torch.func.grad(lambda q: _root(q).real.sum())(x),
    ),
    "custom_root, solver": (
        "solver",
        lambda x: custom_root(torch.sub)(lambda q: x)(REAL),
    ),
}
_root = custom_root(torch.sub)(lambda q: q.clone())


@pytest.mark.parametrize("place", PLACES)
def test_complex_tensors_are_not_cut_to_their_real_part(place):
    name, call = PLACES[place]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=rf"^{name}.*: expected real floating.*twice the size") as error:
            call(REAL + 1j)
    assert ".double()" not in str(error.value)


@pytest.mark.parametrize("place", [*PLACES, "linear_map", "root_vjp, psi", "root_jvp, psi"])
def test_sparse_tensors_are_named(place):
    others = {
        "linear_map": ("at", lambda x: linear_map(lambda q: 2 * q, x)),
        "root_vjp, psi": ("psi", lambda x: root_vjp(torch.sub, REAL, x, REAL)),
        "root_jvp, psi": ("psi", lambda x: root_jvp(torch.sub, REAL, x, REAL)),
    }
    name, call = (PLACES | others)[place]
    with pytest.raises(ValueError, match=rf"^{name}.*: expected a dense tensor.*sparse_coo.*to_dense"):
        call(REAL.to_sparse())


def test_a_complex_system_as_a_real_one():
    """The advice, followed: A x = b with A = [[2, i], [-i, 3]], b = (1 + i, 2)."""
    a = torch.tensor([[2, 1j], [-1j, 3]], dtype=torch.complex128)
    b = torch.tensor([1 + 1j, 2], dtype=torch.complex128)
    whole = torch.cat([torch.cat([a.real, -a.imag], 1), torch.cat([a.imag, a.real], 1)])
    answer = minres(lambda v: v @ whole.T, torch.cat([b.real, b.imag]), rtol=1e-12).require().solution
    torch.testing.assert_close(torch.complex(answer[:2], answer[2:]), torch.linalg.solve(a, b))


def test_a_complex_constant_is_no_argument_to_differentiate():
    rotation = torch.tensor([1j, 1.0])

    def equation(theta, q, c):
        return theta - q * c.abs()

    root = custom_root(equation)(lambda q, c: q * c.abs())
    gradient = torch.func.grad(lambda q: root(q, rotation).sum())(torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(gradient, torch.ones(2))
