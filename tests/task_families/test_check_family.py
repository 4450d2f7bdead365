"""What check_family accepts and refuses: tolerances by step size and dtype, limits, names, and where it can run."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from family_tools import Point

from task_families import ConformanceError, TaskBox, check_family
from task_families.conformance import CHECKS, reward_gradients
from task_families.conformance_envs import task_survives_subprocesses
from task_families.conformance_tools import central_differences, run_checks


class NearTarget(Point):
    """Distances of 0.004 to 0.01 from the target, where third differences are large."""

    name, formula = "near_target", "-|s - psi|"

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBox(torch.full((2,), 0.006), torch.full((2,), 0.01), ("x", "y"), ("m", "m"))
        self.first_psi = torch.full((2,), 0.008)

    def reward(self, psi, obs, act, next_obs):
        return -(obs - psi).norm(dim=-1)

    def reset(self, n, generator):
        return 0.003 * torch.rand(n, 2, generator=generator, dtype=torch.float64)

    def make_simulator(self, shape, **options):
        simulator = super().make_simulator(shape, **options)
        simulator._transition = lambda obs, act, u: obs + 1e-4 * act.tanh()
        return simulator


class WrongByOnePercent(Point):
    """The gradient of next_obs is 1 % too large; the value is right."""

    def reward(self, psi, obs, act, next_obs):
        scaled = 1.01 * next_obs - 0.01 * next_obs.detach()
        return super().reward(psi, obs, act, scaled)


class WrongNearTarget(NearTarget):
    def reward(self, psi, obs, act, next_obs):
        return super().reward(psi, 1.01 * obs - 0.01 * obs.detach(), act, next_obs)


class InKilometres(Point):
    """Rewards of the size 1e6, whose float32 values are a tenth apart."""

    def reward(self, psi, obs, act, next_obs):
        return 1e6 * super().reward(psi, obs, act, next_obs)


class Float32Reset(Point):
    def reset(self, n, generator):
        return super().reset(n, generator).float()


@pytest.mark.parametrize("family", [NearTarget, Float32Reset, InKilometres])
def test_correct_families_pass(family):
    family = family()
    for name, check in CHECKS.items():
        if name != "task_survives_subprocesses":  # which takes seconds; below
            check(family)


@pytest.mark.parametrize(("family", "where"), [(WrongByOnePercent, "next_obs"), (WrongNearTarget, "obs")])
def test_a_gradient_that_is_wrong_by_one_percent_fails_and_both_values_are_told(family, where):
    told = rf"d reward / d {where}\[\d\]: (\S+) by autograd, (\S+) by central differences .*tolerance"
    with pytest.raises(ConformanceError, match=told) as caught:
        reward_gradients(family())
    words = str(caught.value).split()
    ours, theirs = float(words[5]), float(words[8])
    assert ours / theirs == pytest.approx(1.01, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_know_their_own_error(dtype):
    """Of smooth functions, near a pole, and of |x|, in either dtype: the truth is within the tolerance."""
    x = torch.linspace(0.013, 2.0, 40, dtype=dtype)[:, None]
    functions = {
        "sqrt": (lambda y: y[..., 0].sqrt(), 0.5 * x**-0.5),
        "pole": (lambda y: 1e4 / (y[..., 0] + 0.5), -1e4 / (x + 0.5) ** 2),
        "wave": (lambda y: (20 * y[..., 0]).sin(), 20 * (20 * x).cos()),
        "kink": (lambda y: (y[..., 0] - 1.0).abs(), (x - 1).sign()),
        "line": (lambda y: 3e-7 * y[..., 0], torch.full_like(x, 3e-7)),
    }
    for name, (function, slope) in functions.items():
        found = central_differences(function, x)
        error = (found.value - slope.T.double()).abs()
        assert bool((error <= found.tolerance)[found.is_known].all()), name
        assert dtype == torch.float32 or float(found.is_known.double().mean()) >= 0.9, name


def test_what_differs_is_told_with_both_values():
    class Elsewhere(Point):
        def reset(self, n, generator):
            return super().reset(n, generator) + 0.25

        def make_simulator(self, shape, **options):
            simulator = super().make_simulator(shape, **options)
            simulator._first_obs = super().reset
            return simulator

    with pytest.raises(
        ConformanceError, match=r"start states: differ by 0.25, expected at most .*: \S+ and \S+"
    ):
        run_checks("elsewhere", {"first_observations": CHECKS["first_observations"]}, Elsewhere())


class Limited(Point):
    act_limit = 1.0
    clamp = 1.0

    def make_simulator(self, shape, **options):
        simulator = super().make_simulator(shape, **options)
        simulator._transition = lambda obs, act, u: obs + act.clamp(-self.clamp, self.clamp)
        return simulator


class LimitOfTheSimulatorIsWider(Limited):
    clamp = 2.0


class LimitOfTheEnvironmentIsWider(Limited):
    def make_env(self, psi, **options):
        env = super().make_env(psi, **options)
        env.action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
        return env


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (LimitOfTheSimulatorIsWider, "act_limit: observations after actions beyond the limits"),
        (
            LimitOfTheEnvironmentIsWider,
            r"act_limit: the low end .* \[-1.0, -1.0\] as declared .* \[-2.0, -2.0\]",
        ),
    ],
)
def test_declared_limits_are_those_of_the_environment(family, message):
    run_checks("limited", {"action_limits": CHECKS["action_limits"]}, Limited())
    with pytest.raises(ConformanceError, match=message):
        run_checks("limited", {"action_limits": CHECKS["action_limits"]}, family())


def test_a_declared_optimum_that_is_none_is_refused():
    class Good(Point):
        def optimal_policy(self, psi):
            return lambda t, obs: psi[:, None].to(obs) - obs

    class Bad(Good):
        def optimal_policy(self, psi):
            return lambda t, obs: 0.5 * (psi[:, None].to(obs) - obs)

    CHECKS["optimum"](Good())
    with pytest.raises(ConformanceError, match=r"optimal_policy: its return .* grows by .* with its actions"):
        CHECKS["optimum"](Bad())


@pytest.mark.parametrize("empty", ["", " ", None])
def test_a_family_needs_a_name(empty):
    class Nameless(Point):
        name = empty

    with pytest.raises(ConformanceError, match="name: expected a word"):
        run_checks("nameless", {"declarations": CHECKS["declarations"]}, Nameless())
    with pytest.raises(ConformanceError, match="Nameless"):
        check_family(Nameless())


SCRIPT = """
from family_tools import Point
from task_families import check_family
{definition}
print(len(check_family({name}())))
"""


@pytest.mark.parametrize(
    ("how", "name", "definition", "skipped"),
    [("script", "Point", "", 0), ("standard input", "Own", "class Own(Point):\n    name = 'own'", 1)],
)
def test_it_runs_from_standard_input_and_from_a_script_without_a_guard(
    tmp_path, how, name, definition, skipped
):
    script = SCRIPT.format(name=name, definition=definition)
    (tmp_path / "script.py").write_text(script)
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-" if how == "standard input" else str(tmp_path / "script.py")],
        input=script if how == "standard input" else None,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here / 'tests' / 'support'}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CHECKS) - skipped)], "once: the script is not run again"
    assert done.stderr.count("task_survives_subprocesses was skipped: the family is defined in") == skipped
    assert "freeze_support" not in done.stderr and "BrokenProcessPool" not in done.stderr


def test_a_family_that_another_process_cannot_use_is_refused():
    class Forgetful(Point):
        """Its environments pickle as something that no module has."""

    Forgetful.__qualname__, Forgetful.__module__ = "Forgotten", "family_tools"
    sys.modules["family_tools"].Forgotten = Forgetful
    try:
        with pytest.raises(ConformanceError, match="another process cannot use"):
            task_survives_subprocesses(Forgetful())
    finally:
        del sys.modules["family_tools"].Forgotten
