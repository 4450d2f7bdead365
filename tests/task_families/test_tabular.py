"""The tabular family: closed forms against each other, against enumeration, and against its own simulator."""

import itertools

import pytest
import torch

from task_families import make
from task_families.conformance_tools import DOUBLE, seeded, simulate, start_states


@pytest.fixture
def family():
    return make("tabular")


@pytest.fixture
def theta():
    return torch.randn(15, generator=seeded(1), dtype=DOUBLE)


PSI = torch.tensor([0.4, -0.7], dtype=DOUBLE)


def test_kernel_is_a_distribution(family):
    torch.testing.assert_close(family.P.sum(-1), torch.ones(5, 3).double())
    assert float(family.P.min()) > 0


def test_gradient_and_hessian_are_those_of_eta(family, theta):
    gradient = torch.func.grad(family.eta)(theta, PSI)
    hessian = torch.func.hessian(family.eta)(theta, PSI)
    torch.testing.assert_close(family.gradient(theta, PSI), gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(family.hessian(theta, PSI), hessian, rtol=0, atol=1e-11)
    wrong = family.P.roll(1, dims=0)  # a learned kernel
    torch.testing.assert_close(
        family.hessian(theta, PSI, wrong),
        torch.func.hessian(family.eta)(theta, PSI, wrong),
        rtol=0,
        atol=1e-11,
    )


def test_eta_is_the_sum_over_all_trajectories(family, theta):
    """15^4 * 5 trajectories of four steps; the rest of the return is what eta gives from the states reached."""
    head = family.eta_enumerated(theta, PSI, 4)
    pi = family.pi(theta)
    kernel = torch.einsum("sa,sat->st", pi, family.P)
    at_four = family.rho @ torch.linalg.matrix_power(kernel, 4)
    v = family._values(theta, PSI, None)[0]
    assert abs(float(head + family.gamma**4 * at_four @ v - family.eta(theta, PSI))) < 1e-12
    # and by brute force, one trajectory at a time, for two steps
    total = 0.0
    for s, a, t, b, u in itertools.product(range(5), range(3), range(5), range(3), range(5)):
        weight = family.rho[s] * pi[s, a] * family.P[s, a, t] * pi[t, b] * family.P[t, b, u]
        total += float(weight * (family.b[t] @ PSI + family.gamma * family.b[u] @ PSI))
    assert abs(total - float(family.eta_enumerated(theta, PSI, 2))) < 1e-12


def test_eta_star_is_the_best_of_all_deterministic_policies(family):
    best, actions = family.eta_star(PSI)
    returns = {}
    for choice in itertools.product(range(3), repeat=5):
        theta = torch.full((5, 3), -1e3, dtype=DOUBLE)
        theta[torch.arange(5), torch.tensor(choice)] = 1e3
        returns[choice] = float(family.eta(theta.flatten(), PSI))
    assert max(returns, key=returns.get) == tuple(actions.tolist())
    assert abs(max(returns.values()) - float(best)) < 1e-12


def test_simulator_has_the_kernel_and_the_return(family, theta):
    """Frequencies of 200 000 steps, and the discounted return of 4000 simulated episodes."""
    n = 4000
    pi = family.pi(theta)
    states = start_states(family, (1, n), 2)
    simulator = family.make_simulator((1, n), dtype=DOUBLE)
    obs = simulator.reset(torch.ones(1, n, dtype=torch.bool), states[0])
    counts, returns = torch.zeros(5, 3, 5), torch.zeros(n, dtype=DOUBLE)
    generator = seeded(3)
    for t in range(50):
        state = obs[0].argmax(-1)
        chosen = torch.multinomial(pi[state], 1, generator=generator)[:, 0]
        act = torch.nn.functional.one_hot(chosen, 3).double()[None]
        next_obs = simulator.step(act)
        returns += family.gamma**t * family.reward(PSI, obs, act, next_obs)[0]
        counts.view(-1).scatter_add_(0, (state * 3 + chosen) * 5 + next_obs[0].argmax(-1), torch.ones(n))
        obs = next_obs
    total = counts.sum(-1, keepdim=True)
    frequency = (counts / total).double()
    tolerance = 4.5 * (family.P * (1 - family.P) / total).sqrt() + 1e-3
    assert bool(((frequency - family.P).abs() < tolerance)[total[..., 0] > 500].all())
    standard_error = float(returns.std()) / n**0.5
    assert abs(float(returns.mean() - family.eta(theta, PSI))) < 4 * standard_error + 0.01


def test_actions_are_the_largest_of_three_numbers(family):
    states = start_states(family, (1, 50), 0)
    act = torch.randn(5, 1, 50, 3, generator=seeded(0), dtype=DOUBLE)
    one_hot = torch.nn.functional.one_hot(act.argmax(-1), 3).double()
    assert torch.equal(simulate(family, states, act), simulate(family, states, one_hot))
