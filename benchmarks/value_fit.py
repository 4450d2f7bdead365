"""Two value functions, compared by the returns they lead to and by their cost.

Claim: ridge regression on random features (`policy_opt.ValueFunction`) leads to returns like those of the released
code's fit (64-64 tanh network, 780 Adam steps of batch 64 per update), at a small part of its time.

    OMP_NUM_THREADS=1 python benchmarks/value_fit.py [--quick] [--json FILE]

Trains Hopper2D policies in one frozen model, several tasks and policy seeds in a batch, once with each, from the same
start and with the same noise, and scores them in the simulator.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from admrl.config.training import VirtualTrainingConfig
from admrl.solving.rollouts import episode_returns, real_rollout
from admrl.solving.solution import new_solution
from admrl.solving.virtual_training import virtual_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy, ValueFunction
from policy_opt.mlp import Mlp
from task_families import make, spawn_generators

SECONDS = {"ridge": 0.0, "adam": 0.0}


class TimedRidge(ValueFunction):
    """The package's own fit, timed."""

    def fit(self, features: Tensor, target: Tensor) -> Tensor:
        start = time.perf_counter()
        weights = super().fit(features, target)
        SECONDS["ridge"] += time.perf_counter() - start
        return weights


class AdamValue:
    """The released code's value function for one block of tasks; keeps its parameters and Adam moments.

    Targets are standardised, without which 1e-3 steps need many updates to reach returns of several hundred.
    """

    def __init__(self, obs_mean: Tensor, obs_std: Tensor, steps: int, batch: int) -> None:
        self.obs_mean, self.obs_std, self.steps, self.batch = obs_mean, obs_std, steps, batch
        self.mlp = Mlp((len(obs_mean), 64, 64, 1))
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = self.mlp.init([self.generator], dtype=torch.float32).requires_grad_()
        self.adam = torch.optim.Adam([self.parameters], lr=1e-3)
        self.center, self.scale = torch.zeros(()), torch.ones(())

    def features(self, obs: Tensor) -> Tensor:
        return (obs - self.obs_mean) / self.obs_std

    def predict(self, weights: Tensor, features: Tensor) -> Tensor:
        out = self.mlp(weights, features.flatten(1, -2))[..., 0].view(features.shape[:-1])
        return self.center + self.scale * out if bool(weights.any()) else torch.zeros_like(out)

    def __call__(self, weights: Tensor, obs: Tensor) -> Tensor:
        return self.predict(weights, self.features(obs))

    def fit(self, features: Tensor, target: Tensor) -> Tensor:
        start = time.perf_counter()
        x, y = features.flatten(1, -2)[0], target.flatten()
        if float(self.scale) == 1.0:
            self.center, self.scale = y.mean(), y.std()
        y = (y - self.center) / self.scale
        with torch.enable_grad():
            for _ in range(self.steps):
                rows = torch.randint(len(x), (self.batch,), generator=self.generator)
                loss = (self.mlp(self.parameters, x[None, rows])[0, :, 0] - y[rows]).square().mean()
                self.adam.zero_grad()
                loss.backward()
                self.adam.step()
        SECONDS["adam"] += time.perf_counter() - start
        return self.parameters.detach().clone()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer tasks and updates, ends within 45 seconds"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    num_tasks, num_updates = (2, 15) if arguments.quick else (8, 60)

    family = make("hopper2d")
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(family, DynamicsConfig(num_members=1), FitConfig(), generator)
    policy, config = (
        GaussianPolicy(family.obs_size, family.act_size),
        VirtualTrainingConfig(num_samples=10_000),
    )
    psi = family.box.sample(num_tasks, "uniform", generator)
    first = new_solution(learner.model, psi[:1], policy, config, spawn_generators(generator, 1))
    learner.add(real_rollout(family, first, 100, spawn_generators(generator, 1)))
    learner.fit(1000)

    returns: dict[str, Tensor] = {}
    for name in ("ridge", "adam"):
        final = []
        for m in range(num_tasks):
            noise = [torch.Generator().manual_seed(m)]
            solution = new_solution(learner.model, psi[m : m + 1], policy, config, noise)
            value = solution.value
            if name == "ridge":
                fields = (value.directions, value.offsets, value.obs_mean, value.obs_std, value.ridge)
                solution = replace(solution, value=TimedRidge(*fields))
            else:
                adam = AdamValue(value.obs_mean, value.obs_std, steps=780, batch=64)
                zero = torch.zeros_like(adam.parameters.detach())
                solution = replace(solution, value=adam, weights=zero)
            for _ in range(num_updates):
                solution, _ = virtual_update(family, learner.model, solution, 50, config, noise)
            score = real_rollout(family, solution, 50, [torch.Generator().manual_seed(1000)])
            final.append(episode_returns(family, solution.psi, score).mean())
        returns[name] = torch.stack(final)
        print(
            f"{name:6s} return {returns[name].mean():.0f} ± {returns[name].std() / num_tasks**0.5:.0f} over tasks"
        )
    difference = returns["ridge"] - returns["adam"]
    error = difference.std() / num_tasks**0.5
    ratio = SECONDS["adam"] / SECONDS["ridge"]
    print(f"ridge - adam, paired over {num_tasks} tasks: {difference.mean():+.0f} ± {error:.0f}")
    for name, seconds in SECONDS.items():
        print(f"{name:6s} {1e3 * seconds / (num_tasks * num_updates):.1f} ms per fit of 10 000 states")
    print(f"time ratio {ratio:.0f}, load {os.getloadavg()[0]:.1f}")
    threads = torch.get_num_threads()
    rows = [
        {
            "name": "return difference ridge - adam",
            "value": float(difference.mean()),
            "unit": "return",
            "threads": threads,
        },
        {"name": "its standard error", "value": float(error), "unit": "return", "threads": threads},
        {"name": "time adam / ridge", "value": ratio, "unit": "ratio", "threads": threads},
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
