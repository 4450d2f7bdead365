"""Simulations that MuJoCo finds unstable: seen, counted, and kept to their lane."""

import math

import numpy as np
import pytest
import torch

from task_families import collect, make
from task_families.conformance_tools import DOUBLE, seeded, start_states


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT into the working directory when a simulation is unstable."""
    monkeypatch.chdir(tmp_path)


ONE_LANE = torch.ones(1, 1, dtype=torch.bool)
BOTH = torch.ones(1, 2, dtype=torch.bool)
QUIET = torch.zeros(1, 2, 3, dtype=DOUBLE)


def test_nan_action_observes_nan_until_the_lane_is_reset(hopper, in_tmp_path):
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    simulator.reset(BOTH, states)
    act = QUIET.clone()
    act[0, 0, 1] = math.nan
    for step, action in enumerate((QUIET, act, act, QUIET)):
        obs = simulator.step(action)
        assert bool(obs[0, 0].isnan().all()) == (step >= 1)
        assert hopper.terminated(obs).tolist() == [[step >= 1, False]]
        assert bool(obs[0, 1].isfinite().all())
        assert simulator.num_unstable == int(step >= 1)  # one event, counted once
    obs = simulator.reset(torch.tensor([[True, False]]), states[:1])
    assert bool(obs.isfinite().all())
    assert bool(simulator.step(QUIET).isfinite().all()) and simulator.num_unstable == 1


def test_unstable_state_observes_nan(hopper, in_tmp_path):
    """A state that MuJoCo resets by itself (velocity beyond 1e10) must not pass for data."""
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    states[0, 7] = 1e11
    simulator.reset(BOTH, states)
    for _ in range(3):
        obs = simulator.step(QUIET)
        assert bool(obs[0, 0].isnan().all()) and bool(obs[0, 1].isfinite().all())
    assert simulator.num_unstable == 1


@pytest.mark.parametrize("steps_between", [0, 1, 3])
def test_every_unstable_episode_is_noticed(hopper, in_tmp_path, steps_between):
    """Also when the step right after a restart is the unstable one."""
    simulator = hopper.make_simulator((1, 2), dtype=DOUBLE)
    states = start_states(hopper, (2,), 0)
    simulator.reset(BOTH, states)
    act = QUIET.clone()
    act[0, 0] = math.nan
    for episode in range(3):
        for _ in range(steps_between):
            assert bool(simulator.step(QUIET).isfinite().all())
        obs = simulator.step(act)
        assert bool(obs[0, 0].isnan().all()), f"episode {episode} was not noticed"
        assert simulator.num_unstable == episode + 1
        simulator.reset(torch.tensor([[True, False]]), states[:1])


def test_unstable_lane_of_a_family_without_termination_restarts(in_tmp_path):
    """Its episode ends with one nan successor, and the lane goes on from a new start; no other number is touched."""
    family = make("cheetah_highdim")
    simulator = family.make_simulator((1, 2), dtype=DOUBLE)
    actions = torch.zeros(6, 1, 2, 6, dtype=DOUBLE)
    actions[2, 0, 1, 0] = math.nan
    rollout = collect(simulator, family, lambda t, obs: (actions[t], torch.zeros(1, 2)), 6, [seeded(0)])
    assert simulator.num_unstable == rollout.num_unstable == 1
    assert rollout.terminated[0].nonzero().tolist() == [[1, 2]]
    bad = ~rollout.next_obs.isfinite().all(-1)[0]
    assert bad.nonzero().tolist() == [[1, 2]] and bool(rollout.obs.isfinite().all())


def test_unstable_episode_ends_in_the_environment(in_tmp_path):
    """A state that MuJoCo resets by itself: the episode terminates and says why."""
    env = make("hopper2d").make_env((0.0, 1.5))
    env.reset(seed=0)
    states = start_states(env.family, (1,), 0)
    states[0, 7] = 1e11
    env._simulator.reset(ONE_LANE, states)
    obs, _, terminated, truncated, info = env.step(np.zeros(3, dtype=np.float32))
    assert terminated and not truncated and info == {"unstable": True} and bool(np.isnan(obs).all())
