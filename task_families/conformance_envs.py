"""The part of `check_family` that is about `make_env`: gymnasium, bad input, copies and other processes."""

from __future__ import annotations

import copy
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from task_families.conformance_tools import ConformanceError, expect, random_actions, tasks_of
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
        expect(
            abs(expected - float(reward)) < tolerance,
            f"reward: {reward} in the environment, {expected} in torch",
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
    expect(_refuses(type(family), "no such variant"), "an unknown variant was accepted")


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
    """Environments that are sent to a new process are the same tasks there."""
    envs = [family.make_env(tasks_of(family, 1, 3)[0]) for family in families]
    actions = [random_actions(family, 5, seed=0) for family in families]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(_episode, envs, actions))
    for family, env, act, seen in zip(families, envs, actions, there, strict=True):
        expect(seen == _episode(env, act), f"{family.name}: another process sees another task")
