"""Recorded rollouts on the stand-in: the numbers of the CPU while the model, the policies and the sizes change."""

import gc
import weakref
from dataclasses import fields, replace

import pytest
import torch
from stand_in_device import DEVICE
from torch.testing import assert_close

from admrl.config.training import VirtualTrainingConfig
from admrl.solving import captured_rollouts
from admrl.solving.rollouts import real_rollout, virtual_continuation, virtual_rollout
from admrl.solving.solution import new_solution, refresh_normalizer
from admrl.solving.virtual_training import new_lanes
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy
from task_families import spawn_generators
from task_families.linear_quadratic import LinearQuadratic

CONFIG = VirtualTrainingConfig(num_samples=40, steps_per_lane=5)
TASKS = 3


class Ends(LinearQuadratic):
    """Ten steps, an end where the first position leaves its strip, and actions with units."""

    horizon = 10
    act_limit = 3.0

    def terminated(self, next_obs):
        return super().terminated(next_obs) | (next_obs[..., 0].abs() > 0.4)


def generators(seed=1):
    return spawn_generators(torch.Generator().manual_seed(seed), TASKS)


def problem(device):
    family, generator = Ends(), torch.Generator().manual_seed(0)
    dynamics, fit = DynamicsConfig((16,), 2, output_scale=0.5), FitConfig(batch_size=32)
    learner = ModelLearner.make(family, dynamics, fit, generator, dtype=torch.float64)
    psi = family.box.sample(TASKS, "uniform", generator).double()
    first = new_solution(learner.model, psi, GaussianPolicy(4, 2, (8,)), CONFIG, generators())
    learner.add(real_rollout(family, first, 6, generators(7)))
    return family, learner.to(device), first.to(device)


def assert_same(there, here):
    for f in fields(here):
        assert_close(getattr(there, f.name).cpu(), getattr(here, f.name), rtol=1e-8, atol=1e-10, msg=f.name)


def changing_rollouts(device, precision):
    """Six rollouts, between which everything changes that a recorded one must see."""
    family, learner, solution = problem(device)
    found = []
    for i in range(6):
        now = solution if i != 3 else solution.tasks(torch.tensor([0, 2]))
        seeds = generators(i) if i != 3 else generators(i)[:2]
        found.append(virtual_rollout(family, learner.model, now, 4, seeds, precision=precision))
        learner.add(real_rollout(family, solution, 2, generators(20 + i)))  # moves the normalisers
        learner.fit(2)
        solution = refresh_normalizer(
            replace(solution, theta=solution.theta + 0.01), learner.model.obs_normalizer
        )
    return found


def test_recorded_rollouts_follow_the_model_and_the_policies(device):
    expected, found = changing_rollouts("cpu", "full"), changing_rollouts(device, "full")
    assert any(rollout.terminated[..., :-1].any() for rollout in expected), "no lane restarts"
    for there, here in zip(found, expected, strict=True):
        assert_same(there, here)


def test_weights_of_half_precision_are_those_of_the_moment():
    expected, found = changing_rollouts("cpu", "bfloat16"), changing_rollouts(DEVICE, "bfloat16")
    for there, here in zip(found, expected, strict=True):
        assert_close(there.obs.cpu(), here.obs, rtol=0.1, atol=0.1)


def test_lanes_that_go_on_are_recorded_too(device):
    ends = []
    for where in ("cpu", device):
        family, learner, solution = problem(where)
        lanes = new_lanes(solution, family, 2, CONFIG)
        for seed in range(4):
            rollout = virtual_continuation(family, learner.model, solution, lanes, 5, generators(seed))
            reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
            lanes, _ = lanes.after(rollout, reward, torch.ones_like(rollout.terminated), family.horizon)
        ends.append((rollout, lanes))
    assert_same(ends[1][0], ends[0][0])
    assert_same(ends[1][1], ends[0][1])


def test_the_newest_few_are_kept_while_the_model_lives():
    family, learner, solution = problem(DEVICE)
    for num_lanes in (2, 4, 6, 8, 10):
        virtual_rollout(family, learner.model, solution, num_lanes, generators())
    twin = captured_rollouts._twins[learner.model]
    assert len(twin.rollouts) == captured_rollouts.KEPT
    known = weakref.ref(twin)
    del twin, learner
    gc.collect()
    assert known() is None


def test_on_the_cpu_nothing_is_kept():
    family, learner, solution = problem("cpu")
    for _ in range(3):
        virtual_rollout(family, learner.model, solution, 4, generators())
    assert learner.model not in captured_rollouts._twins


@pytest.mark.parametrize("draws_steps", [True, False])
def test_steps_that_are_drawn_are_not_recorded(draws_steps, device):
    rollouts = []
    for where in ("cpu", device):
        family, generator = Ends(), torch.Generator().manual_seed(0)
        dynamics = DynamicsConfig((8,), 2, predicts="gaussian")
        learner = ModelLearner.make(family, dynamics, FitConfig(), generator, dtype=torch.float64).to(where)
        psi = family.box.sample(TASKS, "uniform", generator).double()
        solution = new_solution(learner.model, psi, GaussianPolicy(4, 2, (8,)), CONFIG, generators())
        for seed in range(3):
            last = virtual_rollout(
                family, learner.model, solution, 4, generators(seed), draws_steps=draws_steps
            )
        rollouts.append(last)
        kept = learner.model in captured_rollouts._twins
        assert kept == (where != "cpu" and device.type != "cpu" and not draws_steps)
    assert_same(rollouts[1], rollouts[0])
