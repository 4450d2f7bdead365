"""The part of `check_family` that is about `make_env`: gymnasium, bad input, copies and other processes."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from task_families.conformance_tools import (
    DOUBLE,
    ROUNDING,
    ConformanceError,
    SkippedCheck,
    expect,
    random_actions,
    same,
    simulate,
    start_states,
    tasks_of,
)
from task_families.family import TaskFamily


def environment_agrees(family: TaskFamily) -> None:
    """2000 random steps of `make_env`: rewards and terminations are those of the torch functions."""
    psi = tasks_of(family, 1, 1)[0]
    env = family.make_env(psi)
    rng = np.random.default_rng(0)
    step = num_ended = 0
    obs, _ = env.reset(seed=3)
    for _ in range(2000):
        unit = torch.from_numpy(rng.normal(size=family.act_size))
        act = family.action_bounds.from_unit(unit).numpy().astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(act)
        step += 1
        columns = [torch.from_numpy(x).double() for x in (obs, act, next_obs)]
        expected = float(family.reward(psi, *columns))
        tolerance = 1e-5 * (1 + abs(expected))
        if abs(expected - float(reward)) >= tolerance:  # a steep reward feels the rounding of observations
            tolerance += _rounding(family, psi, columns)
        expect(
            abs(expected - float(reward)) < tolerance,
            f"reward: {reward} in the environment, {expected} in torch (tolerance {tolerance:.2g})",
        )
        expect(bool(family.terminated(columns[2])) == terminated, "terminated: environment and torch differ")
        expect(
            truncated == (step == family.horizon and not terminated),
            f"truncated = {truncated} at step {step}",
        )
        obs = next_obs
        if terminated or truncated:
            num_ended, step = num_ended + 1, 0
            obs, _ = env.reset()
    expect(num_ended >= 2000 // family.horizon, f"{num_ended} episodes ended in 2000 steps")


def _rounding(family: TaskFamily, psi: Tensor, columns: list[Tensor]) -> float:
    """What the rounding of observations and actions to float32 may change in the reward."""
    leaves = [x.clone().requires_grad_() for x in columns]
    reward = family.reward(psi, *leaves)
    if not reward.requires_grad:
        return 0.0
    slopes = torch.autograd.grad(reward, leaves, allow_unused=True)
    steps = [float((s.abs() * x.abs()).sum()) for s, x in zip(slopes, columns, strict=True) if s is not None]
    return 2 * torch.finfo(torch.float32).eps * sum(steps)


def action_limits(family: TaskFamily) -> None:
    """The limits that the family declares are those of its environments and of its simulator."""
    bounds, psi = family.action_bounds, tasks_of(family, 2, 1)
    space: Any = family.make_env(psi[0]).action_space
    for name, declared, end in (("low", bounds.low, space.low), ("high", bounds.high, space.high)):
        limited = declared.isfinite()  # where nothing is declared, an environment may have limits
        theirs = torch.as_tensor(end, dtype=DOUBLE)
        shapes = f"shape {tuple(theirs.shape)}, expected {tuple(declared.shape)}"
        expect(theirs.shape == declared.shape, f"action space: {shapes}")
        expect(
            bool(torch.isclose(theirs, declared, rtol=1e-6, atol=0.0)[limited].all()),
            f"act_limit: the {name} end of actions is {declared.tolist()} as declared (act_limit, act_low, "
            f"act_high), and {theirs.tolist()} in the environment's action space",
        )
    actions, states = random_actions(family, 10, 2, 3, seed=2, scale=3.0), start_states(family, (2, 3), 3)
    clamped = torch.minimum(torch.maximum(actions, bounds.low), bounds.high)
    seen, expected = (simulate(family, states, a, psi=psi) for a in (actions, clamped))
    same(
        seen,
        expected,
        "act_limit: observations after actions beyond the limits, and after the limits",
        ROUNDING,
    )


def gymnasium_checker(family: TaskFamily) -> None:
    """Gymnasium's own environment checker accepts `make_env`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box (action|observation) space")  # unbounded is meant
        try:
            check_env(family.make_env(family.first_psi), skip_render_check=True)
        except (AssertionError, Warning) as error:
            raise ConformanceError(str(error)) from error


def bad_input(family: TaskFamily) -> None:
    """Wrong shapes, tasks outside the box and nan actions are refused with `ValueError`."""
    k, A = family.box.size, family.act_size
    for psi in (torch.zeros(k + 1), family.box.high * 2 + 1, torch.full((k,), torch.nan)):
        expect(_refuses(family.make_env, psi), f"make_env accepted psi {psi.tolist()[:4]}")
    outside = family.make_env(family.box.high + 0.01, allow_outside=True)
    outside.reset(seed=0)
    for act in (np.full(A, np.nan), np.zeros(A + 1)):
        expect(_refuses(outside.step, act), f"step accepted the action {act.tolist()[:4]}")
    if "variant" in inspect.signature(type(family)).parameters:
        expect(
            _refuses(lambda v: type(family)(variant=v), "no such variant"), "an unknown variant was accepted"
        )


def _refuses(call: Callable[..., object], argument: object) -> bool:
    try:
        call(argument)
    except ValueError:
        return True
    return False


def _episode(env: Any, actions: Tensor) -> list[float]:
    """Observations and rewards of an episode, in one list."""
    seen = env.reset(seed=0)[0].tolist()
    for act in actions:
        obs, reward, *_ = env.step(act.numpy())
        seen += [*obs.tolist(), reward]
    return seen


def task_survives_copies(family: TaskFamily) -> None:
    """A copied, deep-copied or pickled environment is the same task; so is a pickled family."""
    psi = tasks_of(family, 1, 2)[0]
    env = family.make_env(psi)
    actions = random_actions(family, 5, seed=0)
    expected = _episode(env, actions)

    def pickled(x: Any) -> Any:
        return ForkingPickler.loads(ForkingPickler.dumps(x))  # what was dumped a moment ago, not a file

    copies = {
        "copy.copy": copy.copy(env),
        "copy.deepcopy": copy.deepcopy(env),
        "pickle": pickled(env),
        "pickle of the family": pickled(family).make_env(psi),
    }
    for how, other in copies.items():
        expect(_episode(other, actions) == expected, f"{how}: the copy is another task")


def task_survives_subprocesses(*families: TaskFamily) -> None:
    """Environments that are sent to a new process are the same tasks there.

    The process runs nothing but this page, so that a script without ``if __name__ == "__main__"`` is not run again.

    Raises:
        SkippedCheck: the family is defined where no other process finds it.
    """
    envs = [family.make_env(tasks_of(family, 1, 3)[0]) for family in families]
    actions = [random_actions(family, 5, seed=0) for family in families]
    sent = pickle.dumps(list(zip(envs, actions, strict=True)))
    if b"__main__" in sent:
        raise SkippedCheck(
            "the family is defined in a notebook, on standard input or in the script that runs, where no other "
            "process finds it; import it from a module of its own to check this, too"
        )
    if not sys.executable:
        raise SkippedCheck("this interpreter does not say where its executable is (sys.executable)")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"  # not standard output, to which modules may print
        process = subprocess.run(
            [sys.executable, "-c", _THERE, str(answer)],
            input=sent,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        if process.returncode != 0:
            lines = process.stderr.decode(errors="replace").strip().splitlines()
            raise ConformanceError(f"another process cannot use the environment: {' '.join(lines[-1:]):.300}")
        there = json.loads(answer.read_bytes())
    for family, env, act, seen in zip(families, envs, actions, there, strict=True):
        expect(seen == _episode(env, act), f"{family.name}: another process sees another task")


_THERE = """
import json, pickle, sys
from task_families.conformance_envs import _episode
episodes = [_episode(env, actions) for env, actions in pickle.load(sys.stdin.buffer)]
with open(sys.argv[1], "w") as file:
    json.dump(episodes, file)
"""
