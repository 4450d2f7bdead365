"""The linear-quadratic problem of twenty steps with everything exact, and samples of it: for several test files."""

import math
from types import SimpleNamespace

import torch

from admrl.config.training import VirtualTrainingConfig
from admrl.gradient.implicit import gradient_of, hessian_of, mixed_product
from admrl.solving.inner_method import Slbo
from admrl.solving.rollouts import stochastic_actor
from admrl.solving.solution import Solution
from dynamics import DynamicsConfig, DynamicsEnsemble, VirtualEnv
from policy_opt import GaussianPolicy, ValueConfig
from policy_opt.value import ValueFunction
from task_families import collect, spawn_generators
from task_families.linear_quadratic import AffineDynamics, LinearQuadratic

double = torch.float64
SIGMA = 0.3


def derivatives(eta, theta, psi):
    """Gradient (p), dense Hessian (p, p) and dense mixed derivative (p, k) of a return, flattened together."""
    gradient, _ = gradient_of(eta, theta, psi)
    eye = torch.eye(theta.shape[-1], dtype=theta.dtype)
    product = hessian_of(eta, theta, psi)
    hessian = torch.stack([product(row[None])[0] for row in eye])
    mixed = torch.stack([mixed_product(eta, theta, psi, row[None])[0] for row in eye])
    return gradient[0], hessian, mixed


class Short(LinearQuadratic):
    """Twenty steps, as in the measurements that this package started from."""

    horizon = 20


def affine_model(family, dynamics) -> DynamicsEnsemble:
    """An ensemble of one member that predicts exactly these affine dynamics."""
    config = DynamicsConfig(hidden_sizes=(), num_members=1)
    model = DynamicsEnsemble(family, config, torch.Generator().manual_seed(0), dtype=double)
    with torch.no_grad():
        model.weights[0][0, 0] = torch.cat([dynamics.A.T - torch.eye(4, dtype=double), dynamics.B.T])
        model.biases[0][0, 0, 0] = dynamics.c
    return model


def exact_run(family, dynamics):
    """A run whose model predicts these dynamics exactly, and whose policies are affine."""
    policy = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=math.log(SIGMA))
    return SimpleNamespace(
        path="run",
        family=family,
        learner=SimpleNamespace(model=affine_model(family, dynamics)),
        policy=policy,
        method=lambda virtual, name: Slbo(family, policy, virtual),
        virtual=VirtualTrainingConfig(),
        info=SimpleNamespace(selector="exact"),
        provenance=dict,
    )


def wrong_dynamics(family, seed=3) -> AffineDynamics:
    """The truth with 15 % error."""
    generator = torch.Generator().manual_seed(seed)

    def wrong(x):
        return x * (1 + 0.15 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    truth = family.dynamics
    return AffineDynamics(wrong(truth.A), wrong(truth.B), wrong(truth.c) + 0.02)


def exact_return(family, dynamics=None):
    """Exact returns per step of M affine policies."""

    def eta(theta, psi):
        pairs = zip(theta, psi, strict=True)
        T = family.horizon
        return torch.stack(
            [family.eta(t, p, sigma=SIGMA, dynamics=dynamics, num_steps=T) / T for t, p in pairs]
        )

    return eta


def maximise(family, dynamics, psi, theta):
    """theta_hat of a finite horizon by Newton's method on the exact return."""
    eta = exact_return(family, dynamics)
    for _ in range(20):
        gradient, hessian, _ = derivatives(eta, theta, psi)
        theta = theta - torch.linalg.solve(hessian, gradient)[None]
    assert float(gradient.norm()) < 1e-10
    return theta


def lq_problem():
    """family, model (as dynamics and as ensemble), psi, theta_hat, theta*, as solutions, and the exact parts."""
    family = Short()
    dynamics = wrong_dynamics(family)
    psi = torch.tensor([[0.5, -0.8]], dtype=double)
    policy = GaussianPolicy(4, 2, hidden_sizes=(), fixed_log_std=math.log(SIGMA))
    start = family.theta_star(psi[0], dynamics)[None]
    hat = maximise(family, dynamics, psi, start)
    star = maximise(family, None, psi, family.theta_star(psi[0])[None])
    value = ValueFunction.make(
        family.start_mean, torch.ones(4, dtype=double), ValueConfig(num_features=32, ridge=1e-6)
    )
    theta_hat, theta_star = (Solution(psi, policy, theta, value, value.init(1)) for theta in (hat, star))
    _, hessian, mixed = derivatives(exact_return(family, dynamics), hat, psi)
    v, adapted = gradient_of(exact_return(family), hat, psi)
    implicit = -mixed.T @ torch.linalg.solve(hessian, v[0])
    _, optimal = gradient_of(exact_return(family), star, psi)
    exact = {"hessian": hessian, "mixed": mixed, "v": v, "implicit": implicit, "adapted": adapted[0]}
    return family, affine_model(family, dynamics), psi, theta_hat, theta_star, exact | {"optimal": optimal[0]}


def sample(family, model, solution, num_lanes, seed):
    """A rollout of the solution in the model, or in the truth."""
    generators = spawn_generators(torch.Generator().manual_seed(seed), len(solution.theta))
    shape = (len(solution.theta), num_lanes)
    simulator = VirtualEnv(model, family, shape) if model else family.make_simulator(shape, dtype=double)
    actor = stochastic_actor(solution, shape, family.horizon, generators)
    with torch.no_grad():
        return collect(simulator, family, actor, family.horizon, generators)
