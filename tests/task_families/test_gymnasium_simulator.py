"""Families on gymnasium environments: who closes them, and which spaces they may have."""

import copy
import gc
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import counted_envs
import gymnasium
import numpy as np
import pytest
import torch
from counted_envs import CountedFamily, count_in_another_process, counts
from gymnasium import spaces

from admrl.config.presets import PRESETS
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state
from task_families import TaskBox
from task_families.conformance import CHECKS
from task_families.conformance_tools import seeded
from task_families.gymnasium_simulator import GymnasiumFamily


@pytest.fixture(autouse=True)
def fresh_counts():
    gc.collect()
    counted_envs.MADE.clear()
    counted_envs.CLOSED.clear()


def run(family, num_lanes=3, num_steps=5, seed=0):
    """Observations (T + 1, 1, N, S) under random actions."""
    simulator = family.make_simulator((1, num_lanes), dtype=torch.float64)
    lanes = torch.ones(1, num_lanes, dtype=torch.bool)
    seen = [simulator.reset(lanes, simulator.start_states(num_lanes, seeded(seed)))]
    actions = torch.randn(num_steps, 1, num_lanes, family.act_size, generator=seeded(seed))
    return torch.stack(seen + [simulator.step(act) for act in actions])


# -- who closes them ---------------------------------------------------------------------------------------


def test_a_training_makes_as_many_as_it_has_lanes_and_closes_all():
    """Before: 19808 made by these three tasks, none closed."""
    config = PRESETS["smoke"]
    num_lanes = config.slbo.num_samples // CountedFamily.horizon
    with CountedFamily() as family:
        state = new_state(family, "adversarial", config, seed=0)
        meta_train(family, state, config)
        assert counts() == (num_lanes, 0)
    assert counts() == (num_lanes, num_lanes)


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "task_survives_subprocesses"])
def test_family_conforms_with_environments_that_are_used_again(name):
    with CountedFamily() as family:
        CHECKS[name](family)
    gc.collect()
    made, closed = counts()
    assert closed == made


def test_start_states_need_one_environment():
    family = CountedFamily()
    first = family.reset(50, seeded(3))
    assert counts() == (1, 0)
    simulator = family.make_simulator((1, 50), dtype=torch.float64)
    states = simulator.start_states(50, seeded(3))
    assert torch.equal(simulator.reset(torch.ones(1, 50, dtype=torch.bool), states)[0], first)


def test_used_again_is_as_good_as_new():
    """Whatever an environment was used for before, its next reset decides."""
    family = CountedFamily()
    once = run(family, seed=1)
    run(family, num_lanes=5, num_steps=9, seed=2)
    assert torch.equal(run(family, seed=1), once) and torch.equal(run(CountedFamily(), seed=1), once)
    assert counts()[0] == 5 + 3


def test_they_are_closed_with_the_family():
    family = CountedFamily()
    run(family)
    simulator = family.make_simulator((1, 2))
    simulator.reset(torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, 1))
    del family
    gc.collect()
    assert counts() == (3, 0)  # the simulator still needs its family
    simulator.step(torch.zeros(1, 2, 2))
    del simulator
    gc.collect()
    assert counts() == (3, 3)


def test_a_closed_family_makes_new_ones_and_its_simulators_say_so():
    family = CountedFamily()
    simulator = family.make_simulator((1, 2))
    lanes = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected that every lane was reset before, got \[0, 1\]"):
        simulator.step(torch.zeros(1, 2, 2))
    simulator.reset(lanes, torch.zeros(2, 1))
    family.close()
    assert counts() == (2, 2)
    family.close()
    with pytest.raises(ValueError, match=r"expected that every lane was reset before, got \[0, 1\]"):
        simulator.step(torch.zeros(1, 2, 2))
    simulator.reset(lanes, torch.zeros(2, 1))
    simulator.step(torch.zeros(1, 2, 2))
    assert counts() == (4, 2)
    del simulator
    family.close()
    assert counts() == (4, 4)


def test_one_that_raises_is_closed_and_its_lane_gets_another():
    family = CountedFamily()
    family.breaks_at = 3
    simulator = family.make_simulator((1, 2))
    lanes = torch.ones(1, 2, dtype=torch.bool)
    simulator.reset(lanes, torch.zeros(2, 1))
    simulator.step(torch.zeros(1, 2, 2))
    simulator.reset(torch.tensor([[True, False]]), torch.zeros(1, 1))
    simulator.step(torch.zeros(1, 2, 2))
    with pytest.raises(RuntimeError, match="the wire broke"):
        simulator.step(torch.zeros(1, 2, 2))  # lane 1
    assert counts() == (2, 1)
    with pytest.raises(ValueError, match=r"got \[1\] that were not"):
        simulator.step(torch.zeros(1, 2, 2))
    simulator.reset(lanes, torch.zeros(2, 1))
    simulator.step(torch.zeros(1, 2, 2))
    assert counts() == (3, 1)
    del simulator
    family.close()
    assert counts() == (3, 3)


def test_one_that_cannot_be_closed_keeps_no_other_open():
    family = CountedFamily()
    run(family)
    broken = counted_envs.MADE[1]
    broken.close = lambda: (_ for _ in ()).throw(OSError("no such display"))
    with pytest.raises(OSError, match="no such display"):
        family.close()
    assert counts() == (3, 2)


def test_lanes_that_would_share_an_environment_are_refused():
    """Before: accepted, and each lane moved the others."""
    family = CountedFamily()
    env = family.make_one()
    family.make_one = lambda: env
    with pytest.raises(ValueError, match="make_one: expected a new environment at every call, got <Counted"):
        run(family)


def test_copies_and_pickles_have_their_own():
    family = CountedFamily()
    expected = run(family)
    for other in (copy.copy(family), copy.deepcopy(family), pickle.loads(pickle.dumps(family))):
        assert other.env_pool is not family.env_pool
        assert torch.equal(run(other), expected)
    del other
    gc.collect()
    assert counts() == (12, 9)


def test_another_process_has_its_own():
    family = CountedFamily()
    run(family, num_lanes=7)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(count_in_another_process, family).result() == (3, 3, 0)
    assert counts() == (7, 0)


def test_a_fork_leaves_those_of_its_parent_open(monkeypatch):
    family = CountedFamily()
    run(family)
    monkeypatch.setattr("task_families.gymnasium_simulator.os.getpid", lambda: -1)  # as after os.fork
    run(family)
    assert counts() == (6, 0)
    family.close()
    assert counts() == (6, 3)


def test_they_are_closed_when_the_interpreter_ends():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; from counted_envs import Counted, CountedFamily\n"
        "Counted.close = lambda self: print('closed')\n"
        "family = CountedFamily(); simulator = family.make_simulator((1, 2))\n"
        "simulator.reset(torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, 1)); family.reset(3, torch.Generator())\n"
        "print('end')\n"
    )
    support = str(Path(counted_envs.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, support], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["end"] + ["closed"] * 3 and not done.stderr


def test_threads_share_a_family():
    with CountedFamily() as family:
        expected = [run(family, seed=seed) for seed in range(4)]
        barrier = threading.Barrier(4)

        def together(seed):
            barrier.wait()
            return [run(family, seed=seed) for _ in range(5)]

        with ThreadPoolExecutor(4) as pool:
            for seen, once in zip(pool.map(together, range(4)), expected, strict=True):
                assert all(torch.equal(x, once) for x in seen)
        assert counts()[0] <= 4 * 3 and counts()[1] == 0
    assert len(set(counts())) == 1


def test_closing_one_task_gives_its_environment_back():
    family = CountedFamily()
    for seed in range(3):
        env = family.make_env([0.0, 0.0])
        env.reset(seed=seed)
        env.step(np.zeros(2))
        env.close()
    assert counts() == (1, 0)
    env.reset(seed=0)
    family.close()
    assert counts() == (1, 1)


# -- spaces ------------------------------------------------------------------------------------------------


class Shaped(gymnasium.Env):
    """s' = s + M a with observations (3, 2) and actions (2, 2)."""

    M = np.arange(24.0).reshape(3, 2, 2, 2)

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3, 2), np.float64)
        self.action_space = action_space or spaces.Box(-2.0, 2.0, (2, 2), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=(3, 2))
        return self.state, {}

    def step(self, action):
        assert action.shape == (2, 2)
        self.state = self.state + np.tensordot(self.M, action, 2)
        return self.state, 0.0, False, False, {}


class ShapedFamily(GymnasiumFamily):
    name, source, formula = "shaped", "test", "-|s' - psi|^2"
    horizon, obs_size, act_size, act_limit = 5, 6, 4, 2.0

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBox(-torch.ones(1), torch.ones(1), ("x",), ("m",))
        self.first_psi = torch.zeros(1)

    def make_one(self):
        return Shaped()

    def reward(self, psi, obs, act, next_obs):
        return -(next_obs - psi).square().mean(-1)


def test_boxes_of_other_shapes_are_flattened_in_the_order_of_gymnasium():
    """Before: 'could not broadcast'."""
    family = ShapedFamily()
    simulator = family.make_simulator((1, 2), dtype=torch.float64)
    first = simulator.reset(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[4.0], [5.0]]))
    env = Shaped()
    for lane, seed in enumerate((4, 5)):
        expected = spaces.utils.flatten(env.observation_space, env.reset(seed=seed)[0])
        np.testing.assert_array_equal(first[0, lane], expected)
    act = torch.tensor([[[0.5, -1.0, 3.0, 0.25], [0.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    moved = simulator.step(act) - first
    clamped = np.array([0.5, -1.0, 2.0, 0.25])  # flat, row by row
    np.testing.assert_allclose(moved[0, 0], Shaped.M.reshape(6, 4) @ clamped, atol=1e-12)
    np.testing.assert_allclose(moved[0, 1], Shaped.M.reshape(6, 4)[:, 3], atol=1e-12)


@pytest.mark.parametrize("name", ["shapes", "simulator_shapes", "first_observations", "environment_agrees"])
def test_families_of_other_shapes_conform(name):
    CHECKS[name](ShapedFamily())


def family_of(env, **declared):
    """A family of the environment, with the declared sizes and limits."""
    family = ShapedFamily()
    family.make_one = lambda: env
    vars(family).update(declared)
    return family


BOX = spaces.Box(-1.0, 1.0, (2,))
OTHERS = (
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict(b=BOX, a=spaces.Discrete(3)),
    spaces.Tuple([BOX, BOX]),
)


@pytest.mark.parametrize("space", OTHERS, ids=lambda space: type(space).__name__)
def test_observations_of_other_spaces_are_flattened_as_gymnasium_does(space):
    """Before: refused, to be wrapped by the user."""

    class Other(Shaped):
        def reset(self, *, seed=None, options=None):
            self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

    num = spaces.utils.flatdim(space)
    with pytest.raises(ValueError, match=f"obs_size: expected {num}, the numbers in the environment's"):
        family_of(Other(observation_space=space)).make_simulator((1, 1))
    family = family_of(Other(observation_space=space), obs_size=num)
    simulator = family.make_simulator((1, 1), dtype=torch.float64)
    seen = simulator.reset(torch.ones(1, 1, dtype=torch.bool), torch.tensor([[7.0]]))
    space.seed(7)
    np.testing.assert_allclose(seen[0, 0], spaces.utils.flatten(space, space.sample()))


def test_spaces_that_do_not_fit_are_refused_by_name_with_the_remedy():
    words = spaces.Sequence(BOX)
    remedy = (
        r"observation_space: expected one of a fixed number of numbers, got Sequence.*TransformObservation"
    )
    for use in (lambda f: f.make_simulator((1, 1)), lambda f: f.reset(1, seeded(0))):
        with pytest.raises(ValueError, match=remedy):
            use(family_of(Shaped(observation_space=words)))
    for space in OTHERS[1:]:
        name = type(space).__name__
        remedy = rf"action_space: expected a Box of real numbers or a Discrete, got {name}.*TransformAction"
        with pytest.raises(ValueError, match=remedy):
            family_of(Shaped(action_space=space)).make_env([0.0])


def test_the_largest_of_a_choice_counts():
    """CartPole's actions are 0 and 1: of two numbers, the larger pushes."""
    env = gymnasium.make("CartPole-v1").unwrapped
    family = family_of(env, obs_size=4, act_size=2, act_limit=None)
    simulator = family.make_simulator((1, 1))
    simulator.reset(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    assert simulator.step(torch.tensor([[[0.3, 0.1]]]))[0, 0, 1] < 0  # to the left
    simulator.reset(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    assert simulator.step(torch.tensor([[[2.0, 3.0]]]))[0, 0, 1] > 0


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"obs_size": 3}, r"obs_size: expected 6, the numbers in the environment's Box.*, got 3"),
        ({"act_size": 2}, r"act_size: expected 4, the numbers in the environment's Box.*, got 2"),
        ({"act_limit": 1.0}, r"expected the limits of the environment's action space, \[-2.0, .*got \[-1.0"),
        ({"act_limit": None}, r"expected the limits of .* \[-2.0, .*got \[-inf"),
        ({"act_low": -2.0, "act_high": (2.0, 2.0, 2.0, 3.0)}, r"got .*\[2.0, 2.0, 2.0, 3.0\]"),
        ({"act_low": -2.0}, r"got .*\[inf"),
    ],
)
def test_what_the_family_declares_is_compared_with_the_environment(declared, message):
    """Before: accepted, and the model clamped actions elsewhere than the simulator."""
    with pytest.raises(ValueError, match=message):
        family_of(Shaped(), **declared).make_simulator((1, 1))


def test_limits_that_agree_are_accepted():
    low, high = np.float32([-0.1, -1.0, -np.inf, 0.3]), np.float32([0.1, 3.0, np.inf, np.inf])
    env = Shaped(action_space=spaces.Box(low.reshape(2, 2), high.reshape(2, 2)))
    limits = {"act_low": (-0.1, -1.0, -np.inf, 0.3), "act_high": (0.1, 3.0, np.inf, np.inf)}
    family_of(env, **limits).make_simulator((1, 1))


def test_actions_that_are_counted_are_refused():
    """Before: cut to whole numbers towards zero, in silence."""
    env = Shaped(action_space=spaces.Box(0, 5, (2, 2), np.int64))
    with pytest.raises(
        ValueError, match=r"action_space: expected a Box of real numbers or a Discrete, got Box\(0, 5"
    ):
        family_of(env).make_simulator((1, 1))
