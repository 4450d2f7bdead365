"""Walker2D, Ant2D, Ant3D and Cheetah-Highdim against plain MuJoCo and the released implementation."""

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
