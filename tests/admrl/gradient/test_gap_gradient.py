"""Eq. 2 with exact expectations against the closed forms of the linear-quadratic family."""

import pytest
import torch

from admrl.config.training import TaskGradientConfig
from admrl.gradient import gap_gradient
from task_families import make
from task_families.linear_quadratic import AffineDynamics

SIGMA = 0.3
EXACT = TaskGradientConfig(damping=0.0, max_steps=40)


@pytest.fixture
def family():
    return make("linear_quadratic")


@pytest.fixture
def model(family):
    """The truth with 15 % error."""
    generator = torch.Generator().manual_seed(3)

    def wrong(x):
        return x * (1 + 0.15 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    truth = family.dynamics
    return AffineDynamics(wrong(truth.A), wrong(truth.B), wrong(truth.c) + 0.02)


PSI = torch.tensor([[0.5, -0.8], [-0.3, 0.1], [1.0, 1.0]], dtype=torch.float64)


def returns(family, dynamics=None):
    """Exact returns of M tasks as (theta (M, p), psi (M, k)) -> (M,)."""

    def eta(theta, psi):
        return torch.stack(
            [family.eta(t, p, sigma=SIGMA, dynamics=dynamics) for t, p in zip(theta, psi, strict=True)]
        )

    return eta


def exact_gradient(family, model, psi):
    return gap_gradient(
        eta_model=returns(family, model),
        eta_star=returns(family),
        eta_star_at_optimum=returns(family),
        theta_hat=torch.stack([family.theta_star(p, model) for p in psi]),
        theta_star=torch.stack([family.theta_star(p) for p in psi]),
        psi=psi,
        config=EXACT,
    )


def test_exact_expectations_equal_the_closed_form(family, model):
    gradient = exact_gradient(family, model, PSI)
    closed = torch.stack([family.gap_gradient(p, model, sigma=SIGMA) for p in PSI])
    assert gradient.solve.ok
    torch.testing.assert_close(gradient.total, closed, rtol=0, atol=1e-8)


@pytest.mark.parametrize("step", [1e-2, 1e-3])
def test_exact_expectations_equal_central_differences_of_the_resolved_gap(family, model, step):
    gradient = exact_gradient(family, model, PSI).total
    for m, psi in enumerate(PSI):
        for i, e in enumerate(torch.eye(2, dtype=torch.float64)):
            up = family.gap(psi + step * e, model, sigma=SIGMA)
            down = family.gap(psi - step * e, model, sigma=SIGMA)
            assert float(abs((up - down) / (2 * step) - gradient[m, i])) < 1e-8


def test_every_part_matters(family, model):
    """Negative control: without the implicit part, or with its sign turned, the answer is wrong."""
    gradient = exact_gradient(family, model, PSI)
    closed = torch.stack([family.gap_gradient(p, model, sigma=SIGMA) for p in PSI])
    without = gradient.optimal - gradient.adapted
    turned = gradient.optimal - (gradient.adapted - gradient.implicit)
    assert float((without - closed).abs().max()) > 1e-3
    assert float((turned - closed).abs().max()) > 1e-3


def test_tasks_of_a_batch_equal_tasks_one_by_one(family, model):
    together = exact_gradient(family, model, PSI).total
    for m in range(len(PSI)):
        alone = exact_gradient(family, model, PSI[m : m + 1]).total[0]
        torch.testing.assert_close(together[m], alone, rtol=0, atol=1e-11)


def test_adjoint_solve_equals_the_k_column_form(family, model):
    """One solve H y = v gives the same implicit part as d theta_hat/d psi = -H^-1 B (Eq. 5), k columns."""
    psi = PSI[0]
    gradient = exact_gradient(family, model, PSI[:1])
    theta_hat = family.theta_star(psi, model)
    jacobian = family.theta_star_jacobian(model)  # exact d theta_hat / d psi (p, k)
    leaf = theta_hat.clone().requires_grad_()
    (v,) = torch.autograd.grad(family.eta(leaf, psi, sigma=SIGMA), leaf)
    torch.testing.assert_close(gradient.implicit[0], jacobian.T @ v, rtol=0, atol=1e-9)


def test_damping_shrinks_the_implicit_part(family, model):
    heavy = TaskGradientConfig(damping=100.0, max_steps=40)
    psi = PSI[:1]
    damped = gap_gradient(
        eta_model=returns(family, model),
        eta_star=returns(family),
        eta_star_at_optimum=returns(family),
        theta_hat=family.theta_star(psi[0], model)[None],
        theta_star=family.theta_star(psi[0])[None],
        psi=psi,
        config=heavy,
    )
    free = exact_gradient(family, model, psi)
    assert float(damped.implicit.norm()) < 0.1 * float(free.implicit.norm())
    torch.testing.assert_close(damped.optimal, free.optimal)
