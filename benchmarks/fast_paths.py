"""What the fast paths do to the returns: bfloat16 rollouts of the model, Fisher products on a share of the states.

Claim: neither changes the returns of the policies by more than other seeds do.

    OMP_NUM_THREADS=1 python benchmarks/fast_paths.py [--quick] [--json FILE] [--families hopper2d ant2d]

One model, fitted to the first task of a training, stays frozen. Policies for several tasks, three policy seeds each,
are trained in it with every setting, from the same starts and with the same noise, and scored in the simulator on the
same episodes; differences are paired by task and seed. "plain" with other seeds shows what seeds alone do.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.config.presets import PRESETS
from admrl.config.training import MetaTrainConfig, VirtualTrainingConfig
from admrl.solving.adaptation import zero_shot
from admrl.solving.rollouts import episode_returns, real_rollout
from admrl.streams import Purpose, task_streams
from admrl.training.meta_training import meta_train
from admrl.training.state import new_state
from policy_opt import GaussianPolicy, TrpoConfig
from task_families import make

Row = dict[str, Any]
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16 rollouts": {"rollout_precision": "bfloat16"},
    "Fisher on 1/4": {"trpo": TrpoConfig(fisher_fraction=0.25)},
    "Fisher on 1/10": {"trpo": TrpoConfig(fisher_fraction=0.1)},
}


def first_task(family_name: str, quick: bool) -> tuple[MetaTrainConfig, int]:
    """How the model is trained, and the updates of every policy in it."""
    base = PRESETS["smoke" if quick else "laptop"]
    if quick:
        return replace(base, num_tasks=1), 3
    if family_name == "hopper2d":
        return replace(base, num_tasks=1), 100
    slbo = replace(base.slbo, num_samples=10_000)
    return replace(base, num_tasks=1, slbo=slbo, dynamics=PRESETS["paper"].dynamics), 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; proves that it runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--families", nargs="+", default=["hopper2d", "ant2d"])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows: list[Row] = []
    for name in arguments.families[:1] if arguments.quick else arguments.families:
        rows += compare(name, arguments.quick)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))


def compare(family_name: str, quick: bool) -> list[Row]:
    """Every setting against the plain one, on one family."""
    family, num_seeds = make(family_name), 3
    config, num_updates = first_task(family_name, quick)
    state = new_state(family, "uniform", config, seed=0)
    meta_train(family, state, config)
    model = state.learner.model
    num_tasks = 2 if quick else 4
    psi = family.box.sample(num_tasks, "uniform", torch.Generator().manual_seed(1))
    plain = replace(
        config.virtual,
        num_model_steps=0,
        num_policy_updates=num_updates,
        num_samples=800 if quick else 10_000 // (200 * model.num_members) * 200 * model.num_members,
        trpo=TrpoConfig(),
    )

    def train(virtual: VirtualTrainingConfig, seed: int) -> tuple[Tensor, float]:
        """Real returns (seeds, tasks) and the seconds of training."""
        tasks = psi.repeat(num_seeds, 1)
        generators = task_streams(seed, Purpose.ADAPTATION, num_seeds, family.box.to_unit(psi))
        policy = GaussianPolicy(family.obs_size, family.act_size)
        start = time.perf_counter()
        solution = zero_shot(family, model, tasks, policy, 1, virtual, generators)
        seconds = time.perf_counter() - start
        score = real_rollout(
            family, solution, 40, task_streams(0, Purpose.SCORING, num_seeds, family.box.to_unit(psi))
        )
        return episode_returns(family, tasks, score).mean(1).view(num_seeds, num_tasks), seconds

    base, seconds = train(plain, 0)
    rows: list[Row] = []
    threads = torch.get_num_threads()

    def add(name: str, value: float, **more: Any) -> None:
        rows.append({"name": f"{family_name}: {name}", "value": value, "threads": threads, **more})
        text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
        print(f"{rows[-1]['name']:52s} {value:8.1f}  {text}", flush=True)

    load = os.getloadavg()[0]
    add(
        "plain",
        float(base.mean()),
        unit="return",
        seed_sd=float(base.std(0).mean()),
        seconds=seconds,
        load=load,
    )
    cases = [(name, replace(plain, **change), 0) for name, change in VARIANTS.items()]
    for name, virtual, seed in [*cases, ("plain, other seeds", plain, 1)]:
        found, seconds = train(virtual, seed)
        difference = found - base
        error = float(difference.std()) / math.sqrt(difference.numel())
        load = os.getloadavg()[0]
        add(
            f"{name} - plain",
            float(difference.mean()),
            unit="return",
            standard_error=error,
            seconds=seconds,
            load=load,
        )
    return rows


if __name__ == "__main__":
    main()
