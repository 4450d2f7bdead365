"""CRL's and PEARL's families against plain MuJoCo and their published definitions, written once more in numpy."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import mujoco_env

from task_families import make
from task_families.conformance_tools import DOUBLE, random_actions, seeded, simulate, start_states, tasks_of
from task_families.mujoco_simulator import OWN_ASSETS

ASSETS = Path(mujoco_env.__file__).parent / "assets"
NUM_STEPS, NUM_LANES = 100, 4


def direction(psi):
    return np.array([math.cos(psi[0]), math.sin(psi[0])])


def fwd_back(psi, old, new, act, contacts):
    return psi[0] * (new.qpos[0] - old["qpos"][0]) / 0.05 - 0.05 * (act**2).sum(), False


def vel(psi, old, new, act, contacts):
    return -abs((new.qpos[0] - old["qpos"][0]) / 0.05 - psi[0]) - 0.05 * (act**2).sum(), False


def ant_dir(psi, old, new, act, contacts):
    forward = direction(psi) @ (new.qpos[:2] - old["qpos"][:2]) / 0.05
    reward = forward - 0.5 * (act**2).sum() - 5e-4 * (np.clip(contacts, -1, 1) ** 2).sum() + 1
    return reward, not 0.2 <= new.qpos[2] <= 1.0


def ant_goal(psi, old, new, act, contacts):
    cost = 0.1 * (act**2).sum() + 5e-4 * (np.clip(contacts, -1, 1) ** 2).sum()
    return -np.abs(new.qpos[:2] - psi).sum() - cost, False


def humanoid(psi, old, new, act, contacts):
    forward = 0.25 * direction(psi) @ (new.subtree_com[0, :2] - old["com"]) / 0.003
    reward = forward - 0.1 * ((0.4 * act) ** 2).sum() - min(5e-7 * (contacts**2).sum(), 10) + 5
    return reward, not 1 <= new.qpos[2] <= 2


def params(psi, old, new, act, contacts, *, dt, ended):
    reward = (new.qpos[0] - old["qpos"][0]) / dt + 1 - 1e-3 * (act**2).sum()
    return reward, ended(new.qpos, np.clip(new.qvel, -10, 10))


def walker_ended(qpos, qvel):
    return not (0.8 < qpos[1] < 2 and abs(qpos[2]) < 1)


def hopper_ended(qpos, qvel):
    return not (qpos[1] > 0.7 and abs(qpos[2]) < 0.2 and (np.abs(np.r_[qpos[2:], qvel]) < 100).all())


def walker_params(*args):
    return params(*args, dt=0.016, ended=walker_ended)


def hopper_params(*args):
    return params(*args, dt=0.008, ended=hopper_ended)


ORACLES = {  # XML, its time step, sub-steps, control per action, definition
    "half_cheetah_fwd_back": ("half_cheetah.xml", 0.01, 5, 1.0, fwd_back),
    "half_cheetah_vel": ("half_cheetah.xml", 0.01, 5, 1.0, vel),
    "ant_fwd_back": ("ant.xml", 0.01, 5, 1.0, ant_dir),
    "ant_dir": ("ant.xml", 0.01, 5, 1.0, ant_dir),
    "ant_goal": ("ant.xml", 0.01, 5, 1.0, ant_goal),
    "humanoid_direc_2d": ("humanoid.xml", 0.003, 5, 0.4, humanoid),
    "walker2d_params": ("walker2d.xml", 0.004, 4, 1.0, walker_params),
    "hopper2d_params": ("hopper.xml", 0.002, 4, 1.0, hopper_params),
}
CASES = [(name, "released") for name in ORACLES] + [
    (name, "contact") for name in ("ant_dir", "ant_goal", "humanoid_direc_2d")
]


def model_of_task(name, psi):
    xml, timestep, *_ = ORACLES[name]
    # our own copy where there is one: rounding of its inertias would be amplified by chaotic steps
    file = OWN_ASSETS / xml if (OWN_ASSETS / xml).exists() else ASSETS / xml
    model = mujoco.MjModel.from_xml_path(str(file))
    model.opt.timestep = timestep
    if name.endswith("_params"):
        exponents = iter(psi)
        for field, base in (
            ("body_mass", 1.5),
            ("body_inertia", 1.5),
            ("geom_friction", 1.5),
            ("dof_damping", 1.3),
        ):
            for element in np.nditer(getattr(model, field), op_flags=["readwrite"]):
                element[...] = element * base ** next(exponents)
        assert next(exponents, None) is None
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "index", "low", "high", "healthy_ends"),
    [
        ("ant2d", 2, 0.2, 1.0, True),
        ("ant_dir", 0, 0.2, 1.0, True),
        ("humanoid_direc_2d", 0, 1.0, 2.0, True),
        ("walker2d", 0, 0.8, 2.0, False),
        ("walker2d_params", 1, -1.0, 1.0, False),
        ("hopper2d_params", 1, -0.2, 0.2, False),
        ("hopper2d_params", 2, -100.0, 100.0, False),
        ("hopper2d_params", -1, -math.inf, math.inf, False),
    ],
)
def test_healthy_range_at_its_ends(name, index, low, high, healthy_ends, dtype):
    """The ends themselves, the next number on either side, and numbers that are not finite."""
    family = make(name)
    obs = family.reset(1, seeded(0))[0].to(dtype)
    assert not bool(family.terminated(obs))
    ends = torch.tensor([low, high], dtype=dtype)
    inside, outside = (
        ends.nextafter(ends.flip(0)),
        ends.nextafter(torch.tensor([-math.inf, math.inf]).to(ends)),
    )
    for values, ended in ((inside, False), (ends, not healthy_ends), (outside, True)):
        for value in values[values.isfinite()]:
            obs[index] = value
            assert bool(family.terminated(obs)) == ended, float(value)
    for value in (math.nan, math.inf, -math.inf):
        obs[index] = value
        assert bool(family.terminated(obs))


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_against_plain_mujoco(name, variant):
    """One task per lane: observation, reward and termination to 1e-5, with each row's own model."""
    family = make(name, variant=variant)
    _, timestep, num_substeps, scale, oracle = ORACLES[name]
    assert family.dt == timestep * num_substeps
    psi = tasks_of(family, NUM_LANES, 0)
    states = start_states(family, (NUM_LANES, 1), 3)
    actions = random_actions(family, NUM_STEPS, NUM_LANES, 1, seed=4)
    obs = simulate(family, states, actions, psi=psi)[:, :, 0]
    reward = family.reward(psi, obs[:-1], actions[:, :, 0], obs[1:])
    ends = family.terminated(obs)
    for lane in range(NUM_LANES):
        model = model_of_task(name, psi[lane].tolist())
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = states[lane, 0].split([model.nq, model.nv])
        mujoco.mj_forward(model, data)
        fresh = mujoco.MjData(model)  # derived quantities of the new state, apart from the simulation
        for t, act in enumerate(actions[:, lane, 0].clamp(-1, 1).numpy()):
            old = {
                "qpos": data.qpos.copy(),
                "com": fresh.subtree_com[0, :2].copy() if t else data.subtree_com[0, :2],
            }
            old["com"] = old["com"].copy()
            data.ctrl[:] = scale * act
            mujoco.mj_step(model, data, num_substeps)
            fresh.qpos[:], fresh.qvel[:], fresh.ctrl[:] = data.qpos, data.qvel, data.ctrl
            fresh.qacc_warmstart[:] = data.qacc_warmstart
            mujoco.mj_forward(model, fresh)
            mujoco.mj_rnePostConstraint(model, fresh)
            contacts = fresh.cfrc_ext.ravel() if variant == "contact" else np.zeros(1)
            expected, ended = oracle(psi[lane].numpy(), old, fresh, act, contacts)
            assert abs(float(reward[t, lane]) - expected) < 1e-5 * (1 + abs(expected)), f"step {t}"
            assert bool(ends[t + 1, lane]) == ended
            seen = observation(name, data, fresh, variant)
            np.testing.assert_allclose(obs[t + 1, lane, : len(seen)], seen, rtol=1e-4, atol=1e-5)
    if variant == "contact":
        assert float(obs[..., 29:-2].abs().max()) > 0.5


def observation(name, data, fresh, variant):
    """The published part of the observation; what this package appends is part of the reward."""
    contacts = fresh.cfrc_ext.ravel() if variant == "contact" else np.zeros(0)
    if name.startswith("half_cheetah"):
        return np.concatenate([data.qpos[1:], data.qvel, fresh.body("torso").xpos])
    if name == "ant_goal":
        return np.concatenate([data.qpos, data.qvel, np.clip(contacts, -1, 1)])
    if name.startswith("ant"):
        return np.concatenate([data.qpos[2:], data.qvel, np.clip(contacts, -1, 1)])
    if name.startswith("humanoid"):
        derived = [fresh.cinert.ravel(), fresh.cvel.ravel(), fresh.qfrc_actuator]
        return np.concatenate([data.qpos[2:], data.qvel, *derived, contacts])
    return np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)])


@pytest.mark.parametrize(
    ("name", "variant", "sizes"),
    [
        ("half_cheetah_vel", "released", (20, 6)),
        ("ant_dir", "released", (27 + 2, 8)),
        ("ant_dir", "contact", (111 + 2, 8)),
        ("ant_goal", "contact", (113, 8)),
        ("humanoid_direc_2d", "contact", (376 + 2, 17)),
        ("walker2d_params", "released", (17 + 1, 6)),
        ("hopper2d_params", "released", (11 + 1, 3)),
    ],
)
def test_published_sizes(name, variant, sizes):
    family = make(name, variant=variant)
    assert (family.obs_size, family.act_size) == sizes and family.horizon == 200


def test_parameters_are_multipliers_and_do_not_compound():
    family = make("walker2d_params")
    assert family.box.size == 65 and make("hopper2d_params").box.size == 41
    nominal = {name: value.clone() for name, value in family.parameters(torch.zeros(1, 65)).items()}
    for _ in range(2):  # the bindings return views: multiplying those would compound
        family.make_simulator((1, 1), psi=torch.full((1, 65), 3.0))
        heavy = family.parameters(torch.full((1, 65), 3.0))
        for name, value in nominal.items():
            base = 1.3 if name == "dof_damping" else 1.5
            torch.testing.assert_close(heavy[name], value * base**3)
    torch.testing.assert_close(nominal["body_mass"][0], torch.from_numpy(family.model.body_mass.copy()))
    feet = nominal["geom_friction"][0, [family.model.geom(n).id for n in ("foot_left_geom", "foot_geom")], 0]
    assert sorted(feet.tolist()) == [0.9, 1.9]


def test_dynamics_that_depend_on_psi_need_psi():
    for name in ("walker2d_params", "bernoulli_bandit_5"):
        family = make(name)
        with pytest.raises(ValueError, match=r"dynamics of .* depend on the task; expected psi of shape"):
            family.make_simulator((2, 1))
        with pytest.raises(ValueError, match=r"got \(1, "):
            family.make_simulator((2, 1), psi=family.first_psi[None])


@pytest.mark.parametrize(("variant", "distance", "expected"), [
    ("released", 0.15, 0.85), ("released", 0.25, 0.0), ("wide", 0.75, 0.25), ("wide", 0.85, 0.0),
    ("dense", 0.5, -0.5),
])  # fmt: skip
def test_sparse_point_reward(variant, distance, expected):
    family = make("sparse_point_robot", variant=variant)
    psi = torch.tensor([1.0], dtype=DOUBLE)
    there = (1 - distance) * torch.tensor([math.cos(1.0), math.sin(1.0)], dtype=DOUBLE)
    assert abs(float(family.reward(psi, there, there, there)) - expected) < 1e-12
    train, test = family.published_tasks(1337)
    angles = torch.cat([train, test]).flatten().sort().values
    torch.testing.assert_close(angles, torch.linspace(0, math.pi, 100, dtype=DOUBLE))
    assert len(train) == 80


def test_point_robot_clips_its_actions():
    family = make("point_robot")
    obs = simulate(family, torch.zeros(1, 1, 2).double(), torch.tensor([[[[5.0, -0.5]]]]).double())
    torch.testing.assert_close(obs[1, 0, 0], torch.tensor([0.1, -0.05]).double())


@pytest.mark.parametrize(
    ("name", "num_arms", "num_pulls"), [("5", 5, 10), ("5x100", 5, 100), ("10", 10, 100), ("50", 50, 500)]
)
def test_bandit_frequencies(name, num_arms, num_pulls):
    family = make(f"bernoulli_bandit_{name}")
    assert (family.box.size, family.act_size, family.horizon) == (num_arms, num_arms, num_pulls)
    num_lanes = 20_000 // num_pulls
    psi = torch.linspace(0.05, 0.95, num_arms).repeat(2, 1)
    arm = num_arms - 2
    act = torch.zeros(num_pulls, 2, num_lanes, num_arms)
    act[..., arm] = 1
    obs = simulate(family, start_states(family, (2, num_lanes), 0), act, psi=psi)
    outcome = obs[1:]
    assert set(outcome.unique().tolist()) == {0.0, 1.0} and float(obs[0].abs().max()) == 0
    p = float(psi[0, arm])
    for task in (0, 1):
        assert abs(float(outcome[:, task].mean()) - p) < 4 * math.sqrt(p * (1 - p) / outcome[:, task].numel())
    assert not torch.equal(outcome[:, 0], outcome[:, 1])
    reward = family.reward(psi[0], obs[:-1], act, outcome)
    assert torch.equal(reward, outcome[..., 0]) and seeded(0)
