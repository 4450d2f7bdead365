"""Sampling real transitions: the batched simulator against the same policy in a loop over gymnasium environments.

Claim: on two idle cores, with 50 environments and a 32 x 32 policy in the loop, the batched simulator of every family
takes at least 2 times as many steps per second as a Python loop in which the policy drives one environment after the
other. Also printed, without a claim: the same loop with one policy call for all 50 environments, which leaves MuJoCo
itself and two threads against one as the only difference.

The loop steps environments of the same body with the same number of sub-steps per action: gymnasium's own (Hopper-v5,
...) where there is one, else one task of the family (`make_env`).

    OMP_NUM_THREADS=1 python benchmarks/simulation.py [--quick] [--json FILE] [--threads 2]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from policy_opt import GaussianPolicy
from task_families import TaskFamily, collect, make, names
from task_families.mujoco_simulator import OWN_ASSETS

NUM_ENVS = 50
HALF_CHEETAH, ANT = "HalfCheetah-v5", "Ant-v5"
GYMNASIUM_IDS = {
    "hopper2d": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant2d": ANT,
    "ant3d": ANT,
    "cheetah_highdim": HALF_CHEETAH,
    "half_cheetah_fwd_back": HALF_CHEETAH,
    "half_cheetah_vel": HALF_CHEETAH,
    "ant_fwd_back": ANT,
    "ant_dir": ANT,
    "ant_goal": ANT,
    "humanoid_direc_2d": "Humanoid-v5",
    "walker2d_params": "Walker2d-v5",
    "hopper2d_params": "Hopper-v5",
}


def policy_of(obs_size: int, act_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A 32 x 32 policy: observations (1, N, S) -> sampled actions (1, N, A)."""
    policy = GaussianPolicy(obs_size, act_size, (32, 32))
    generator = torch.Generator().manual_seed(0)
    theta = policy.init([generator])

    def act(obs: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(1, obs.shape[1], act_size, generator=generator)
        return policy.sample(theta, obs, noise)[0]

    return act


def batched_rate(family: TaskFamily, num_threads: int, seconds: float) -> float:
    """Steps per second of `collect`, restarts included."""
    psi = family.box.sample(1, "uniform", torch.Generator().manual_seed(0))
    simulator = family.make_simulator((1, NUM_ENVS), num_threads=num_threads, psi=psi)
    act, zero = policy_of(family.obs_size, family.act_size), torch.zeros(1, NUM_ENVS)
    num_steps = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        generator = torch.Generator().manual_seed(num_steps)
        steps = min(family.horizon, 100)
        collect(simulator, family, lambda t, obs: (act(obs), zero), steps, [generator])
        num_steps += NUM_ENVS * steps
    return num_steps / (time.perf_counter() - begin)


def gymnasium_env(family: TaskFamily) -> gymnasium.Env:
    """One environment of the loop, with the family's sub-steps per action."""
    if family.name not in GYMNASIUM_IDS:
        return family.make_env(family.first_psi)
    name = GYMNASIUM_IDS[family.name]
    options: dict[str, Any] = {"frame_skip": family.frame_skip}  # type: ignore[attr-defined]
    if name == HALF_CHEETAH:
        options["xml_file"] = str(
            OWN_ASSETS / "half_cheetah.xml"
        )  # gymnasium's prints a warning at every load
    return gymnasium.make(name, **options)


def loop_rate(family: TaskFamily, envs: list[gymnasium.Env], seconds: float, *, shared_call: bool) -> float:
    """Steps per second of a Python loop over the environments.

    Args:
        shared_call: one policy call for all environments at every step, instead of one for each.
    """
    obs_size = int(np.prod(envs[0].observation_space.shape or ()))
    act = policy_of(obs_size, family.act_size)
    obs = np.stack([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    num_steps = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        if shared_call:
            actions = act(torch.from_numpy(obs).float()[None])[0].numpy()
        for i, env in enumerate(envs):
            action = (
                actions[i] if shared_call else act(torch.from_numpy(obs[i]).float()[None, None])[0, 0].numpy()
            )
            obs[i], _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs[i], _ = env.reset()
        num_steps += len(envs)
    return num_steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter measurements, ends within 45 seconds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2, help="of the batched simulator")
    parser.add_argument("--family", choices=names(), nargs="*", help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_rounds, seconds = (2, 0.15) if arguments.quick else (5, 1.0)
    rows: list[dict[str, Any]] = []
    for name in arguments.family or names():
        family = make(name)
        envs = [gymnasium_env(family) for _ in range(NUM_ENVS)]
        measured: dict[str, list[float]] = {"batched": [], "loop": [], "shared": []}
        for _ in range(num_rounds):  # in turns, so that a busy machine disturbs all alike
            measured["batched"].append(batched_rate(family, arguments.threads, seconds))
            measured["loop"].append(loop_rate(family, envs, seconds, shared_call=False))
            measured["shared"].append(loop_rate(family, envs, seconds, shared_call=True))
        for env in envs:
            env.close()
        batched, loop, shared = (statistics.median(rates) for rates in measured.values())
        against = GYMNASIUM_IDS.get(name, "make_env")
        load = os.getloadavg()[0]
        for label, value, unit, threads in (
            ("batched", batched, "steps/s", arguments.threads),
            (f"loop over {against}", loop, "steps/s", 1),
            (f"loop over {against}, one policy call", shared, "steps/s", 1),
            ("batched / loop", batched / loop, "ratio", arguments.threads),
            ("batched / loop, one policy call", batched / shared, "ratio", arguments.threads),
        ):
            rows.append(
                {"name": f"{name} {label}", "value": value, "unit": unit, "threads": threads, "load": load}
            )
        print(
            f"{name:22s} {batched:8.0f} steps/s; loop over {against:14s} {loop:6.0f}: {batched / loop:5.1f} times; "
            f"one policy call {shared:6.0f}: {batched / shared:5.1f} times  (load {load:.1f})",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
