"""EnvFamily: any environment and a reward; the task may be an attribute or an argument, the reward numpy's."""

import pickle
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from admrl.config.presets import PRESETS
from admrl.gradient.score_function import reward_and_slopes
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state
from task_families import TaskBox, TaskChoice, check_family
from task_families.conformance import CHECKS
from task_families.conformance_tools import seeded
from task_families.gymnasium_simulator import EnvFamily

ANGLE = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("target angle",), ("rad",))
MASS = TaskBox(torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0]), ("mass", "force"), ("kg", "N"))
OPEN = []


class Cart(gymnasium.Env):
    """x'' = force a / mass, the position and the speed in a Dict; asymmetric actions."""

    observation_space = spaces.Dict(
        speed=spaces.Box(-np.inf, np.inf, (1,), np.float64), x=spaces.Box(-np.inf, np.inf, (1,), np.float64)
    )
    action_space = spaces.Box(-1.0, 2.0, (1,), np.float64)

    def __init__(self, mass=1.0, force=1.0):
        self.mass, self.force = mass, force
        OPEN.append(self)

    def observed(self):
        return {"x": self.x[:1], "speed": self.x[1:]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.observed(), {}

    def step(self, action):
        speed = self.x[1] + 0.1 * self.force * action[0] / self.mass
        self.x = np.array([self.x[0] + 0.1 * speed, speed])
        return self.observed(), 0.0, False, False, {}

    def close(self):
        OPEN.remove(self)


def made_of_both(both=(1.0, 1.0)):
    return Cart(*both)


def at_angle(psi, obs, act, next_obs):
    target = torch.cat([psi.cos(), psi.sin()], dim=-1)
    return (next_obs[..., :2] * target).sum(-1) - 0.001 * act.square().sum(-1)


def slow(psi, obs, act, next_obs):
    return -(next_obs[..., 1] - psi[..., 0]).square()


def numpy_angle(psi, obs, act, next_obs):
    return np.cos(np.arctan2(next_obs[..., 1], next_obs[..., 0]) - psi[..., 0])


def upright(psi, obs, act, next_obs):
    return 1 - (next_obs[..., 0] - psi[..., 0]).square()


def pendulum(reward=at_angle, **options):
    return EnvFamily("pendulum_angle", "Pendulum-v1", ANGLE, reward, **options)


def small(horizon, estimator="resolve"):
    smoke = PRESETS["smoke"]
    num = 4 * horizon
    return replace(
        smoke,
        num_tasks=2,
        slbo=replace(smoke.slbo, num_samples=num),
        virtual=replace(smoke.virtual, num_samples=num),
        gradient=replace(smoke.gradient, num_samples=num, estimator=estimator),
    )


def test_sizes_and_limits_are_those_of_the_environment():
    family = pendulum()
    assert (family.obs_size, family.act_size) == (3, 1)
    assert (family.action_bounds.low.tolist(), family.action_bounds.high.tolist()) == ([-2.0], [2.0])
    cart = EnvFamily("cart", Cart, ANGLE, slow)
    assert cart.obs_size == 2 and cart.action_bounds.high.tolist() == [2.0]
    pole = EnvFamily("pole", "CartPole-v1", ANGLE, upright)
    assert (pole.act_size, pole.picks_largest) == (2, True)
    assert pole.action_bounds.low.tolist() == [-torch.inf] * 2, (
        "of two numbers beyond a limit neither is larger"
    )
    CHECKS["action_limits"](pole)  # before, no choice passed it
    assert pickle.loads(pickle.dumps(family)).obs_size == 3
    family.close(), cart.close(), pole.close()
    assert not OPEN


@pytest.mark.slow
def test_it_conforms():
    with pendulum(horizon=20) as family:
        assert len(check_family(family)) >= 15
    with EnvFamily("cart", Cart, MASS, slow, psi_attributes=("mass", "force"), horizon=20) as family:
        assert family.psi_changes_dynamics and len(check_family(family)) >= 15


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (Cart, {"psi_attributes": ("mass", "force")}),
        (Cart, {"psi_arguments": ("mass", "force")}),
        (made_of_both, {"psi_arguments": ("both",)}),
    ],
)
def test_environments_are_told_their_task(env, options):
    """Each lane is the environment of its task, whatever its environment was before; all are closed in the end."""
    psi = torch.tensor([[0.5, 2.0], [2.0, 0.5]], dtype=torch.float64)
    with EnvFamily("cart", env, MASS, slow, **options) as family:
        for tasks in (psi, psi.flip(0)):
            simulator = family.make_simulator((2, 2), dtype=torch.float64, psi=tasks)
            states = torch.tensor([[3.0], [4.0], [3.0], [4.0]])
            first = simulator.reset(torch.ones(2, 2, dtype=torch.bool), states)
            assert torch.equal(first[0], first[1])
            moved = simulator.step(torch.ones(2, 2, 1, dtype=torch.float64)) - first
            expected = 0.1 * tasks[:, 1] / tasks[:, 0]  # of the speed, which a Dict has first
            torch.testing.assert_close(moved[..., 0], expected[:, None].expand(2, 2))
            del simulator
        assert len(OPEN) <= 5
        with pytest.raises(ValueError, match="psi: the dynamics of cart depend on the task"):
            family.make_simulator((1, 1))
        with pytest.raises(ValueError, match="the dynamics of cart depend on the task"):
            new_state(family, "uniform", small(200), 0)
    assert not OPEN


def test_a_reward_of_numpy_trains_by_what_needs_no_gradient():
    with pendulum(numpy_angle, reward_has_gradient=False, horizon=20) as family:
        for estimator in ("causal", "pathwise"):
            with pytest.raises(ValueError, match=f"so {estimator} cannot differentiate it; use resolve"):
                new_state(family, "adversarial", small(20, estimator), 0)
        new_state(family, "cem", small(20, "causal"), 0)  # which is told none
        state = meta_train(family, new_state(family, "adversarial", small(20), 0), small(20))
        gradient = state.records[1].gradient
        assert gradient is not None and all(np.isfinite(gradient["total"]))
        with pytest.warns(
            UserWarning, match="Not available: the estimators of the task gradient but resolve"
        ):
            from task_families.conformance_tools import run_checks

            run_checks(family.name, {"reward_gradients": CHECKS["reward_gradients"]}, family)


def test_differences_of_a_reward_are_its_slopes():
    """cos(angle - psi): its slope is sin(angle - psi), and a difference of half-step 0.1 has sin(0.1) / 0.1 of it."""
    with pendulum(numpy_angle, reward_has_gradient=False) as family:
        obs = torch.randn(2, 3, 4, 3, generator=seeded(0), dtype=torch.float64)
        psi = torch.tensor([[0.2], [-0.4]], dtype=torch.float64)

        def reward(point):
            return family.reward(point[:, None, None], obs, obs[..., :1], obs)

        value, slope = reward_and_slopes(family, reward, psi)
        angle = torch.atan2(obs[..., 1], obs[..., 0]) - psi[:, None]
        torch.testing.assert_close(value, angle.cos())
        torch.testing.assert_close(slope, angle.sin() * np.sin(0.1) / 0.1)
        edge = torch.ones(2, 1, dtype=torch.float64)  # one-sided there
        at_edge = reward_and_slopes(family, reward, edge)[1]
        angle = torch.atan2(obs[..., 1], obs[..., 0]) - 0.95
        torch.testing.assert_close(at_edge, angle.sin() * np.sin(0.05) / 0.05)


def test_a_choice_has_no_slope():
    choice = TaskChoice(torch.tensor([[0.0], [5.0]]), ("kind",), ("1",))
    family = EnvFamily("kinds", Cart, choice, slow, reward_has_gradient=False)
    slopes = reward_and_slopes(
        family, lambda p: p[:, None].expand(1, 2, 3), torch.tensor([[5.0]], dtype=torch.float64)
    )
    assert slopes[1].abs().max() == 0
    family.close()


def test_both_ways_of_telling_are_refused():
    with pytest.raises(ValueError, match="expected one of them, got both"):
        EnvFamily("cart", Cart, MASS, slow, psi_attributes=("mass", "force"), psi_arguments=("mass", "force"))
    with pytest.raises(ValueError, match="expected 1 or 2 names"):
        EnvFamily("cart", Cart, MASS, slow, psi_attributes=("a", "b", "c"))
