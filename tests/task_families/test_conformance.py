"""What every task family must satisfy: one suite for all, by name, and proofs that it notices what it should."""

import pytest
import torch
from family_tools import Point
from imports import loaded_by

from task_families import ConformanceError, check_family, make, names
from task_families.conformance import CHECKS
from task_families.conformance_envs import task_survives_subprocesses
from task_families.conformance_tools import seeded
from task_families.function_simulator import FunctionSimulator

SHARED = "task_survives_subprocesses"  # starts a process, which takes seconds: once for all families
VARIANTS = [(name, variant) for name in names() for variant in make(name).variants if variant != "released"]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("check", [name for name in CHECKS if name != SHARED])
def test_every_family_passes(name, check):
    CHECKS[check](make(name))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_passes(name, variant):
    """What a variant can change; the rest is the family's."""
    family = make(name, variant=variant)
    assert family.variant == variant
    for check in ("declarations", "shapes", "reward_gradients", "restarts", "task_survives_copies"):
        CHECKS[check](family)


def test_tasks_survive_subprocesses():
    task_survives_subprocesses(*(make(name) for name in names()))


# -- negative controls -------------------------------------------------------------------------------------


def test_check_family_passes_a_correct_family():
    assert check_family(Point()) == tuple(CHECKS)


class DetachedReward(Point):
    def reward(self, psi, obs, act, next_obs):
        return super().reward(psi, obs, act, next_obs.detach())


class ForgetsTheTask(Point):
    def reward(self, psi, obs, act, next_obs):
        return -next_obs.square().sum(-1)


class SharedNoise(Point):
    """Draws from one generator of the simulator, so that lanes depend on their neighbours."""

    def make_simulator(self, shape, *, num_threads=1, dtype=torch.float32, psi=None):
        generator = seeded(0)

        def noisy(obs, act, u):
            return obs + act + torch.randn(obs.shape, generator=generator).to(obs)

        return FunctionSimulator(shape, self.reset, noisy, dtype=dtype)


class ResetsWithGlobalNoise(Point):
    def reset(self, n, generator):
        return torch.rand(n, 2, dtype=torch.float64)


class WrongShape(Point):
    def reward(self, psi, obs, act, next_obs):
        return super().reward(psi, obs, act, next_obs)[..., None]


class EnvironmentOfAnotherTask(Point):
    def make_env(self, psi, **options):
        return super().make_env(
            self.box.check(
                torch.as_tensor(psi), **{k: v for k, v in options.items() if k == "allow_outside"}
            )[0]
            * 0,
            **options,
        )


@pytest.mark.parametrize(
    ("family", "check"),
    [
        (DetachedReward, "reward_gradients"),
        (ForgetsTheTask, "reward_gradients"),
        (SharedNoise, "batch_equals_single"),
        (ResetsWithGlobalNoise, "first_observations"),
        (WrongShape, "shapes"),
        (EnvironmentOfAnotherTask, "environment_agrees"),
    ],
)
def test_broken_families_are_noticed(family, check):
    with pytest.raises(ConformanceError):
        CHECKS[check](family())


def test_check_family_lists_all_failures(monkeypatch):
    monkeypatch.delitem(CHECKS, SHARED)
    with pytest.raises(ConformanceError, match=r"(?s)point:.*reward_gradients: .*depend on psi"):
        check_family(ForgetsTheTask())


# -- registry ----------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"family: got 'hoper2d'.*did you mean 'hopper2d'"):
        make("hoper2d")
    with pytest.raises(ValueError, match=r"variant of hopper2d: got 'papr'.*did you mean 'paper'"):
        make("hopper2d", variant="papr")
    with pytest.raises(
        ValueError, match=r"variant of linear_quadratic: got 'paper'.*expected one of: released"
    ):
        make("linear_quadratic", variant="paper")


def test_names_cost_nothing():
    code = "import task_families; assert 'hopper2d' in task_families.names()"
    assert loaded_by(code, ("torch", "mujoco", "numpy")) == []
