"""The task gradient on the CPU and on another device: every estimator gives the same; how often the host waits."""

from dataclasses import replace

import pytest
import torch
from exact_problem import affine_model, sample
from stand_in_device import DEVICE, watch
from torch.testing import assert_close

from admrl.config.training import ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient import ESTIMATORS, Evidence, gap_gradient, task_gradient
from admrl.gradient.check import CheckPlan, SolvedTask, check_gradient
from admrl.gradient.implicit import for_damping, gradient_of, hessian_of, mixed_product, solve_adjoint
from task_families import spawn_generators

VIRTUAL = VirtualTrainingConfig(num_model_steps=0, num_policy_updates=1, num_samples=200)
RESOLVE = ResolveConfig(num_updates=2, num_replicates=2, num_episodes=4, num_virtual_episodes=4)
CONFIG = TaskGradientConfig(max_steps=6, polish_steps=1, num_extra_episodes=2, resolve=RESOLVE)


def evidence(problem, device, *, updated=True, **settings):
    """On a device, from the same samples, drawn on the CPU."""
    family, model, _, theta_hat, theta_star, _ = problem
    moved = {
        "theta_hat": theta_hat,
        "theta_star": theta_star,
        "hat_in_model": sample(family, model, theta_hat, 12, 0),
        "hat_in_simulator": sample(family, None, theta_hat, 12, 1),
        "star_in_simulator": sample(family, None, theta_star, 12, 2),
    }
    return Evidence(
        family,
        **{name: value.to(device) for name, value in moved.items()},
        model=model.clone().to(device),
        updated_model=affine_model(family, family.dynamics).to(device) if updated else None,
        config=replace(CONFIG, **settings),
        virtual=VIRTUAL,
    )


def generators():
    return spawn_generators(torch.Generator().manual_seed(3), 1)


CASES = [(name, {"estimator": name, "horizon": 4}) for name in ESTIMATORS] + [
    ("resolve", {"estimator": "resolve"}),
    ("resolve through the model", {"estimator": "resolve", "resolve": replace(RESOLVE, solver="pathwise")}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[name for name, _ in CASES])
def test_every_estimator_is_the_same(name, settings, problem, device):
    found = [task_gradient(evidence(problem, where, **settings), generators()) for where in ("cpu", device)]
    here, there = found
    assert there.total.device.type == device.type
    for part in (
        "optimal",
        "adapted",
        "implicit",
        "easy_error",
        "gradient_norm",
        "total",
        "split_half_cosine",
    ):
        assert_close(getattr(there, part).cpu(), getattr(here, part), rtol=1e-5, atol=1e-8, msg=part)
    assert (there.real_samples, there.virtual_samples) == (here.real_samples, here.virtual_samples)
    if here.implicit_at is not None:
        assert_close(there.implicit_at(1e-2).cpu(), here.implicit_at(1e-2), rtol=1e-5, atol=1e-8)
        assert_close(there.curvature.cpu(), here.curvature, rtol=1e-5, atol=1e-8)


# Three estimates, of both halves and of all, with one adjoint solve each: the eigenvalues of a relative damping,
# those in its answer, a singular value decomposition, and a flag. `fisher` has two solves of 2 flags instead;
# `pathwise` and `mixed` polish before, by a solve (2) and a line search (1).
READ_BACKS = {"reinforce": 12, "per_step": 9, "causal": 12, "pathwise": 21, "mixed": 21, "fisher": 12}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_an_estimator_waits_for_grows_neither_with_samples_nor_with_steps(name, problem):
    for size in (2, 5):  # steps of the solve and through the model
        settings = {"max_steps": size, "horizon": size, "num_extra_episodes": 0}
        data = evidence(problem, DEVICE, estimator=name, **settings).lanes(slice(0, 2 * size))
        with watch() as seen:
            task_gradient(data, generators())
        assert len(seen.read_backs) == READ_BACKS[name]


def test_the_exact_gradient_of_three_returns(problem, device):
    """`gap_gradient` with returns that are tensors of the device throughout."""
    gradients = []
    for where in ("cpu", device):
        _, _, psi, theta_hat, theta_star, _ = problem
        theta_hat, theta_star, psi = (x.to(where) for x in (theta_hat.theta, theta_star.theta, psi))

        def eta(theta, psi):
            return -(theta.square().sum(-1) + (theta[:, :2] - psi).square().sum(-1) + theta.sin().sum(-1))

        gradients.append(
            gap_gradient(
                eta_model=eta,
                eta_star=lambda t, p: eta(0.9 * t, p),
                eta_star_at_optimum=eta,
                theta_hat=theta_hat,
                theta_star=theta_star,
                psi=psi,
                config=CONFIG,
            )
        )
        with watch() as seen:
            gradient_of(eta, theta_hat, psi)
            mixed_product(eta, theta_hat, psi, theta_hat)
            product = hessian_of(eta, theta_hat, psi)
            product(theta_hat)
        assert seen.read_backs == []
        solve = solve_adjoint(product, theta_hat, CONFIG, damping=0.1)
        for_damping(eta, theta_hat, psi, solve)(0.1)
    assert_close(gradients[1].total.cpu(), gradients[0].total)


def test_the_check_of_estimators_is_the_same(problem, device):
    family, model, _, theta_hat, theta_star, _ = problem
    plan = CheckPlan(["causal", "fisher"], 1, RESOLVE, 4)
    rows = []
    for where in ("cpu", device):
        solved = SolvedTask(theta_hat.to(where), theta_star.to(where), model.clone().to(where), None)
        config = replace(CONFIG, num_samples=12 * family.horizon, num_extra_episodes=0)
        rows.append(check_gradient(family, solved, plan, config, VIRTUAL))
    for there, here in zip(rows[1].draws, rows[0].draws, strict=True):
        assert there.total[0] == pytest.approx(here.total[0], rel=1e-5)
    assert rows[1].truth.total == pytest.approx(rows[0].truth.total, rel=1e-4)


def test_evidence_of_two_devices_is_not_mixed_up_in_silence(problem):
    here, there = (evidence(problem, where, estimator="causal") for where in ("cpu", DEVICE))
    with pytest.raises(RuntimeError, match=r"device|standin"):
        task_gradient(replace(there, hat_in_simulator=here.hat_in_simulator), generators())
