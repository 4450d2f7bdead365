"""Optimal policies that families declare, against closed forms. `check_family` varies all of them."""

import itertools

import pytest
import torch

from task_families import make, names

SOLVED = [name for name in names() if make(name).optimal_policy(make(name).first_psi[None]) is not None]


def test_families_with_a_closed_form_declare_it():
    assert {"linear_quadratic", "tabular", "point_robot", "sparse_point_robot"} < set(SOLVED)


def test_linear_quadratic_is_stationary_for_the_closed_form():
    """With one step, one affine policy is all there is; the slope of its exact return (`eta`) is 0."""
    family = make("linear_quadratic")
    psi = torch.tensor([[0.7, -0.3]], dtype=torch.float64)
    family.horizon = 1
    act = family.optimal_policy(psi)
    zero, eye = torch.zeros(1, 1, 4).double(), torch.eye(4).double()[None]
    bias = act(0, zero)[0, 0]
    weights = act(0, eye)[0] - bias  # (4, 2)
    theta = torch.cat([weights.flatten(), bias]).requires_grad_()
    family.gamma = 1.0
    (slope,) = torch.autograd.grad(family.eta(theta, psi[0], sigma=0.0, num_steps=1), theta)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)


def test_tabular_is_the_best_of_all_policies_of_two_steps():
    family = make("tabular")
    family.horizon = 2
    psi = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    act, states = family.optimal_policy(psi), torch.eye(5).double()[None]
    chosen = [act(t, states)[0].argmax(-1) for t in range(2)]
    reward = family.P @ (family.b @ psi[0])  # (S, A)

    def value(first, second):
        rows = torch.arange(5)
        later = reward[rows, second]
        return float(family.rho @ (reward[rows, first] + family.P[rows, first] @ later))

    every = [torch.tensor(a) for a in itertools.product(range(3), repeat=5)]
    second = max(every, key=lambda a: float(reward[torch.arange(5), a].sum()))
    assert value(*chosen) == pytest.approx(max(value(first, second) for first in every))
