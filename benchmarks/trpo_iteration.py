"""One TRPO iteration in the learned model: rollout, advantages, policy step, value fit (Alg. 2, lines 5-6).

Claim: with a 256 x 256 model and 10 000 virtual samples one iteration takes at most 0.15 s on one idle core, and 36
tasks in one batch at most 30 times that.

    OMP_NUM_THREADS=1 python benchmarks/trpo_iteration.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from admrl.adaptation import real_rollout
from admrl.config import VirtualTrainingConfig
from admrl.virtual_training import new_solution, virtual_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy
from task_families import make, spawn_generators


def matmul_rate() -> float:
    """Multiply-add operations per second (x2) of this machine's own float32 matrix product."""
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(times)


def iteration(num_tasks: int, num_members: int, repeats: int) -> tuple[list[float], int]:
    """Seconds of each of several iterations, and the floating-point operations of its matrix products."""
    family = make("hopper2d")
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(family, DynamicsConfig(num_members=num_members), FitConfig(), generator)
    policy = GaussianPolicy(family.obs_size, family.act_size)
    config = VirtualTrainingConfig(num_samples=10_000)
    psi = family.box.sample(num_tasks, "uniform", generator)
    generators = spawn_generators(generator, num_tasks)
    start = new_solution(learner.model, psi[:1], policy, config, generators[:1])
    learner.add(real_rollout(family, start, 50, generators[:1]))
    learner.fit(100)
    solution = new_solution(learner.model, psi, policy, config, generators)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        solution, _ = virtual_update(family, learner.model, solution, 50, config, generators)
        times.append(time.perf_counter() - begin)
    model = 2 * (14 * 256 + 256 * 256 + 256 * 11)
    net = 2 * (11 * 32 + 32 * 32 + 32 * 3)
    features = 2 * (11 * 128) + 2 * 140**2
    per_sample = (
        model + features + net * (1 + 3 + 12 * 4 + 1)
    )  # rollout, gradient, 12 Fisher products, search
    return times[1:], num_tasks * 10_000 * per_sample


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, ends within 45 seconds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rate = matmul_rate()
    rows = []
    medians = {}
    for num_tasks, num_members in ((1, 1), (1, 5), (36, 1)):
        repeats = (9 if num_tasks == 1 else 1) if arguments.quick else (21 if num_tasks == 1 else 5)
        times, flops = iteration(num_tasks, num_members, repeats)
        medians[num_tasks, num_members] = median = statistics.median(times)
        rows.append(
            {
                "name": f"trpo_iteration M={num_tasks} E={num_members}",
                "value": median,
                "unit": "s",
                "threads": torch.get_num_threads(),
                "floor_ratio": median / (flops / rate),
                "load": os.getloadavg()[0],
            }
        )
        print(
            f"{rows[-1]['name']:28s} {median:7.3f} s  (min {min(times):.3f}, {len(times)} runs, "
            f"{rows[-1]['floor_ratio']:.1f} x arithmetic at {rate / 1e9:.0f} GFLOP/s, load {rows[-1]['load']:.1f})"
        )
    ratio = medians[36, 1] / medians[1, 1]
    rows.append(
        {"name": "36 tasks / 1 task", "value": ratio, "unit": "ratio", "threads": torch.get_num_threads()}
    )
    print(f"36 tasks in a batch take {ratio:.1f} times one task")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
