"""Lanes of one vector environment: those of `make_one`, or refused."""

import gc

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from lane_envs import LINE, MASS, carts, nothing, walk

from task_families import EnvFamily, check_family, collect, spawn_generators
from task_families.conformance_tools import seeded
from task_families.gymnasium_lanes.lanes import GymnasiumSimulator
from task_families.gymnasium_lanes.vector_lanes import VectorSimulator

OPEN = []


class Falling(gymnasium.Env):
    """A ball that is pushed sideways: x'' = force a / mass, from where its seed says."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 2.0, (1,), np.float64)
    mass = force = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.state.copy(), {}

    def step(self, action):
        self.state[1] += 0.1 * self.force * action[0] / self.mass
        self.state[0] += 0.1 * self.state[1]
        return self.state.copy(), 0.0, abs(self.state[0]) > 1, False, {}


class ManyFalling(VectorEnv):
    """The same, all at once."""

    single_observation_space, single_action_space = Falling.observation_space, Falling.action_space
    mode, shares_seed, resets_all = AutoresetMode.DISABLED, False, False

    def __init__(self, num):
        self.num_envs, self.metadata = num, {"autoreset_mode": self.mode}
        self.state, self.psi = np.zeros((num, 2)), np.ones((num, 2))
        OPEN.append(self)

    def reset(self, *, seed=None, options=None):
        mask = np.ones_like(options["reset_mask"]) if self.resets_all else options["reset_mask"]
        seeds = [seed[0]] * self.num_envs if self.shares_seed else seed
        for i in mask.nonzero()[0]:
            self.state[i] = np.random.default_rng(seeds[i]).normal(size=2)
        self.psi = options.get("psi", self.psi)
        return self.state.copy(), {}

    def step(self, actions):
        if (self.psi[:, 0] > 1.9).any() and (self.state[:, 0] > 100).any():
            raise OverflowError("too far")
        self.state[:, 1] += 0.1 * self.psi[:, 1] * actions[:, 0] / self.psi[:, 0]
        self.state[:, 0] += 0.1 * self.state[:, 1]
        no = np.zeros(self.num_envs, bool)
        return self.state.copy(), np.zeros(self.num_envs), no, no, {}

    def close_extras(self, **kwargs):
        OPEN.remove(self)


def beyond(next_obs):
    return ~(next_obs[..., 0].abs() < 1)


def falling(make_many=ManyFalling, **options):
    return EnvFamily("falling", Falling, MASS, nothing, terminated=beyond, horizon=25,
                     psi_attributes=("mass", "force"), make_many=make_many, **options)  # fmt: skip


def rollout(family, psi, shape=(2, 4), seed=0):
    simulator = family.make_simulator(shape, psi=psi, dtype=torch.float64)
    chance = seeded(seed)

    def act(t, obs):
        noise = torch.randn(*shape, family.act_size, generator=chance, dtype=torch.float64)
        return family.action_bounds.from_unit(noise), torch.zeros(shape)

    return type(simulator), collect(simulator, family, act, 20, spawn_generators(seeded(seed), shape[0]))


def test_they_are_the_lanes_of_make_one():
    psi = MASS.sample(2, "uniform", seeded(1))
    with falling() as many, falling(None) as one:
        kind, ours = rollout(many, psi)
        other, theirs = rollout(one, psi)
        assert (kind, other) == (VectorSimulator, GymnasiumSimulator)
        torch.testing.assert_close(ours.next_obs, theirs.next_obs)
        assert torch.equal(ours.terminated, theirs.terminated)
        assert len(ours.terminated.float().argmax(-1).unique()) > 2 and bool(ours.truncated.any())
        assert [env.num_envs for env in OPEN] == [3, 8], "of the check, and of the simulator"
        rollout(many, psi, seed=1)
        assert len(OPEN) == 2
        assert rollout(many, psi[:1], (1, 1))[0] is GymnasiumSimulator
    assert not OPEN


@pytest.mark.parametrize("make", [carts, walk])
def test_any_space_that_gymnasium_can_batch(make):
    """gymnasium's SyncVectorEnv can do all that is asked; a Dict, numbers of one, choices that start at 2."""
    with make() as one:

        def make_many(num):
            return SyncVectorEnv([one.make_one] * num, autoreset_mode=AutoresetMode.DISABLED)

        psi = torch.zeros(2, one.box.size)
        with make(make_many=make_many) as many:
            kind, seen = rollout(many, psi)
            assert kind is VectorSimulator and torch.equal(seen.next_obs, rollout(one, psi)[1].next_obs)
            assert len(seen.terminated.float().argmax(-1).unique()) > 2


@pytest.mark.slow
def test_they_conform():
    with falling() as family:
        assert len(check_family(family)) >= 15
    gc.collect()
    assert not OPEN


def test_one_that_raises_is_closed_and_its_lanes_are_idle():
    with falling() as family:
        simulator = family.make_simulator((1, 2), psi=torch.tensor([[2.0, 1.0]]))
        lanes, act = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 1)
        with pytest.raises(ValueError, match=r"every lane was reset before, got \[0, 1\]"):
            simulator.step(act)
        simulator.reset(torch.tensor([[True, False]]), torch.zeros(1, 1))
        with pytest.raises(ValueError, match=r"every lane was reset before, got \[1\]"):
            simulator.step(act)
        simulator.reset(lanes, torch.zeros(2, 1))
        kept = simulator.step(act)
        assert torch.equal(simulator.reset(torch.zeros(1, 2, dtype=torch.bool), torch.zeros(0, 1)), kept)
        OPEN[-1].state += 200
        with pytest.raises(OverflowError, match="too far"):
            simulator.step(act)
        assert [env.num_envs for env in OPEN] == [3]
        with pytest.raises(ValueError, match=r"every lane was reset before, got \[0, 1\]"):
            simulator.step(act)
        simulator.reset(lanes, torch.zeros(2, 1))
        assert torch.equal(simulator.step(act), kept)
    assert not OPEN


class Resets(ManyFalling):
    mode = AutoresetMode.NEXT_STEP


class SharesSeed(ManyFalling):
    shares_seed = True


class ResetsAll(ManyFalling):
    resets_all = True


class Other(ManyFalling):
    single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)


def two(num):
    return ManyFalling(2)


@pytest.mark.parametrize(
    ("make_many", "message"),
    [
        (Resets, r"metadata: autoreset_mode: expected DISABLED, got NEXT_STEP"),
        (
            SharesSeed,
            r"expected the lanes of make_one, each reset by its own seed and alone; after a reset they",
        ),
        (
            ResetsAll,
            r"expected the lanes of make_one, each reset by its own seed and alone; after a step that follows",
        ),
        (Other, r"single_action_space: expected Box\(-1.0, 2.0.* got Box\(-1.0, 1.0"),
        (two, "num_envs: expected 3, got 2"),
    ],
)
def test_those_that_step_other_lanes_are_refused(make_many, message):
    family = falling(make_many)
    with family, pytest.raises(ValueError, match=f"make_many: {message}.* leave make_many out"):
        family.make_simulator((1, 2), psi=torch.ones(1, 2))
    assert not OPEN


def test_those_of_gymnasium_reset_themselves():
    def make_many(num):
        return gymnasium.make_vec("CartPole-v1", num, vectorization_mode="vector_entry_point")

    family = EnvFamily("pole", "CartPole-v1", LINE, nothing, make_many=make_many)
    with family, pytest.raises(ValueError, match="make_many: metadata: autoreset_mode: expected"):
        family.make_simulator((1, 2))
