"""Observations with a large offset: whoever trains on them is told once, with the numbers; nobody else is."""

import re
import warnings

import pytest
import torch
from dynamics_tools import SMALL, seeded
from offset_tools import OffsetMass

from dynamics import FitConfig, ModelLearner
from dynamics.precision import lost_digits
from task_families import Rollout, collect, make, names
from task_families.conformance_tools import random_actions, tasks_of


def rollout_of(family, seed=0, num_tasks=1, dtype=torch.float32):
    shape = (num_tasks, 4)
    psi = tasks_of(family, num_tasks, 0)
    actions = random_actions(family, family.horizon, *shape, seed=seed, scale=0.5).to(dtype)
    zero = torch.zeros(shape)
    simulator = family.make_simulator(shape, dtype=dtype, psi=psi)
    generators = [seeded(seed + k) for k in range(num_tasks)]
    return collect(simulator, family, lambda t, obs: (actions[t], zero), family.horizon, generators)


def learner_of(family, dtype=torch.float32):
    return ModelLearner.make(family, SMALL, FitConfig(held_out=0.25), seeded(), dtype=dtype)


def test_an_offset_is_told_once_with_its_numbers():
    """Before: a tenth of the return was lost without a word."""
    family = OffsetMass(offset=(0.0, 1e6))
    learner = learner_of(family)
    with pytest.warns(UserWarning) as told:
        learner.add(rollout_of(family))
        learner.add(rollout_of(family, seed=9))
        learner.fork([seeded(1), seeded(2)]).add(rollout_of(family, seed=5, num_tasks=2))
    (warning,) = told
    numbers = r"coordinate 1 has the offset 1e\+06 and the spread 0\.\d, so float32 loses (\d\.\d) of its 6\.9 digits"
    found = re.search(numbers, str(warning.message))
    assert found and 5.8 < float(found[1]) < 6.6  # log10(1e6 / 0.7) = 6.2
    assert "Subtract the offset" in str(warning.message) and "TransformObservation" in str(warning.message)


def test_models_of_one_task_each_tell_it_too():
    family = OffsetMass()
    learner = learner_of(family)
    learner.add(rollout_of(family))
    fork = learner.fork([seeded(1), seeded(2)])
    rollout = rollout_of(family, num_tasks=2)
    far = Rollout(
        rollout.obs + torch.tensor([0.0, 1e7])[:, None, None, None],
        rollout.act,
        rollout.next_obs + torch.tensor([0.0, 1e7])[:, None, None, None],
        rollout.log_prob,
        rollout.terminated,
        rollout.truncated,
    )
    fork.data[1].load_state_dict({name: x[:0] for name, x in fork.data[1].state_dict().items()})
    fork.model.obs_normalizer.count[1] = 0
    with pytest.warns(UserWarning, match=r"coordinate \d has the offset 1e\+07"):
        fork.add(far)


def test_float64_keeps_the_digits():
    family = OffsetMass(offset=(0.0, 1e6))
    learner_of(family, torch.float64).add(rollout_of(family, dtype=torch.float64))


@pytest.mark.parametrize("offset", [0.0, 1e3, -2e4])
def test_small_offsets_are_not_mentioned(offset):
    family = OffsetMass(offset=(offset, 0.0))
    learner_of(family).add(rollout_of(family))


@pytest.mark.parametrize("name", names())
def test_no_family_of_this_package_is_mentioned(name):
    """Any warning is an error here."""
    family = make(name)
    learner = learner_of(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.add(rollout_of(family))


def test_where_the_limit_lies():
    """By hand: float32 rounds at 1e6 in steps of 0.12; 100 of them are 12."""
    mean, float32 = torch.tensor([5.0, -1e6]), torch.float32
    assert lost_digits(mean, torch.tensor([1.0, 12.5]), float32) is None
    assert "coordinate 1 has the offset -1e+06 and the spread 1e+01" in lost_digits(
        mean, torch.tensor([1.0, 11.5]), float32
    )
    assert lost_digits(mean, torch.tensor([1.0, 1e-3]), torch.float64) is None
    worst = lost_digits(
        torch.tensor([[1e6, 1e6], [1e6, 1e6]]), torch.tensor([[9.0, 8.0], [1.0, 9.0]]), float32
    )
    assert "coordinate 0 " in worst and "spread 1," in worst


def test_what_never_moves_is_mentioned_where_it_could_not_be_seen_to_move():
    """At 1e9 float32 holds every 64th number: a coordinate that moves by 1 stands still."""
    family = OffsetMass(offset=(1e9, 0.0))
    with pytest.warns(
        UserWarning, match=r"coordinate 0 is always 1e\+09, and float32 would not show .* 1e\+02"
    ):
        learner_of(family).add(rollout_of(family))
    still = torch.full((3,), 1e-6)  # the least that a normaliser says
    assert lost_digits(torch.tensor([1.0, 0.0, -5e4]), still, torch.float32) is None
