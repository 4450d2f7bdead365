"""Pathwise estimators: exact expectations, kinks, horizons, polishing.

The return of the linear-quadratic family is a quadratic in the noise, so it has an exact mean over 2 d antithetic
points.
"""

import math
from dataclasses import replace

import pytest
import torch
from exact_problem import affine_model, derivatives, double, sample

from admrl.gradient.pathwise import PathwiseReturn, adjoint_growth, pathwise_return, polish, smoothed_abs
from task_families.linear_quadratic import AffineDynamics


def antithetic(family, model, solution) -> PathwiseReturn:
    """The pathwise return with an exact expectation: every coordinate of the noise at +-sqrt(d)."""
    S, A, T = 4, 2, family.horizon
    d = S + A * T
    points = math.sqrt(d) * torch.cat([torch.eye(d, dtype=double), -torch.eye(d, dtype=double)])
    return PathwiseReturn(
        family=family,
        model=model.clone().requires_grad_(False),
        solution=solution,
        start=(family.start_mean + family.start_std * points[:, :S])[None],
        noise=points[:, S:].reshape(1, 2 * d, T, A),
        smoothing=0.0,
        bootstrap=False,
    )


def test_exact_expectations_of_pathwise_equal_the_closed_form(problem):
    family, model, psi, theta_hat, _, exact = problem
    eta = antithetic(family, model, theta_hat)
    gradient, hessian, mixed = derivatives(eta, theta_hat.theta, psi)
    assert float(gradient.norm()) < 1e-8, "theta_hat is stationary"
    torch.testing.assert_close(hessian, exact["hessian"], rtol=0, atol=1e-8)
    torch.testing.assert_close(mixed, exact["mixed"], rtol=0, atol=1e-8)


def test_smoothed_abs_is_the_pseudo_huber_function():
    x = torch.tensor([-2.0, 0.0, 1.0], dtype=double, requires_grad=True)
    with smoothed_abs(0.5):
        y = x.abs()
    w = 0.5 * float(x.detach().square().mean().sqrt())
    torch.testing.assert_close(y, (x**2 + w**2).sqrt() - w)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert float(slope[1]) == 0
    torch.testing.assert_close(x.abs().detach(), torch.tensor([2.0, 0.0, 1.0], dtype=double))


def test_smoothing_of_a_task_knows_nothing_of_its_neighbours():
    x = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0), dtype=double)
    x = x * torch.tensor([0.1, 1.0, 10.0], dtype=double)[:, None, None]
    with smoothed_abs(0.5):
        together, alone = x.abs(), torch.cat([row[None].abs() for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_smoothing_gives_the_mixed_derivative_that_the_kink_hides():
    """E|x - psi| for x ~ N(theta, 1): d2/dtheta dpsi = -2 phi(psi - theta). Without smoothing it is 0 (negative
    control); its bias falls with the width."""
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=double)
    exact = -2 * math.exp(-0.5 * 0.3**2) / math.sqrt(2 * math.pi)

    def mixed(width):
        theta = torch.tensor(0.2, dtype=double, requires_grad=True)
        psi = torch.tensor(0.5, dtype=double, requires_grad=True)
        with smoothed_abs(width):
            value = (theta + noise - psi).abs().mean()
        (slope,) = torch.autograd.grad(value, theta, create_graph=True)
        return float(torch.autograd.grad(slope, psi, allow_unused=True, materialize_grads=True)[0])

    assert mixed(1e-9) == pytest.approx(0, abs=1e-3)
    errors = [abs(mixed(width) - exact) for width in (1.0, 0.5, 0.2)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * abs(exact)


def test_a_shorter_horizon_bootstraps(problem):
    family, model, psi, theta_hat, *_ = problem
    rollout = sample(family, model, theta_hat, 16, 0)
    full = pathwise_return(family, model, theta_hat, rollout, smoothing=0.0)
    short = pathwise_return(family, model, theta_hat, rollout, smoothing=0.0, horizon=5)
    assert full.noise.shape[2] == 20 and not full.bootstrap
    assert short.noise.shape[2] == 5 and short.bootstrap
    # with V = 0 the short return is that of the first five steps
    reward = family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    discount = family.gamma ** torch.arange(20, dtype=double) / 20
    expected = (reward * discount)[:, :, :5].sum(-1).mean(-1)
    torch.testing.assert_close(short(theta_hat.theta, psi), expected)
    # V = 3 in every state counts as gamma^5 3, five steps later
    weights = theta_hat.value.init(len(psi))
    weights[:, 0] = 3.0
    valued = pathwise_return(
        family, model, replace(theta_hat, weights=weights), rollout, smoothing=0.0, horizon=5
    )
    torch.testing.assert_close(valued(theta_hat.theta, psi), expected + family.gamma**5 * 3.0 / 20)
    torch.testing.assert_close(full(theta_hat.theta, psi), (reward * discount).sum(-1).mean(-1))


def test_growth_tells_an_exploding_horizon(problem):
    family, _, psi, theta_hat, *_ = problem
    truth = family.dynamics
    wild = AffineDynamics(truth.A * 2.2, truth.B, truth.c)
    growths = []
    for dynamics in (truth, wild):
        model = affine_model(family, dynamics)
        eta = pathwise_return(family, model, theta_hat, sample(family, model, theta_hat, 8, 0), smoothing=0.0)
        growths.append(float(adjoint_growth(eta, theta_hat.theta, psi)))
    assert growths[0] < 10 < 50 < growths[1]


def test_polish_reaches_a_stationary_point_and_keeps_hopeless_tasks():
    """A concave quadratic per task; the second task's objective is constant, so it stays where it is."""
    target = torch.tensor([[1.0, -2.0], [0.0, 0.0]], dtype=double)
    weight = torch.tensor([1.0, 0.0], dtype=double)
    theta = torch.zeros(2, 2, dtype=double) + 0.5
    done = polish(
        lambda th: -weight * (th - target).square().sum(-1), lambda _, g: 0.6 * g, theta, num_steps=60
    )
    torch.testing.assert_close(done[0], target[0], rtol=0, atol=1e-6)
    assert torch.equal(done[1], theta[1])
