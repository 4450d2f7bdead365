"""AdMRL's families against the fact sheet of the released implementation, and unstable simulations."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import mujoco_env

from task_families import collect, make
from task_families.conformance_tools import DOUBLE, random_actions, seeded, simulate, start_states

ASSETS = Path(mujoco_env.__file__).parent / "assets"
EVERY_LANE = torch.ones(1, 1, dtype=torch.bool)


# -- Hopper2D against the fact sheet of the released implementation ----------------------------------------


@pytest.fixture
def hopper():
    return make("hopper2d")


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


# -- unstable simulations ----------------------------------------------------------------------------------


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT into the working directory when a simulation is unstable."""
    monkeypatch.chdir(tmp_path)


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


# -- Walker2D, Ant2D, Ant3D, Cheetah-Highdim ---------------------------------------------------------------

CONSTANTS = {  # observations, actions, low, high, first task
    "walker2d": (17, 6, [-2, 1.0], [2, 1.8], [0.6, 1.52]),
    "ant2d": (35, 8, [-3, -3], [3, 3], [0.9, 0.9]),
    "ant3d": (35, 8, [-3, -3, 0.4], [3, 3, 0.6], [0.9, 0.9, 0.53]),
    "cheetah_highdim": (18, 6, [-1] * 18, [1] * 18, [0.3] * 18),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name):
    family = make(name)
    obs_size, act_size, low, high, first = CONSTANTS[name]
    assert (family.obs_size, family.act_size, family.horizon, family.gamma) == (obs_size, act_size, 200, 0.99)
    for got, expected in ((family.box.low, low), (family.box.high, high), (family.first_psi, first)):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def numpy_walker(psi, before, qpos, qvel, act, dt):
    obs = np.concatenate([qpos[1:], np.clip(qvel, -10, 10)])
    reward = 10 - abs(np.clip(qvel[0], -10, 10) - psi[0]) - 5 * abs(qpos[1] - psi[1]) - 0.001 * (act**2).sum()
    return obs, reward, not (0.8 < qpos[1] < 2.0 and -1 < qpos[2] < 1)


def numpy_ant(psi, before, qpos, qvel, act, dt):
    velocity = (qpos[:3] - before[:3]) / dt
    obs = np.concatenate([qpos, qvel, qpos[:3], velocity])
    reward = 5.05 - abs(velocity[0] - psi[0]) - abs(velocity[1] - psi[1]) - 0.005 * (act**2).sum()
    if len(psi) == 3:
        reward -= 2 + 30 * abs(qpos[2] - psi[2])  # 3.05 instead of 5.05
    return obs, reward, not 0.2 <= qpos[2] <= 1.0


def numpy_cheetah(psi, before, qpos, qvel, act, dt):
    mean = "-0.2032 -0.1054 0.0898 0.0143 0.0019 0.0132 0.0708 -0.1491 -0.0426 -0.2398 -0.0426 0.0979 -0.1000 -0.0930 0.0415 0.0365 -0.0661 -0.1578"  # noqa: E501
    std = "0.2466 0.0705 0.1305 0.2103 0.2675 0.2240 0.2896 0.2673 0.2615 0.5503 0.6953 1.2163 4.1919 5.5100 5.2831 5.2036 5.0158 4.9579"  # noqa: E501
    obs = np.concatenate([qpos, qvel])
    state = (obs - np.array(mean.split(), float)) / np.array(std.split(), float)
    return obs, psi @ state - 0.05 * (np.clip(act, -1, 1) ** 2).sum(), False


ORACLES = {  # gymnasium's XML, seconds per step, observation, reward and termination written once more in numpy
    "walker2d": ("walker2d.xml", 0.002, numpy_walker),
    "ant2d": ("ant.xml", 0.01, numpy_ant),
    "ant3d": ("ant.xml", 0.01, numpy_ant),
    "cheetah_highdim": ("half_cheetah.xml", 0.01, numpy_cheetah),
}


@pytest.mark.parametrize("name", ORACLES)
def test_2000_steps_against_plain_mujoco(name):
    """Ten episodes of 200 random steps: observation, reward and termination to 1e-5 of a MjData and numpy.

    The reset is checked with the rest: before the first step the finite-difference velocity is zero.
    """
    family = make(name)
    xml, dt, oracle = ORACLES[name]
    # our own copy where there is one: rounding of its inertias would be amplified by 200 chaotic steps
    own = family.xml if name == "cheetah_highdim" else ASSETS / xml
    model = mujoco.MjModel.from_xml_path(str(own))
    data = mujoco.MjData(model)
    assert model.opt.timestep == dt == family.dt
    psi = family.box.sample(1, "uniform", seeded(0)).double()
    states, actions = start_states(family, (1, 10), 3), random_actions(family, 200, 1, 10, seed=4)
    obs = simulate(family, states, actions)[:, 0]  # (201, 10, S)
    reward = family.reward(psi, obs[:-1], actions[:, 0], obs[1:])
    ends = family.terminated(obs)
    num_ended = 0
    for lane in range(10):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = states[0, lane].split([model.nq, model.nv])
        first, _, _ = oracle(psi[0].numpy(), data.qpos, data.qpos, data.qvel, np.zeros(model.nu), dt)
        np.testing.assert_allclose(obs[0, lane], first, rtol=0, atol=1e-12)
        for t, act in enumerate(actions[:, 0, lane].numpy()):
            before = data.qpos.copy()
            data.ctrl[:] = act
            mujoco.mj_step(model, data)
            seen, expected, ended = oracle(psi[0].numpy(), before, data.qpos, data.qvel, act, dt)
            np.testing.assert_allclose(obs[t + 1, lane], seen, rtol=0, atol=1e-5)
            assert abs(float(reward[t, lane]) - expected) < 1e-5
            assert bool(ends[t + 1, lane]) == ended
            num_ended += ended
    assert (num_ended > 0) == (name == "walker2d") or name.startswith("ant")


@pytest.mark.parametrize(
    ("name", "low", "high"), [("walker2d", 0.8, 2.0), ("ant2d", 0.2, 1.0), ("ant3d", 0.2, 1.0)]
)
def test_termination_by_height(name, low, high):
    family = make(name)
    obs = family.reset(1, seeded(0))[0]
    index = 0 if name == "walker2d" else 2
    for height, ended in ((low - 1e-6, True), (low + 1e-6, False), (high - 1e-6, False), (high + 1e-6, True)):
        obs[index] = height
        assert bool(family.terminated(obs)) == ended
    for i in range(family.obs_size):
        broken = obs.clone()
        broken[index] = (low + high) / 2
        assert not bool(family.terminated(broken))
        broken[i] = math.nan
        assert bool(family.terminated(broken))


@pytest.mark.parametrize(("name", "index"), [("walker2d", 8), ("ant2d", 32)])
def test_paper_variant_is_the_printed_formula(name, index):
    """Without constants and control cost, with the minus sign."""
    family = make(name, variant="paper")
    obs = family.reset(6, seeded(0))
    psi = torch.tensor([0.5, 1.1], dtype=DOUBLE)
    second = 5 * (obs[:, 0] - 1.1).abs() if name == "walker2d" else (obs[:, 33] - 1.1).abs()
    got = family.reward(psi, obs, torch.ones(6, family.act_size).double(), obs)
    torch.testing.assert_close(got, -(obs[:, index] - 0.5).abs() - second)


def test_own_cheetah_is_gymnasiums():
    """The XML without the deprecated attribute gives the same body."""
    own, theirs = (
        make("cheetah_highdim").model,
        mujoco.MjModel.from_xml_path(str(ASSETS / "half_cheetah.xml")),
    )
    for field in ("body_mass", "body_inertia", "body_ipos", "geom_friction", "dof_damping", "dof_invweight0"):
        np.testing.assert_allclose(getattr(own, field), getattr(theirs, field), rtol=1e-12)
    assert "settotalmass=" not in make("cheetah_highdim").xml.read_text().split("-->", 1)[1]


def test_stored_statistics_are_those_of_their_seed():
    from task_families.linear_state import COMPUTED, PUBLISHED, random_policy_statistics

    again = random_policy_statistics(COMPUTED.seed)
    # physics may differ in rounding between MuJoCo versions, and 200 chaotic steps amplify it
    np.testing.assert_allclose(again.mean, COMPUTED.mean, atol=0.15)
    np.testing.assert_allclose(again.std, COMPUTED.std, rtol=0.1)
    for variant in ("computed", "paper"):
        assert make("cheetah_highdim", variant=variant).statistics is COMPUTED
    assert make("cheetah_highdim").statistics is PUBLISHED


REFERENCE = {
    "ant2d": (606, 194),
    "ant3d": (-414, 200),
    "walker2d": (640, 90),
    "cheetah_highdim": (-60.5, 200),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_random_policy_near_the_reference(name):
    """Actions clip(N(0, 1)), first task: return and length of the released code in 20 episodes, 3 standard errors."""
    family, n = make(name), 100
    noise = random_actions(family, family.horizon, 1, n, seed=0).clamp(-1, 1)
    rollout = collect(
        family.make_simulator((1, n), dtype=DOUBLE),
        family,
        lambda t, obs: (noise[t], noise[t].new_zeros(1, n)),
        family.horizon,
        [seeded(1)],
    )
    mask = rollout.first_episode()
    psi = family.first_psi.double()
    reward = torch.where(mask, family.reward(psi, rollout.obs, rollout.act, rollout.next_obs), 0.0)
    for per_episode, reference in zip(
        (reward.sum(-1)[0], mask.sum(-1)[0].double()), REFERENCE[name], strict=True
    ):
        standard_error = float(per_episode.std()) * math.sqrt(1 / n + 1 / 20)
        assert abs(float(per_episode.mean()) - reference) < max(3 * standard_error, 8.0)


def test_ant_restart_forgets_the_velocity():
    """The finite difference of a restarted lane is that of a new simulator; its neighbour keeps its own."""
    family = make("ant2d")
    states = start_states(family, (1, 2), 0)
    simulator = family.make_simulator((1, 2), dtype=DOUBLE)
    simulator.reset(torch.ones(1, 2, dtype=torch.bool), states[0])
    moving = simulator.step(random_actions(family, 1, 2, seed=0)).clone()
    assert float(moving[0, :, 32:].abs().min()) > 0
    after = simulator.reset(torch.tensor([[True, False]]), states[0, :1])
    assert torch.equal(after[0, 0, 32:], torch.zeros(3).double())
    assert torch.equal(after[0, 1], moving[0, 1])


def test_sparse_jacobian_on_mujoco_4_0_0_is_refused(tmp_path, monkeypatch):
    from task_families import mujoco_simulator

    file = tmp_path / "sparse.xml"
    file.write_text(
        '<mujoco><option jacobian="sparse"/><worldbody><body><freejoint/><geom size="1"/></body></worldbody></mujoco>'
    )
    monkeypatch.setattr(mujoco, "__version__", "4.0.0")
    with pytest.raises(RuntimeError, match="sparse Jacobian"):
        mujoco_simulator.load_model(file)


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
    env._simulator.reset(EVERY_LANE, states)
    obs, _, terminated, truncated, info = env.step(np.zeros(3, dtype=np.float32))
    assert terminated and not truncated and info == {"unstable": True} and bool(np.isnan(obs).all())
