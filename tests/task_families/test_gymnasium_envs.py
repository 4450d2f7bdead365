"""The families as registered gymnasium environments."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeAwareObservation

from task_families import make, names
from task_families.gymnasium_envs import gymnasium_id, make_task_env, register_envs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Box (action|observation) space"
)  # unbounded spaces are meant


@pytest.mark.parametrize("name", names())
def test_registered_environment_passes_the_checker(name):
    env = gymnasium.make(gymnasium_id(name))
    assert env.unwrapped.family.name == name
    check_env(env.unwrapped, skip_render_check=True)  # pictures have tests of their own
    again = gymnasium.make(env.spec)
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_ids():
    ids = {gymnasium_id(name) for name in names()}
    assert len(ids) == len(names())
    assert {
        "AdMRL/Hopper2D-v0",
        "AdMRL/Ant2D-v0",
        "AdMRL/CheetahHighdim-v0",
        "AdMRL/Walker2DParams-v0",
    } <= ids
    register_envs()  # twice changes nothing


def test_arguments_reach_the_task():
    env = gymnasium.make("AdMRL/Ant2D-v0", psi=(1.0, -0.5), variant="paper").unwrapped
    assert env.psi.tolist() == [1.0, -0.5] and env.family.variant == "paper"
    with pytest.raises(ValueError, match="is outside"):
        gymnasium.make("AdMRL/Ant2D-v0", psi=(9.0, 0.0))
    outside = gymnasium.make("AdMRL/Ant2D-v0", psi=(9.0, 0.0), allow_outside=True)
    assert outside.unwrapped.psi[0] == 9
    assert torch.equal(make_task_env("ant2d").psi, make_task_env("ant2d").family.first_psi.double())
    with pytest.raises(ValueError, match="variant of ant2d: got 'papre'"):
        gymnasium.make("AdMRL/Ant2D-v0", variant="papre")


def test_vector_workers_evaluate_their_own_task():
    """A known fault elsewhere: workers that run another task than the one they were given."""
    tasks = [(1.0, 0.5), (-2.0, 0.0)]
    name = "task_families.gymnasium_envs:AdMRL/PointRobot-v0"  # a spawned worker has imported nothing yet
    envs = gymnasium.vector.AsyncVectorEnv(
        [lambda psi=psi: gymnasium.make(name, psi=psi, allow_outside=True) for psi in tasks], context="spawn"
    )
    try:
        assert [psi.tolist() for psi in envs.get_attr("psi")] == [list(psi) for psi in tasks]
        envs.reset(seed=0)
        next_obs, reward, *_ = envs.step(np.zeros((2, 2), dtype=np.float32))
        np.testing.assert_allclose(reward, -np.linalg.norm(next_obs - np.array(tasks), axis=1), rtol=1e-6)
    finally:
        envs.close()


def test_module_prefix_registers_by_itself():
    code = (
        "import gymnasium; env = gymnasium.make('task_families.gymnasium_envs:AdMRL/PointRobot-v0', psi=(0.5, 0.5));"
        "env.reset(seed=0); assert env.unwrapped.psi.tolist() == [0.5, 0.5]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- time limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_time_limit_is_the_horizon(name):
    """Before: spec.max_episode_steps was None, and TimeAwareObservation refused all twenty."""
    env = gymnasium.make(gymnasium_id(name))
    horizon = make(name).horizon
    assert gymnasium.spec(gymnasium_id(name)).max_episode_steps == env.spec.max_episode_steps == horizon
    timed = TimeAwareObservation(env)
    obs, _ = timed.reset(seed=0)
    assert obs.shape == (env.unwrapped.family.obs_size + 1,) and obs[-1] == 0
    assert timed.step(env.action_space.sample())[0][-1] == 1


def episode(env, seed):
    """Rewards, and terminated and truncated of each step, with quiet actions, until the episode is over."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    seen, over = [], False
    while not over:
        act = rng.normal(size=env.action_space.shape, scale=0.1).astype(np.float32)
        _, reward, terminated, truncated, _ = env.step(act)
        seen.append((reward, terminated, truncated))
        over = terminated or truncated
    return seen


@pytest.mark.parametrize("name", names())
def test_the_time_limit_changes_no_episode(name):
    """As many steps and the same rewards and flags with gymnasium's wrapper as without."""
    family = make(name)
    bare = family.make_env(family.first_psi)
    for seed in range(2):
        seen = episode(gymnasium.make(gymnasium_id(name)), seed)
        assert seen == episode(bare, seed)
        num_steps, (_, terminated, truncated) = len(seen), seen[-1]
        assert num_steps <= family.horizon and terminated != truncated
        assert truncated == (num_steps == family.horizon)


def test_a_shorter_limit_truncates_and_a_longer_one_does_not_prolong():
    for limit, expected in ((7, 7), (50, 20), (-1, 20)):
        env = gymnasium.make("AdMRL/PointRobot-v0", max_episode_steps=limit)
        seen = episode(env, 0)
        assert len(seen) == expected and seen[-1][2]


def test_an_episode_that_ends_at_its_last_step_is_terminated():
    """The wrapper says truncated, too, as for gymnasium's own environments: termination goes first."""
    name = "task_families.gymnasium_envs:AdMRL/Hopper2D-v0"
    seen = episode(gymnasium.make(name), 0)
    num_steps = len(seen)
    assert num_steps < 200 and seen[-1][1:] == (True, False)
    again = episode(gymnasium.make(name, max_episode_steps=num_steps), 0)
    assert again[:-1] == seen[:-1] and again[-1][1:] == (True, True)


# -- stable-baselines3 -------------------------------------------------------------------------------------

UNLIMITED = ("linear_quadratic",)  # its closed forms are those of unlimited actions


@pytest.mark.parametrize("name", names())
def test_stable_baselines3_checks_the_environment(name):
    """Before: refused for five families, whose actions had no limits."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gymnasium.make(gymnasium_id(name))
    if name in UNLIMITED:
        refused = pytest.raises(AssertionError, match="finite lower and upper bound")
        with refused, pytest.warns(UserWarning, match="symmetric and normalized"):
            checker.check_env(env)
        return
    checker.check_env(env)
    assert env.action_space.is_bounded()


@pytest.mark.parametrize("name", names())
def test_action_spaces_are_the_limits_of_the_family(name):
    """But where the largest number chooses: any choice is one of numbers in [-1, 1], and others are accepted."""
    family = make(name)
    space, bounds = family.make_env(family.first_psi).action_space, family.action_bounds
    if family.picks_largest:
        assert not bounds.are_finite and (space.low == -1).all() and (space.high == 1).all()
        outcomes = [family.make_env(family.first_psi) for _ in range(2)]
        for env in outcomes:
            env.reset(seed=3)
        act = np.linspace(-1, 1, family.act_size)
        for _ in range(5):
            (obs, reward, *_), (far_obs, far_reward, *_) = (
                env.step(scale * act) for env, scale in zip(outcomes, (1, 900), strict=True)
            )
            assert reward == far_reward and np.array_equal(obs, far_obs)
    else:
        np.testing.assert_array_equal(space.low, bounds.low.numpy())
        np.testing.assert_array_equal(space.high, bounds.high.numpy())


@pytest.mark.parametrize("family", ["point_robot", "hopper2d_params"])  # rewards, dynamics
def test_a_reset_takes_a_task(family):
    """An episode of the task that was asked for is that of an environment made for it, bit for bit."""
    made = make(family)
    psi = made.box.sample(2, "uniform", torch.Generator().manual_seed(3)).double()
    env = made.make_env(made.first_psi, shows_psi=True)
    env.reset(seed=0)
    for task in psi:
        alone = made.make_env(task, shows_psi=True)
        first, info = env.reset(seed=5, options={"psi": task.numpy()})
        np.testing.assert_array_equal(first, alone.reset(seed=5)[0])
        np.testing.assert_array_equal(first[-len(task) :], task.numpy().astype(np.float32))
        np.testing.assert_array_equal(info["psi"], task.numpy())
        action = np.full(made.act_size, 0.3, dtype=np.float32)
        for _ in range(3):
            got, expected = env.step(action), alone.step(action)
            np.testing.assert_array_equal(got[0], expected[0])
            assert got[1] == expected[1]
        np.testing.assert_array_equal(env.reset()[1]["psi"], task.numpy())  # it stays
    with pytest.raises(ValueError, match="is outside"):
        env.reset(options={"psi": 100 + psi[0].numpy()})
    with pytest.raises(ValueError, match="options: expected psi, got 'spi'"):
        env.reset(options={"spi": psi[0].numpy()})


def test_every_reset_draws_a_task_by_its_seed():
    env = gymnasium.make("AdMRL/PointRobot-v0", draws_psi=True, shows_psi=True)
    check_env(env.unwrapped, skip_render_check=True)
    tasks = [env.reset(seed=1)[1]["psi"].tolist() for _ in range(2)] + [
        env.reset()[1]["psi"].tolist() for _ in range(50)
    ]
    assert tasks[0] == tasks[1] and len({tuple(task) for task in tasks}) == 51
    assert np.abs(tasks).max() <= 1 and np.std(tasks) > 0.4
    task = [0.25, -0.5]
    assert env.reset(options={"psi": task})[1]["psi"].tolist() == task
    with pytest.raises(ValueError, match="psi: every reset draws a task"):
        gymnasium.make("AdMRL/PointRobot-v0", psi=(0.0, 0.0), draws_psi=True)


@pytest.mark.slow
def test_a_policy_of_all_tasks_by_stable_baselines3(tmp_path):
    pytest.importorskip("stable_baselines3")
    example = Path(__file__).parents[2] / "examples" / "psi_conditioned_policy.py"
    words = [sys.executable, str(example), "--steps", "250", "--grid", "2", "2"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "SAC: psi" in result.stdout  # what it sees
    assert (tmp_path / "gap.png").is_file()
    assert (tmp_path / "runs" / "point_robot-SAC" / "gaps" / "grid-2x2.json").is_file()
