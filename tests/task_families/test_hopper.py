"""Hopper2D against the fact sheet of the released implementation."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from task_families import collect, make
from task_families.conformance_tools import DOUBLE, seeded, simulate, start_states

EVERY_LANE = torch.ones(1, 1, dtype=torch.bool)


def hopper_obs(**changes):
    """A healthy observation with some coordinates changed, by index: ``hopper_obs(**{"0": 0.5})``."""
    obs = torch.tensor([1.25, 0.0, 0.1, -0.1, 0.2, 0.3, -0.3, 0.4, -0.4, 0.5, -0.5], dtype=DOUBLE)
    for index, value in changes.items():
        obs[int(index)] = value
    return obs


def test_hopper_constants(hopper):
    assert (hopper.obs_size, hopper.act_size, hopper.horizon, hopper.gamma) == (11, 3, 200, 0.99)
    torch.testing.assert_close(hopper.box.low, torch.tensor([-2.0, 1.2]))
    torch.testing.assert_close(hopper.box.high, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(hopper.first_psi, torch.tensor([0.6, 1.72]))


@pytest.mark.parametrize(("variant", "expected"), [("released", 7.4474375), ("paper", -2.55)])
def test_hopper_reward_by_hand(variant, expected):
    """10 - |0.8 - 0.6| - 5 |1.25 - 1.72| - 0.001 (1.5^2 + 0.5^2 + 0.25^2); the paper: - 0.2 - 2.35."""
    family = make("hopper2d", variant=variant)
    psi = torch.tensor([0.6, 1.72], dtype=DOUBLE)
    act = torch.tensor([1.5, -0.5, 0.25], dtype=DOUBLE)  # the cost is of the action before it is clamped
    reward = family.reward(psi, hopper_obs(**{"0": 9.0, "5": 9.0}), act, hopper_obs(**{"0": 1.25, "5": 0.8}))
    assert abs(float(reward) - expected) < 1e-12


def test_hopper_variants_differ_in_the_reward_alone():
    paper = make("hopper2d", variant="paper")
    assert torch.equal(paper.box.low, make("hopper2d").box.low)
    assert bool(paper.terminated(hopper_obs(**{"0": 0.6})))


ALIVE, ENDED = False, True
TERMINATION = [
    ({}, ALIVE),
    ({"0": 0.7 + 1e-9}, ALIVE),
    ({"0": 0.7}, ENDED),
    ({"0": -5.0}, ENDED),
    ({"0": 50.0}, ALIVE),
    ({"0": 150.0}, ALIVE),  # the limit of 100 is for obs[2:]
    ({"1": 0.2 - 1e-9}, ALIVE),
    ({"1": -0.2 + 1e-9}, ALIVE),
    ({"1": 0.2}, ENDED),
    ({"1": -0.2}, ENDED),
    *[({str(i): s * (100 - 1e-9)}, ALIVE) for i in range(2, 11) for s in (-1, 1)],
    *[({str(i): s * 100.0}, ENDED) for i in range(2, 11) for s in (-1, 1)],
    *[({str(i): math.nan}, ENDED) for i in range(11)],
    *[({str(i): s * math.inf}, ENDED) for i in range(11) for s in (-1, 1)],
]


def test_hopper_termination_truth_table(hopper):
    obs = torch.stack([hopper_obs(**changes) for changes, _ in TERMINATION])
    got = hopper.terminated(obs).tolist()
    wrong = [
        (changes, ended)
        for (changes, expected), ended in zip(TERMINATION, got, strict=True)
        if ended != expected
    ]
    assert wrong == []


def test_hopper_reset_noise(hopper):
    """qpos0 + U(-0.1, 0.1), qvel 0.1 N(0, 1), per coordinate; qpos0 = (0, 1.25, 0, 0, 0, 0)."""
    n = 20_000
    states = hopper.make_simulator((1, 1)).start_states(n, seeded(0))
    assert states.shape == (n, 12) and states.dtype == DOUBLE
    shift = states[:, :6] - torch.tensor([0, 1.25, 0, 0, 0, 0], dtype=DOUBLE)
    assert float(shift.abs().max()) <= 0.1
    assert bool((shift.max(0).values > 0.0995).all()) and bool((shift.min(0).values < -0.0995).all())
    assert float((shift.std(0) - 0.2 / math.sqrt(12)).abs().max()) < 0.001
    velocity = states[:, 6:]
    assert float(velocity.mean(0).abs().max()) < 4 * 0.1 / math.sqrt(n)
    assert float((velocity.std(0) - 0.1).abs().max()) < 4 * 0.1 / math.sqrt(2 * n)
    assert abs(float((velocity.abs() < 0.1).double().mean()) - math.erf(math.sqrt(0.5))) < 0.006
    correlation = torch.corrcoef(states.T) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)  # independent coordinates


def test_hopper_observation_layout(hopper):
    """qpos without the root's x, then qvel clipped to +-10."""
    states = torch.arange(12, dtype=DOUBLE)[None] * 0.01
    states[0, 6], states[0, 11] = 25.0, -25.0
    obs = hopper.make_simulator((1, 1), dtype=DOUBLE).reset(EVERY_LANE, states)[0, 0]
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 10.0, 0.07, 0.08, 0.09, 0.10, -10.0]
    torch.testing.assert_close(obs, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-15)


def test_hopper_step_is_one_mj_step(hopper):
    """frame_skip 1: bit-identical to MuJoCo's own stepping of gymnasium's model at the same state and control."""
    from gymnasium.envs.mujoco import mujoco_env

    xml = Path(mujoco_env.__file__).parent / "assets" / "hopper.xml"
    model = mujoco.MjModel.from_xml_path(str(xml))
    assert model.opt.timestep == 0.002
    data = mujoco.MjData(model)
    states = start_states(hopper, (1, 1), 3)
    actions = torch.randn(100, 1, 1, 3, generator=seeded(4), dtype=DOUBLE)  # many beyond [-1, 1]
    data.qpos[:], data.qvel[:] = states[0, 0, :6].numpy(), states[0, 0, 6:].numpy()
    expected = []
    for act in actions:
        data.ctrl[:] = act[0, 0].numpy()
        mujoco.mj_step(model, data)
        expected.append(np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)]))
    obs = simulate(hopper, states, actions)[1:, 0, 0].numpy()
    np.testing.assert_array_equal(obs, np.stack(expected))
    clamped = simulate(hopper, states, actions.clamp(-1, 1))[1:, 0, 0].numpy()
    np.testing.assert_array_equal(obs, clamped)  # MuJoCo clamps the control


def test_hopper_restart_leaves_no_trace(hopper):
    """A reset lane is bit-identical to a new simulator, the solver's warm start included."""
    states, fresh = start_states(hopper, (2, 8), 7), start_states(hopper, (2, 8), 8)
    actions = torch.randn(160, 2, 8, 3, generator=seeded(9), dtype=DOUBLE)
    simulator = hopper.make_simulator((2, 8), dtype=DOUBLE)
    simulator.reset(torch.ones(2, 8, dtype=torch.bool), states.flatten(0, 1))
    for act in actions[:60]:
        simulator.step(act)
    simulator.reset(torch.ones(2, 8, dtype=torch.bool), fresh.flatten(0, 1))
    obs = torch.stack([simulator.step(act) for act in actions[60:]])
    assert torch.equal(obs, simulate(hopper, fresh, actions[60:])[1:])


def test_hopper_does_not_depend_on_the_number_of_threads(hopper):
    states = start_states(hopper, (3, 7), 5)
    actions = torch.randn(100, 3, 7, 3, generator=seeded(6), dtype=DOUBLE)
    one, two, three = (simulate(hopper, states, actions, num_threads=n) for n in (1, 2, 3))
    assert torch.equal(one, two) and torch.equal(one, three)


def test_hopper_random_policy_near_the_reference(hopper):
    """Actions clip(N(0, 1)) on the first task: the reference measured return 751 and length 110 in 20 episodes.

    20 episodes leave it a standard error of about 340 / sqrt(20) = 76 (return) and 48 / sqrt(20) = 11 (length);
    the tolerance is 3 standard errors of the difference. That is coarse: it catches a frame_skip of 4 (length 17),
    while the reset noise and the step have exact tests of their own above.
    """
    n, horizon = 200, hopper.horizon
    noise = torch.randn(horizon, 1, n, 3, generator=seeded(0), dtype=DOUBLE).clamp(-1, 1)
    rollout = collect(
        hopper.make_simulator((1, n), dtype=DOUBLE),
        hopper,
        lambda t, obs: (noise[t], noise[t].new_zeros(1, n)),
        horizon,
        [seeded(1)],
    )
    mask = rollout.first_episode()
    psi = hopper.first_psi.double()
    reward = torch.where(mask, hopper.reward(psi, rollout.obs, rollout.act, rollout.next_obs), 0.0)
    for per_episode, reference in ((reward.sum(-1)[0], 751), (mask.sum(-1)[0].double(), 110)):
        standard_error = float(per_episode.std()) * math.sqrt(1 / n + 1 / 20)
        assert abs(float(per_episode.mean()) - reference) < 3 * standard_error
