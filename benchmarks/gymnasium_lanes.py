"""Where processes pay that step the lanes of a gymnasium environment: samples per second, with 1, 2, ... of them.

    OMP_NUM_THREADS=1 python benchmarks/gymnasium_lanes.py

One process is this one, which steps one lane after another. The numbers of processes in turn, medians and quartiles
of `--repeats` rounds of about `--seconds`; and the seconds from asking for a simulator to its first observations.
Claim: where a step of one process's lanes takes less than 1 ms (CartPole, Pendulum), two processes take fewer samples
per second than one. Where it takes longer, that depends on how busy the cores are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import gymnasium
import numpy as np
import torch

from task_families import EnvFamily, TaskBox

BOX = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("psi",), ("1",))


class Busy(gymnasium.Env):
    """A simulator of which a step takes some seconds of the processor."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, seconds: float) -> None:
        self.num = int(seconds * calibrated())

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        return self.np_random.normal(size=3), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        spin(self.num)
        return self.np_random.normal(size=3), 0.0, False, False, {}


def spin(num: int) -> float:
    total = 0.0
    for i in range(num):
        total += i
    return total


def calibrated(num: int = 200_000) -> float:
    """Turns of `spin` a second, of the best of five tries."""
    tries = []
    for _ in range(5):
        begin = time.perf_counter()
        spin(num)
        tries.append(num / (time.perf_counter() - begin))
    return max(tries)


def nothing(psi: torch.Tensor, obs: torch.Tensor, act: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs.sum(-1)


ENVS = {
    "CartPole-v1": "CartPole-v1",
    "Pendulum-v1": "Pendulum-v1",
    "Ant-v5": "Ant-v5",
    "busy 1 ms": partial(Busy, 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    for name in arguments.envs:
        for num_lanes in arguments.lanes:
            measure(name, num_lanes, arguments)


def measure(name: str, num_lanes: int, arguments: argparse.Namespace) -> None:
    with EnvFamily("measured", ENVS[name], BOX, nothing, num_processes=None) as family:
        starts, steps = {}, {}
        for num in arguments.processes:
            begin = time.perf_counter()
            simulator = family.make_simulator((1, num_lanes), num_threads=num)
            everywhere = torch.ones(1, num_lanes, dtype=torch.bool)
            simulator.reset(everywhere, simulator.start_states(num_lanes, torch.Generator().manual_seed(0)))
            starts[num] = time.perf_counter() - begin
            act = family.action_bounds.from_unit(torch.zeros(1, num_lanes, family.act_size))
            steps[f"{num} processes, started in {starts[num]:.1f} s"] = partial(simulator.step, act)
        rates: dict[str, list[float]] = {how: [] for how in steps}
        for _ in range(arguments.repeats):
            for how, step in steps.items():
                rates[how].append(num_lanes * rate(step, arguments.seconds))
    first = statistics.median(next(iter(rates.values())))
    print(f"{name}, {num_lanes} lanes; load {os.getloadavg()[0]:.1f}")
    for how, found in rates.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(
            f"  {how}: {middle:,.0f} samples/s ({low:,.0f} to {high:,.0f}), {middle / first:.2f}", flush=True
        )


def rate(step, seconds: float) -> float:  # type: ignore[no-untyped-def]
    """Calls a second."""
    num, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds or num == 0:
        step()
        num += 1
    return num / passed


if __name__ == "__main__":
    main()
