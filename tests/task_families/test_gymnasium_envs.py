"""The families as registered gymnasium environments."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from task_families import names
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
