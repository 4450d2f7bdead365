"""What `virtual.steps_per_lane` saves, and what it does to the returns: on the model of a finished run.

    OMP_NUM_THREADS=1 python benchmarks/lanes.py RUN

Times: one iteration of Alg. 2 (fit and updates as the run was trained), one task and four, the settings in turn,
medians. Returns: zero-shot policies of `--num-tasks` uniform tasks with `--num-seeds` policy seeds each, the same
random numbers for every setting; real returns of 20 episodes, differences paired by task. With `--updates 40 60 80`
only those after fewer updates than the evaluation's, with the first of `--steps`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from admrl.config.evaluation import EvaluationConfig, evaluation_virtual
from admrl.config.training import VirtualTrainingConfig
from admrl.solving.adaptation import zero_shot
from admrl.solving.rollouts import episode_returns, real_rollout
from admrl.solving.solution import Solution, new_solution
from admrl.solving.virtual_training import virtual_training
from admrl.training.run import load_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 40, 20], help="beside whole episodes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-tasks", type=int, default=12)
    parser.add_argument("--num-seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, nargs="+", help="returns after so many, in place of all else")
    parser.add_argument(
        "--num-samples", type=int, default=EvaluationConfig().num_samples, help="of an update"
    )
    arguments = parser.parse_args()
    run, settings = load_run(arguments.run), [None, *arguments.steps]
    if arguments.updates:
        virtual = with_steps(evaluation_virtual(run.virtual, EvaluationConfig()), arguments.steps[0])
        return compare_updates(
            run,
            replace(virtual, num_samples=arguments.num_samples),
            arguments.updates,
            arguments.num_tasks,
            arguments.num_seeds,
        )
    for num_tasks in (1, 4):
        times = iteration_seconds(run, settings, num_tasks, arguments.repeats)
        print(f"{num_tasks} tasks, seconds an iteration and task; load {os.getloadavg()[0]:.1f}")
        for steps, seconds in times.items():
            ratio = statistics.median(seconds) / statistics.median(times[None])
            print(f"  {steps or 'whole'}: {statistics.median(seconds) / num_tasks:.3f}, relative {ratio:.2f}")
    compare_returns(run, settings, arguments.num_tasks, arguments.num_seeds)


def generators(num: int, first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + m) for m in range(num)]


def some_tasks(run: Any, num: int) -> torch.Tensor:
    return run.family.box.sample(num, "uniform", torch.Generator().manual_seed(5)).float()


def with_steps(config: VirtualTrainingConfig, steps: int | None) -> VirtualTrainingConfig:
    return replace(config, steps_per_lane=steps, patience=None)


def iteration_seconds(
    run: Any, settings: list[int | None], num_tasks: int, repeats: int
) -> dict[int | None, list[float]]:
    psi = some_tasks(run, num_tasks)
    times: dict[int | None, list[float]] = {steps: [] for steps in settings}
    for _ in range(repeats + 1):
        for steps in settings:
            config, noise = with_steps(run.info.config.virtual, steps), generators(num_tasks, 1000)
            solution = new_solution(run.learner.model, psi, run.policy, config, noise)
            begin = time.perf_counter()
            virtual_training(run.family, run.learner.model, solution, 1, config, noise, learner=run.learner)
            times[steps].append(time.perf_counter() - begin)
    return {steps: seconds[1:] for steps, seconds in times.items()}


def compare_returns(run: Any, settings: list[int | None], num_tasks: int, num_seeds: int) -> None:
    rows, found = some_tasks(run, num_tasks).repeat(num_seeds, 1), {}
    for steps in settings:
        config = with_steps(evaluation_virtual(run.virtual, EvaluationConfig()), steps)
        begin = time.process_time()
        policies = zero_shot(
            run.family, run.learner.model, rows, run.policy, 1, config, generators(len(rows), 1000)
        )
        seconds = time.process_time() - begin
        found[steps] = real_returns(run, policies, num_tasks)
        change = (found[steps] - found[None]).mean(0)
        error = change.std() / num_tasks**0.5
        print(
            f"zero-shot, {steps or 'whole'}: {seconds:.0f} CPU s, mean return {found[steps].mean():.1f}, "
            f"change {change.mean():.1f} ± {error:.1f}; between policy seeds {found[steps].std(0).mean():.1f}",
            flush=True,
        )


def real_returns(run: Any, policies: Solution, num_tasks: int) -> torch.Tensor:
    """(seeds, tasks)"""
    num_seeds = len(policies.theta) // num_tasks
    real = real_rollout(run.family, policies, 20, generators(num_tasks, 0) * num_seeds)
    return episode_returns(run.family, policies.psi, real).mean(1).view(num_seeds, num_tasks)


def compare_updates(
    run: Any, config: VirtualTrainingConfig, updates: list[int], num_tasks: int, num_seeds: int
) -> None:
    rows, found = some_tasks(run, num_tasks).repeat(num_seeds, 1), {}
    noise = generators(len(rows), 1000)

    def note(step: int, policies: Solution) -> None:
        if step in updates or step == config.num_policy_updates:
            found[step] = real_returns(run, policies, num_tasks)

    first = new_solution(run.learner.model, rows, run.policy, config, noise)
    virtual_training(run.family, run.learner.model, first, 1, config, noise, on_step=note)
    whole = found[config.num_policy_updates]
    for step, returns in found.items():
        change = (returns - whole).mean(0)
        print(
            f"{step} updates of {config.num_samples}: mean return {returns.mean():.1f}, "
            f"change {change.mean():.1f} ± {change.std() / num_tasks**0.5:.1f}; "
            f"between policy seeds {returns.std(0).mean():.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
