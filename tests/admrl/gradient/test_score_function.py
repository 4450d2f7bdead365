"""Score functions: exact expectations by enumerating all trajectories of the tabular family, then samples."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from exact_problem import derivatives, double, exact_return, sample, wrong_dynamics

from admrl.gradient.implicit import gradient_of, hessian_of, mixed_product
from admrl.gradient.score_function import (
    Trajectories,
    causal_return,
    per_step_return,
    reward_and_slopes,
    trajectories,
    whole_trajectory_return,
    with_baseline,
)
from task_families import TaskCircle, make

STEPS = 3


@pytest.fixture(scope="module")
def table():
    """The tabular family, a softmax policy, a task, and all trajectories of three steps with their probabilities."""
    family = make("tabular")
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(1, 15, generator=generator, dtype=double)
    psi = torch.tensor([[0.4, -0.7]], dtype=double)
    S, A = family.obs_size, family.act_size
    axes = [torch.arange(S)] + [torch.arange(n) for _ in range(STEPS) for n in (A, S)]
    path = torch.cartesian_prod(*axes)  # s_0, a_0, s_1, a_1, ...
    states, actions, successors = path[:, 0:-1:2], path[:, 1::2], path[:, 2::2]
    pi = family.pi(theta[0])
    probability = family.rho[path[:, 0]]
    for t in range(STEPS):
        s, a, n = states[:, t], actions[:, t], successors[:, t]
        probability = probability * pi[s, a] * family.P[s, a, n]
    data = Trajectories(
        log_prob=lambda th: th.view(S, A).log_softmax(-1)[states, actions][None],
        reward=lambda p: (family.b[successors] * p[0]).sum(-1)[None],
        mask=torch.ones(1, len(path), STEPS, dtype=torch.bool),
        weight=probability[None],
        discount=family.gamma ** torch.arange(STEPS, dtype=double) / STEPS,
    )
    return family, theta, psi, data, states, successors


def exact_table(family):
    return lambda th, p: family.eta_enumerated(th[0], p[0], STEPS)[None] / STEPS


def crude_values(data, states, successors):
    """A baseline that depends on the state, on the time and on psi, 0 after the last step."""
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=double)

    def at(psi):
        shift = torch.cat([torch.ones(1, dtype=double), psi[0] - 0.1])
        value, following = (table[states] * shift).sum(-1), (table[successors] * shift).sum(-1)
        following = torch.cat([0.9 * following[:, :-1], torch.zeros_like(following[:, -1:])], dim=-1)
        return value[None], following[None]

    return replace(data, values=at)


@pytest.mark.parametrize("form", ["whole trajectory", "causal", "causal with baseline"])
def test_exact_expectations_of_unbiased_forms_equal_the_closed_form(table, form):
    family, theta, psi, data, states, successors = table
    if form == "causal with baseline":
        data = crude_values(data, states, successors)
    make_return = whole_trajectory_return if form == "whole trajectory" else causal_return
    found = derivatives(make_return(data, theta), theta, psi)
    for mine, exact in zip(found, derivatives(exact_table(family), theta, psi), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-8)


def test_per_step_has_the_right_gradient_and_a_wrong_hessian(table):
    """Negative control: with exact Q as advantage its Hessian still misses the cross-time terms."""
    family, theta, psi, data, *_ = table

    def to_go(p):
        reward = data.discount * data.reward(p)
        return reward.flip(-1).cumsum(-1).flip(-1) * STEPS  # Monte-Carlo Q times gamma^t

    gradient, hessian, mixed = derivatives(per_step_return(data, theta, to_go), theta, psi)
    exact = derivatives(exact_table(family), theta, psi)
    torch.testing.assert_close(gradient, exact[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(mixed, exact[2], rtol=0, atol=1e-10)
    assert float((hessian - exact[1]).norm()) > 0.2 * float(exact[1].norm())


@pytest.mark.parametrize("form", ["whole trajectory", "causal"])
def test_sampled_derivatives_are_unbiased(problem, form):
    """Over 200 draws: gradient, product with H and mixed derivative within 3 standard errors of the exact ones."""
    _, model, psi, theta_hat, *_ = problem
    family = make("linear_quadratic")
    family.horizon = 6
    truth = derivatives(exact_return(family, wrong_dynamics(family)), theta_hat.theta, psi)
    direction = torch.linspace(-1, 1, 10, dtype=double)
    target = torch.cat([truth[0], truth[1] @ direction, truth[2].T @ direction])

    def draw(seed):
        rollout = sample(family, model, theta_hat, 40, seed)
        data = trajectories(family, theta_hat, rollout)
        if form == "causal":
            eta = causal_return(with_baseline(family, theta_hat, rollout, data), theta_hat.theta)
        else:
            eta = whole_trajectory_return(data, theta_hat.theta)
        gradient, _ = gradient_of(eta, theta_hat.theta, psi)
        curvature = hessian_of(eta, theta_hat.theta, psi)(direction[None])
        return torch.cat(
            [gradient[0], curvature[0], mixed_product(eta, theta_hat.theta, psi, direction[None])[0]]
        )

    draws = torch.stack([draw(seed) for seed in range(200)])
    z = (draws.mean(0) - target) / (draws.std(0) / 200**0.5)
    assert float(z.abs().max()) < 3
    if form == "causal":  # the test can fail: the error bars are small against what is measured
        assert float((draws.std(0) / 200**0.5).norm()) < 0.3 * float(target.norm())


def test_the_baseline_removes_variance(problem):
    family, model, psi, theta_hat, *_ = problem
    direction = torch.ones(1, 10, dtype=double)

    def spread(with_it):
        draws = []
        for seed in range(12):
            rollout = sample(family, model, theta_hat, 100, seed)
            data = trajectories(family, theta_hat, rollout)
            data = with_baseline(family, theta_hat, rollout, data) if with_it else data
            eta = causal_return(data, theta_hat.theta)
            both = (
                hessian_of(eta, theta_hat.theta, psi)(direction),
                mixed_product(eta, theta_hat.theta, psi, direction),
            )
            draws.append(torch.cat(both, dim=-1))
        return torch.stack(draws).std(0)[0]

    free, plain = spread(True), spread(False)
    assert float(free[:10].norm()) < 0.5 * float(plain[:10].norm()), "H"
    assert float(free[10:].norm()) < 0.5 * float(plain[10:].norm()), "B"


def test_a_differed_reward_has_its_slope_at_the_ends_of_a_circle():
    family = SimpleNamespace(reward_has_gradient=False, box=TaskCircle(dtype=double))
    psi = torch.tensor([[0.0], [0.1], [2.0], [6.28]], dtype=double)
    _, slope = reward_and_slopes(family, lambda p: p.sin()[:, :, None].expand(-1, 2, 3), psi)
    torch.testing.assert_close(slope, psi.cos()[:, :, None].expand(-1, 2, 3), atol=0, rtol=0.02)  # step^2 / 6
