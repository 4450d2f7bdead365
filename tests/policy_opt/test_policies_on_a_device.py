"""Policies, TRPO, GAE and the value fit on the CPU and on another device: the same, and how often the host waits."""

import pytest
import torch
from solver_tools import normals
from stand_in_device import DEVICE, watch
from torch.testing import assert_close

from policy_opt import (
    CategoricalPolicy,
    GaussianPolicy,
    TrpoConfig,
    ValueConfig,
    ValueFunction,
    gae,
    trpo_step,
)
from policy_opt.trpo import fisher_product

TASKS, LANES, STEPS = 3, 4, 20
OBS, ADVANTAGE = normals(TASKS, LANES, STEPS, 3, seed=1), normals(TASKS, LANES, STEPS, seed=2)
MEAN, STD = normals(3, seed=3), 1 + normals(3, seed=4).abs()
CENTER, SCALE = normals(2, seed=5), 1 + normals(2, seed=6).abs()
CHOICE = CategoricalPolicy(3, 5, hidden_sizes=(8,)).with_normalizer(MEAN, STD)


def policy_on(device):
    policy = GaussianPolicy(3, 2, hidden_sizes=(8, 8)).with_normalizer(MEAN.to(device), STD.to(device))
    return policy.with_action_units(CENTER.to(device), SCALE.to(device))


def theta_on(device):
    """Drawn by generators of the CPU: the same policies on every device."""
    generators = [torch.Generator().manual_seed(m) for m in range(TASKS)]
    return policy_on("cpu").init(generators, dtype=torch.float64).to(device)


def actions_on(device):
    noise = normals(TASKS, LANES, STEPS, 2, seed=7).to(device)
    return policy_on(device).sample(theta_on(device), OBS.to(device), noise)


def test_a_policy_is_the_same(device):
    act, log_prob = actions_on(device)
    expected, log_prob_here = actions_on("cpu")
    assert_close(act.cpu(), expected)
    assert_close(log_prob.cpu(), log_prob_here)
    here, there = ((policy_on(d), theta_on(d), OBS.to(d)) for d in ("cpu", device))
    for function in (
        lambda policy, theta, obs: policy.log_prob(theta, obs, expected.to(obs.device)),
        lambda policy, theta, obs: policy.kl(theta, theta + 0.1, obs),
        lambda policy, theta, obs: policy.entropy(theta),
        lambda policy, theta, obs: policy.noise(theta, obs, expected.to(obs.device)),
        lambda policy, theta, obs: policy.mean(theta, obs),
    ):
        with watch() as seen:
            value = function(*there)
        assert seen.read_backs == []
        assert_close(value.cpu(), function(*here))


def test_a_policy_that_chooses_is_the_same(device):
    generators = [torch.Generator().manual_seed(m) for m in range(TASKS)]
    theta = CHOICE.init(generators, dtype=torch.float64)
    noise = normals(TASKS, LANES, STEPS, 5, seed=7)
    act, log_prob = CHOICE.sample(theta, OBS, noise)
    policy, *there = (x.to(device) for x in (CHOICE, theta, OBS, noise, ADVANTAGE))
    with watch() as seen:
        act_there, log_prob_there = policy.sample(*there[:3])
        kl = policy.kl(there[0], there[0] + 0.1, there[1])
        entropy = policy.entropy(*there[:2])
    assert seen.read_backs == []
    assert torch.equal(act_there.cpu(), act)
    assert_close(log_prob_there.cpu(), log_prob)
    assert_close(kl.cpu(), CHOICE.kl(theta, theta + 0.1, OBS))
    assert_close(entropy.cpu(), CHOICE.entropy(theta, OBS))
    expected, _ = trpo_step(CHOICE, theta, OBS, act, ADVANTAGE, TrpoConfig(cg_steps=5))
    new, report = trpo_step(policy, *there[:2], act_there, there[3], TrpoConfig(cg_steps=5))
    assert report.accepted.all()
    assert_close(new.cpu(), expected, rtol=1e-8, atol=1e-10)


def test_advantages_are_the_same(device):
    done = normals(2, LANES, STEPS, seed=8) > 1
    values = normals(3, LANES, STEPS, seed=9)
    expected = gae(*values, *done, gamma=0.9, gae_lambda=0.8)
    there = [x.to(device) for x in (*values, *done)]
    with watch() as seen:
        advantage = gae(*there, gamma=0.9, gae_lambda=0.8)
    assert seen.read_backs == []
    assert torch.equal(advantage.cpu(), expected)


def test_a_value_fit_reads_nothing_back(device):
    weights = []
    for where in ("cpu", device):
        value = ValueFunction.make(MEAN.to(where), STD.to(where), ValueConfig())
        obs, target = OBS.to(where), ADVANTAGE.to(where)
        with watch() as seen:
            fitted = value.fit(value.features(obs), target)
            value(fitted, obs)
        assert seen.read_backs == []
        weights.append(fitted.cpu())
    assert_close(*weights)


def test_a_value_fit_that_is_singular_is_nan_there_alone(device):
    value = ValueFunction.make(MEAN.to(device), STD.to(device), ValueConfig())
    target = ADVANTAGE.to(device).clone()
    target[1] = torch.nan
    fitted = value.fit(value.features(OBS.to(device)), target)
    assert fitted.isfinite().all(1).tolist() == [True, False, True]


def step_on(device, dtype=torch.float64, **settings):
    act = actions_on("cpu")[0]
    args = [x.to(device, dtype) for x in (theta_on("cpu"), OBS, act, ADVANTAGE)]
    policy = policy_on(device)
    with watch() as seen:
        theta, report = trpo_step(policy, *args, TrpoConfig(**settings))
    return theta, report, seen.read_backs


@pytest.mark.parametrize("fisher_fraction", [1.0, 0.3])
def test_a_trust_region_step_is_the_same(fisher_fraction, device):
    expected, report_here, _ = step_on("cpu", fisher_fraction=fisher_fraction)
    theta, report, _ = step_on(device, fisher_fraction=fisher_fraction)
    assert_close(theta.cpu(), expected, rtol=1e-8, atol=1e-10)
    assert report.accepted.all()
    assert report.accepted.tolist() == report_here.accepted.tolist()
    assert_close(report.kl.cpu(), report_here.kl, rtol=1e-6, atol=0)
    assert not torch.equal(theta.cpu(), theta_on("cpu"))


def test_a_trust_region_step_waits_for_its_line_search_and_its_solve():
    """Twice for the solve (three times in single precision), then once for each halving of the step."""
    for dtype, solve in ((torch.float64, 2), (torch.float32, 3)):
        for cg_steps in (3, 10):
            _, report, read_backs = step_on(DEVICE, dtype, cg_steps=cg_steps)
            halvings = int(-report.step_fraction.log2().min())
            assert len(read_backs) == solve + 1 + halvings


def test_a_task_that_is_not_finite_is_rejected_on_every_device(device):
    act, advantage = actions_on("cpu")[0], ADVANTAGE.clone()
    advantage[1, 0, 0] = torch.nan
    args = [x.to(device) for x in (theta_on("cpu"), OBS, act, advantage)]
    theta, report = trpo_step(policy_on(device), *args, TrpoConfig())
    assert report.accepted.tolist() == [True, False, True]
    assert torch.equal(theta[1].cpu(), theta_on("cpu")[1])


def test_products_with_the_fisher_matrix(device):
    products = []
    for where in ("cpu", device):
        policy, theta = policy_on(where), theta_on(where)
        x = policy.normalize(OBS.to(where)).flatten(1, 2)
        products.append(fisher_product(policy, theta, x)(torch.ones_like(theta)).cpu())
    assert_close(*products)
