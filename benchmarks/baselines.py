"""One gradient step of PEARL and CRL, and one outer update of MAML-TRPO and ProMP: networks, optimisers, all of it.

Claim: at the paper's size (ant, 10 tasks x 256 transitions, 300-300-300) a PEARL step in float32 takes at most 1.4
times the arithmetic of its own matrix products, at the rate that this machine reaches on the product that dominates
it (2560 x 300 by 300 x 300, by MKL or oneDNN, whichever is faster), and at most two thirds of that time in bfloat16;
the laptop size makes at least 50 steps a second. An outer update of 40 tasks x 2000 samples before and after one
inner step (64-64, 20 observations, 6 actions, float32) takes at most 3.5 times the arithmetic of its own products, at
the rate of a batched 5 x 2000 x 64 by 64 x 64. One thread; times are CPU seconds of this process, so that other load
shows less; each step is timed next to its own measurement of the rate, and medians are given.

    OMP_NUM_THREADS=1 python benchmarks/baselines.py [--quick] [--only NAME] [--json FILE]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from admrl.baselines.config import BaselineConfig, preset_config
from admrl.baselines.training import BaselineState, new_baseline
from admrl.inner_loop.adaptation import Batch
from admrl.inner_loop.config import ClipConfig, OuterTrpoConfig
from admrl.inner_loop.maml_trpo import maml_trpo_step
from admrl.inner_loop.meta_problem import MetaProblem
from admrl.inner_loop.promp import promp_step
from dynamics import onednn
from policy_opt.gaussian_policy import GaussianPolicy
from task_families import make

ROWS, WIDTH = 2560, 300
TASKS, SAMPLES = 40, 2000
POLICY = GaussianPolicy(obs_size=20, act_size=6, hidden_sizes=(64, 64))


def seconds_of_a_product(a: torch.Tensor, b: torch.Tensor, repeats: int) -> float:
    """CPU seconds of one product, by the faster library."""
    products = [torch.matmul, onednn.product] if a.dim() == 2 and onednn.has_onednn(a) else [torch.matmul]
    seconds = []
    for multiply in products:
        start = time.process_time()
        for _ in range(repeats):
            multiply(a, b)
        seconds.append((time.process_time() - start) / repeats)
    return min(seconds)


def state_of(algorithm: str, config: BaselineConfig) -> BaselineState:
    """A training with random transitions."""
    state = new_baseline(make("ant_dir"), algorithm, config, 0)
    generator = torch.Generator().manual_seed(0)
    sizes = (state.family.obs_size, state.family.act_size, state.family.obs_size, 1)
    for task in range(len(state.train_psi)):
        draw = [torch.randn(1000, n, generator=generator) for n in sizes]
        obs, act, next_obs, reward = draw[0], draw[1].tanh(), draw[2], draw[3][:, 0]
        state.replay.add(task, obs, act, next_obs, reward, reward, torch.zeros(1000), to_context=True)
    return state


def outer_problem() -> tuple[torch.Tensor, MetaProblem]:
    """theta (p,), and random samples of its policies before and after one inner step."""
    generator = torch.Generator().manual_seed(0)
    theta = POLICY.init([generator])[0]
    step_size, at, batches = torch.full_like(theta, 0.1), theta.expand(TASKS, -1), list[Batch]()
    weight = torch.full((TASKS, SAMPLES), 1 / SAMPLES)
    for _ in range(2):
        obs, advantage = torch.randn(TASKS, SAMPLES, 21, generator=generator).split([20, 1], -1)
        old = POLICY.distribution(at, obs)
        act = old.mean + torch.randn(old.mean.shape, generator=generator)
        batches.append(Batch(obs, act, advantage[..., 0], weight, old, old.log_prob(act)))
        before = MetaProblem(POLICY, [*batches, batches[-1]], "log_likelihood", "second", step_size)
        at = before.path(theta)[-1].detach()
    return theta, MetaProblem(POLICY, batches, "log_likelihood", "second", step_size)


def outer_updates() -> dict[str, Callable[[], object]]:
    """An update of each kind; ProMP's are five Adam steps."""
    theta, problem = outer_problem()
    meta = torch.nn.Parameter(theta.clone())
    adam = torch.optim.Adam([meta], ClipConfig().learning_rate)
    return {
        "maml-trpo, outer update, float32": lambda: maml_trpo_step(theta, problem, OuterTrpoConfig()),
        "promp, outer update, float32": lambda: promp_step(meta, adam, problem, ClipConfig()),
    }


def measure(
    step: Callable[[], object], a: torch.Tensor, b: torch.Tensor, repeats: int
) -> tuple[float, float, float]:
    """Median CPU seconds of a step, its multiply-adds (x2), and its median ratio to the arithmetic.

    Args:
        a, b: whose product sets the rate (.., R, W), (.., W, W).
    """
    with FlopCounterMode(display=False) as counter, patch.object(onednn, "MIN_MULTIPLICATIONS", math.inf):
        step()  # through torch alone: what oneDNN multiplies is not counted
    flops = counter.get_total_flops()
    times, ratios = [], []
    for _ in range(repeats):
        product = seconds_of_a_product(a, b, 10)
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
        product = (product + seconds_of_a_product(a, b, 10)) / 2
        ratios.append(times[-1] / (flops / (2 * a.numel() * b.shape[-1]) * product))
    return statistics.median(times), flops, statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, ends within two minutes")
    parser.add_argument("--only", default="", help="steps whose names contain this")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 8 if arguments.quick else 40

    paper = replace(preset_config("paper", "ant_dir", "pearl"), meta_batch=10)
    half = replace(paper, sac=replace(paper.sac, precision="bfloat16"))
    crl = replace(preset_config("paper", "ant_dir", "crl"), meta_batch=10)
    laptop = preset_config("laptop", "ant_dir", "pearl")
    wide = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH)
    narrow = torch.randn(5, 2000, 64), torch.randn(5, 64, 64)
    steps: dict[str, tuple[Callable[[], object], tuple[torch.Tensor, torch.Tensor], int]] = {}
    for name, algorithm, config in (
        ("pearl, paper size, float32", "pearl", paper),
        ("pearl, paper size, bfloat16", "pearl", half),
        ("crl, paper size, float32", "crl", crl),
        ("pearl, laptop size, float32", "pearl", laptop),
    ):
        state = state_of(algorithm, config)
        update = partial(state.agent.update, state.replay, state.optimizers, state.generator)
        steps[name] = update, wide, repeats if config is not laptop else 10 * repeats
    for name, update in outer_updates().items():
        steps[name] = update, narrow, max(3, repeats // 8)
    rows = []
    seconds = {}
    for name, (step, product, count) in steps.items():
        if arguments.only not in name:
            continue
        seconds[name], flops, ratio = measure(step, *product, count)
        row = {
            "name": name,
            "value": seconds[name],
            "unit": "s",
            "threads": 1,
            "steps_per_second": 1 / seconds[name],
            "gflop": flops / 1e9,
            "load": os.getloadavg()[0],
        }
        if "float32" in name:
            row["floor_ratio"] = ratio
        rows.append(row)
        print(
            f"{name:33s} {seconds[name] * 1e3:7.1f} ms = {1 / seconds[name]:6.1f} steps/s, {flops / 1e9:5.1f} GFLOP"
            + (f", {ratio:.2f} x float32 arithmetic" if "float32" in name else "")
            + f", load {row['load']:.1f}"
        )
    if not arguments.only:
        speedup = seconds["pearl, paper size, float32"] / seconds["pearl, paper size, bfloat16"]
        rows.append({"name": "float32 / bfloat16", "value": speedup, "unit": "ratio", "threads": 1})
        print(f"bfloat16 is {speedup:.2f} times as fast")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
