"""The closed forms of the linear-quadratic family against independent recursions, sampling and differences."""

import math

import pytest
import torch

from task_families import collect, make
from task_families.linear_quadratic import AffineDynamics

DOUBLE = torch.float64
SIGMA = 0.3


@pytest.fixture
def family():
    return make("linear_quadratic")


@pytest.fixture
def model(family):
    """A wrong model: the truth with 15 % error in every entry."""
    generator = torch.Generator().manual_seed(3)

    def wrong(x):
        return x * (1 + 0.15 * torch.randn(x.shape, generator=generator, dtype=DOUBLE))

    truth = family.dynamics
    return AffineDynamics(wrong(truth.A), wrong(truth.B), wrong(truth.c) + 0.02)


@pytest.fixture(params=["truth", "model"])
def dynamics(request, family):
    return family.dynamics if request.param == "truth" else request.getfixturevalue("model")


def some_policy(family, psi, seed=0):
    """Stabilising, but not optimal."""
    noise = torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return family.theta_star(psi) + 0.1 * noise


def forward_return(family, theta, psi, sigma, dynamics, num_steps):
    """The return by propagating mean and covariance of the state forwards; shares no line with `eta`.

    E r_t = -|C m' - psi|^2 - tr(C V' C') - rho (|W m + b|^2 + tr(W V W') + A sigma^2),
    m' = (A + B W) m + B b + c,   V' = (A + B W) V (A + B W)' + sigma^2 B B'
    """
    W, b = theta[:8].view(4, 2).T, theta[8:]
    A, B, c = dynamics.A, dynamics.B, dynamics.c
    mean, cov = family.start_mean, family.start_std**2 * torch.eye(4, dtype=DOUBLE)
    total = torch.zeros((), dtype=DOUBLE)
    for t in range(num_steps):
        effort = (W @ mean + b).square().sum() + torch.trace(W @ cov @ W.T) + 2 * sigma**2
        F = A + B @ W
        mean, cov = F @ mean + B @ b + c, F @ cov @ F.T + sigma**2 * B @ B.T
        error = (mean[:2] - psi).square().sum() + cov[0, 0] + cov[1, 1]
        total = total - 0.9**t * (error + 0.1 * effort)
    return total


PSI = torch.tensor([0.4, -0.7], dtype=DOUBLE)


def test_eta_is_the_forward_recursion(family, dynamics):
    """Infinite and finite episodes; 0.9^400 = 5e-19."""
    theta = some_policy(family, PSI)
    for num_steps in (1, 2, 7, None):
        expected = forward_return(family, theta, PSI, SIGMA, dynamics, num_steps or 400)
        got = family.eta(theta, PSI, sigma=SIGMA, dynamics=dynamics, num_steps=num_steps)
        assert abs(float(got - expected)) < 1e-10 * abs(float(expected))


def test_truth_is_the_default_dynamics(family):
    theta = some_policy(family, PSI)
    default = family.eta(theta, PSI, sigma=SIGMA)
    assert float(default) == float(family.eta(theta, PSI, sigma=SIGMA, dynamics=family.dynamics))


def test_eta_gradients_are_those_of_the_recursion(family):
    theta, psi = some_policy(family, PSI).requires_grad_(), PSI.clone().requires_grad_()
    got = torch.autograd.grad(family.eta(theta, psi, sigma=SIGMA), (theta, psi))
    recursion = forward_return(family, theta, psi, SIGMA, family.dynamics, 400)
    expected = torch.autograd.grad(recursion, (theta, psi))
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def test_eta_is_the_mean_of_simulated_returns(family):
    """20 000 simulated episodes, discounted: within 4 standard errors of the closed form."""
    n, horizon = 20_000, 30
    theta = some_policy(family, PSI)
    noise = torch.randn(horizon, 1, n, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    W, b = theta[:8].view(4, 2), theta[8:]
    rollout = collect(
        family.make_simulator((1, n), dtype=DOUBLE),
        family,
        lambda t, obs: (obs @ W + b + SIGMA * noise[t], obs.new_zeros(1, n)),
        horizon,
        [torch.Generator().manual_seed(2)],
    )
    reward = family.reward(PSI, rollout.obs, rollout.act, rollout.next_obs)
    returns = (reward * family.gamma ** torch.arange(horizon, dtype=DOUBLE)).sum(-1)
    exact = float(family.eta(theta, PSI, sigma=SIGMA, num_steps=horizon))
    standard_error = float(returns.std()) / math.sqrt(n)
    assert abs(float(returns.mean()) - exact) < 4 * standard_error
    assert standard_error < 0.01 * abs(exact)  # the test can fail


def test_theta_star_is_a_strict_maximum(family, dynamics):
    """Stationary, and the Hessian is negative definite; for a wrong model too."""
    theta = family.theta_star(PSI, dynamics)

    def eta(x):
        return family.eta(x, PSI, sigma=SIGMA, dynamics=dynamics)

    assert float(torch.func.grad(eta)(theta).abs().max()) < 1e-10
    eigenvalues = torch.linalg.eigvalsh(torch.func.hessian(eta)(theta))
    assert float(eigenvalues.max()) < -1e-3
    generator = torch.Generator().manual_seed(0)
    for size in (1e-2, 0.1):
        other = theta + size * torch.randn(10, generator=generator, dtype=DOUBLE)
        assert float(eta(other)) < float(eta(theta))


def test_theta_star_does_not_depend_on_sigma(family):
    theta = family.theta_star(PSI)
    for sigma in (0.0, 1.5):
        gradient = torch.func.grad(lambda x, s=sigma: family.eta(x, PSI, sigma=s))(theta)
        assert float(gradient.abs().max()) < 1e-10


def test_optimum_of_the_model_is_not_that_of_the_truth(family, model):
    """Negative control of the two tests above."""
    theta_hat = family.theta_star(PSI, model)
    gradient = torch.func.grad(lambda x: family.eta(x, PSI, sigma=SIGMA))(theta_hat)
    assert float(gradient.abs().max()) > 1e-2


@pytest.mark.parametrize("step", [1e-2, 1e-3])
def test_theta_star_jacobian_is_the_central_difference(family, dynamics, step):
    jacobian = family.theta_star_jacobian(dynamics)
    assert jacobian.shape == (10, 2)
    for i in range(2):
        e = torch.zeros(2, dtype=DOUBLE)
        e[i] = step
        difference = (family.theta_star(PSI + e, dynamics) - family.theta_star(PSI - e, dynamics)) / (
            2 * step
        )
        assert float((difference - jacobian[:, i]).abs().max()) < 1e-9


def test_theta_star_jacobian_is_the_implicit_derivative(family, dynamics):
    """AdMRL Eq. 5: d theta*/d psi = -H^-1 B."""
    theta = family.theta_star(PSI, dynamics)

    def eta(x, psi):
        return family.eta(x, psi, sigma=SIGMA, dynamics=dynamics)

    H = torch.func.hessian(eta)(theta, PSI)
    B = torch.func.jacfwd(torch.func.grad(eta), argnums=1)(theta, PSI)
    implicit = -torch.linalg.solve(H, B)
    torch.testing.assert_close(family.theta_star_jacobian(dynamics), implicit, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("step", [1e-2, 1e-3])
def test_gap_gradient_is_the_central_difference(family, model, step):
    gradient = family.gap_gradient(PSI, model, sigma=SIGMA)
    for i in range(2):
        e = torch.zeros(2, dtype=DOUBLE)
        e[i] = step
        up, down = (family.gap(PSI + s * e, model, sigma=SIGMA) for s in (1, -1))
        assert abs(float((up - down) / (2 * step) - gradient[i])) < 1e-9
    assert float(gradient.abs().max()) > 1e-2


def test_gap_is_nonnegative_and_zero_for_the_true_model(family, model):
    for psi in family.box.grid((5, 5)):
        assert float(family.gap(psi, model, sigma=SIGMA)) > 0
        assert abs(float(family.gap(psi, family.dynamics, sigma=SIGMA))) < 1e-12


def test_simulator_is_the_printed_dynamics(family):
    """s' = A s + B a + c, by hand for one state."""
    simulator = family.make_simulator((1, 1), dtype=DOUBLE)
    state = torch.tensor([[1.0, -2.0, 0.5, 0.25]], dtype=DOUBLE)
    simulator.reset(torch.ones(1, 1, dtype=torch.bool), state)
    got = simulator.step(torch.tensor([[[2.0, -1.0]]], dtype=DOUBLE))[0, 0]
    truth = family.dynamics
    expected = torch.stack(
        [
            sum(truth.A[i, j] * state[0, j] for j in range(4))
            + 2 * truth.B[i, 0]
            - truth.B[i, 1]
            + truth.c[i]
            for i in range(4)
        ]
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
