"""TRPO steps whose directions a GPU would record: the same numbers, fewer waits, and nothing of it on the CPU."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from solver_tools import normals
from stand_in_device import DEVICE, watch

from policy_opt import CategoricalPolicy, GaussianPolicy, TrpoConfig, trpo_step
from policy_opt.capture import RECORDERS, Newest

TASKS, STATES = 3, 60
POLICIES = {
    "gaussian": GaussianPolicy(3, 2, hidden_sizes=(8, 8)),
    "fixed width": GaussianPolicy(3, 2, hidden_sizes=(8,), fixed_log_std=-1.0),
    "categorical": CategoricalPolicy(3, 5, hidden_sizes=(8,)),
}


@dataclass(frozen=True, eq=False)
class Unknown(GaussianPolicy):
    """A policy that does not say what its products depend on."""

    shape_key = None


def thetas(policy, device, recorded, dtype=torch.float64, num_steps=4, config=None):
    """After each of some steps, between which samples and normalisers change; and the waits of each."""
    theta = policy.init([torch.Generator().manual_seed(m) for m in range(TASKS)], dtype=dtype).to(device)
    found, waits = [], []
    for i in range(num_steps):
        obs, advantage = normals(TASKS, STATES, 3, seed=i), normals(TASKS, STATES, seed=10 + i)
        noise = normals(TASKS, STATES, policy.act_size, seed=20 + i)
        obs, advantage, noise, mean = (x.to(device, dtype) for x in (obs, advantage, noise, obs[0, i]))
        now = policy.with_normalizer(mean, 1 + mean.abs())
        act, _ = now.sample(theta, obs, noise)
        with watch() as seen:
            theta, report = trpo_step(now, theta, obs, act, advantage, config or TrpoConfig(), recorded)
        assert report.accepted.all()
        found.append(theta)
        waits.append(len(seen.read_backs) - int(-report.step_fraction.log2().min()))
    return found, waits


def assert_equal(found, expected):
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_recorded_steps_are_the_same_bit_by_bit(name, dtype, fraction):
    config, kept = TrpoConfig(fisher_fraction=fraction), Newest(2)
    expected, waits = thetas(POLICIES[name], DEVICE, None, dtype, config=config)
    found, fewer = thetas(POLICIES[name], DEVICE, kept, dtype, config=config)
    assert_equal(found, expected)
    assert not torch.equal(found[0].cpu(), found[1].cpu())
    solve = 2 if dtype == torch.float64 else 3
    assert waits == [1 + solve] * 4 and fewer == [1 + solve, 1, 1, 1]
    assert len(kept) == 1


def test_other_settings_and_sizes_are_recorded_apart():
    kept = Newest(10)
    for config in (TrpoConfig(), TrpoConfig(cg_damping=0.5)):
        for policy in POLICIES.values():
            expected, _ = thetas(policy, DEVICE, None, config=config)
            assert_equal(thetas(policy, DEVICE, kept, config=config)[0], expected)
    assert len(kept) == 6


def test_what_cannot_be_recorded_says_so_once_and_goes_on_with_the_same_numbers(monkeypatch):
    def record(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    expected, _ = thetas(POLICIES["gaussian"], DEVICE, None)
    monkeypatch.setitem(RECORDERS, DEVICE.type, record)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, _ = thetas(POLICIES["gaussian"], DEVICE, Newest(2))
    assert ["the direction of a TRPO step cannot be recorded" in str(one.message) for one in told] == [True]
    assert_equal(found, expected)


@pytest.mark.parametrize(("policy", "where"), [(POLICIES["gaussian"], "cpu"), (Unknown(3, 2, (8,)), DEVICE)])
def test_nothing_is_kept_on_the_cpu_or_of_a_policy_without_a_key(policy, where):
    kept = Newest(2)
    found, _ = thetas(policy, where, kept)
    assert len(kept) == 0
    assert_equal(found, thetas(policy, where, None)[0])
