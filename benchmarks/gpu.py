"""A GPU against the CPU: are the numbers the same, how often does the host wait, how long does it take?

    python benchmarks/gpu.py [--quick] [--device cuda] [--minutes 8] [--json FILE]

For each part of a virtual training and of the task gradient, a line: the largest difference from the CPU relative to
the largest number, in the same dtype; what the host waited for (`torch.cuda.set_sync_debug_mode`); seconds on both,
of the third of four calls (a GPU records in the second). What is left out for lack of time is said. `--device cpu`
runs the script itself where there is no GPU; its own path for one has not been run yet.

The claim: differences below 1e-4 in float32 and 1e-8 in float64, waits as in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.baselines.config import preset_config
from admrl.baselines.training import new_baseline
from admrl.config.training import TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient import Evidence, task_gradient
from admrl.solving.rollouts import real_rollout, virtual_rollout
from admrl.solving.solution import new_solution
from admrl.solving.virtual_training import policy_update
from dynamics import DynamicsConfig, FitConfig, ModelLearner
from policy_opt import GaussianPolicy, conjugate_gradient, gmres, lanczos_solve, lsmr, minres
from policy_opt.capture import RECORDERS
from task_families import make, spawn_generators

Part = Callable[[], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="parts that would begin later are left out"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    end, rows = time.monotonic() + 60 * arguments.minutes, list[dict[str, Any]]()
    device = torch.device(arguments.device)
    settings = [("small", 3, 64, torch.float64)]
    settings += [] if arguments.quick else [("36 tasks", 36, 1000, torch.float32)]
    for name, num_tasks, width, dtype in settings:
        pairs = zip(
            parts("cpu", num_tasks, width, dtype), parts(device, num_tasks, width, dtype), strict=True
        )
        for (part, here), (_, there) in pairs:
            if time.monotonic() > end:
                print(f"{name}, {part}: left out, no time is left")
                continue
            rows.append({"size": name, "part": part} | compared(here, there, device))
            print("{size}, {part}: difference {difference:.1e}, waits {waits}, ".format(**rows[-1]), end="")
            print("{cpu:.4f} s on the CPU, {device:.4f} s on the device".format(**rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1))


def compared(here: Part, there: Part, device: torch.device) -> dict[str, Any]:
    """One row. The parts draw from generators of their own, in step: each is called equally often."""
    cpu, expected, _ = measured(here, torch.device("cpu"))
    seconds, found, waits = measured(there, device)
    pairs = [(a.cpu().double(), b.double()) for a, b in zip(found, expected, strict=True)]
    difference = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
    return {"difference": difference, "waits": waits, "cpu": cpu, "device": seconds}


def measured(part: Part, device: torch.device) -> tuple[float, list[Tensor], int]:
    """Seconds of the third call; the answer of the fourth, and what the host waited for in it."""
    on_gpu, seconds = device.type == "cuda", 0.0
    for _ in range(3):
        start = time.perf_counter()
        part()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        answer = part()
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    return seconds, answer, sum("synchroniz" in str(one.message) for one in told)


def parts(
    device: torch.device | str, num_tasks: int, width: int, dtype: torch.dtype
) -> list[tuple[str, Part]]:
    """What is compared, by name, on a device."""
    found = list(solver_parts(device, num_tasks, width, dtype).items())
    found += training_parts(device, num_tasks, width, dtype).items()
    if dtype == torch.float64:
        return found
    step, unrecorded = pearl_step(device), pearl_step(device)
    found += [("PEARL, a gradient step", step)]
    return [*found, ("PEARL, a gradient step, not recorded", lambda: without_recording(unrecorded))]


def without_recording(part: Part) -> list[Tensor]:
    """A part without CUDA graphs."""
    kept = dict(RECORDERS)
    RECORDERS.clear()
    try:
        return part()
    finally:
        RECORDERS.update(kept)


def solver_parts(device: Any, num_tasks: int, width: int, dtype: torch.dtype) -> dict[str, Part]:
    """Solves with a matrix of condition 100, one right-hand side for each task."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    matrix = ((q * torch.logspace(-2, 0, width, dtype=torch.float64)) @ q.mT).to(device, dtype)
    b = torch.randn(num_tasks, width, generator=generator, dtype=torch.float64).to(device, dtype)
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    solvers = {"conjugate gradients": conjugate_gradient, "minres": minres, "lanczos": lanczos_solve}
    solvers |= {"gmres": gmres, "lsmr": lsmr}

    def solve(solver: Callable[..., Any]) -> Part:
        return lambda: [solver(lambda v: v @ matrix.mT, b, rtol=rtol).solution]

    return {name: solve(solver) for name, solver in solvers.items()}


def training_parts(device: Any, num_tasks: int, width: int, dtype: torch.dtype) -> dict[str, Part]:
    """The parts of a virtual training, and an estimate of the task gradient."""
    family, generator = make("hopper2d"), torch.Generator().manual_seed(0)
    config = VirtualTrainingConfig(num_samples=10 * family.horizon)
    dynamics = DynamicsConfig((width, width), num_members=2)
    learner = ModelLearner.make(family, dynamics, FitConfig(), generator, dtype=dtype)
    psi = family.box.sample(num_tasks, "uniform", generator).to(dtype)
    policy = GaussianPolicy(family.obs_size, family.act_size)
    generators = spawn_generators(generator, num_tasks)
    solution = new_solution(learner.model, psi, policy, config, generators)
    learner.add(real_rollout(family, solution, 4, generators))
    learner.fit(20)
    learner = learner.to(device)
    model = learner.model.clone()
    solution = new_solution(model, psi.to(device), policy, config, generators)
    rollout = virtual_rollout(family, model, solution, 10, generators)
    real = real_rollout(family, solution, 10, generators)
    estimator = TaskGradientConfig(estimator="causal", max_steps=10)
    evidence = Evidence(family, solution, solution, rollout, real, real, model, estimator, config)

    def fit() -> list[Tensor]:
        return [learner.fit(20).loss, *learner.model.parameters()]

    def update() -> list[Tensor]:
        return [policy_update(family, model, solution, rollout, config)[0].theta]

    def rollout_in_model() -> list[Tensor]:
        return [virtual_rollout(family, model, solution, 10, generators).obs]

    def estimate() -> list[Tensor]:
        gradient = task_gradient(evidence, generators)
        return [gradient.total, gradient.implicit]

    return {
        "fit, 20 steps": lambda: [tensor.detach() for tensor in fit()],
        "rollout in the model": rollout_in_model,
        "rollout in the model, not recorded": lambda: without_recording(rollout_in_model),
        "policy update": update,
        "policy update, not recorded": lambda: without_recording(update),
        "task gradient, causal": estimate,
    }


def pearl_step(device: torch.device | str) -> Part:
    """One on a meta-batch of the paper's size; its networks are in float32 alone."""
    family, generator = make("hopper2d"), torch.Generator().manual_seed(0)
    config = replace(preset_config("paper", family.name, "pearl"), num_tasks=10, num_iterations=1)
    state = new_baseline(family, "pearl", config, 0)
    for task in range(len(state.train_psi)):
        obs, next_obs = torch.randn(2, 1000, family.obs_size, generator=generator)
        act = 2 * torch.rand(1000, family.act_size, generator=generator) - 1
        reward, nothing = next_obs[:, 0], torch.zeros(1000)
        state.replay.add(task, obs, act, next_obs, reward, reward, nothing, to_context=True)
    state.move_to(torch.device(device))
    return lambda: list(state.agent.update(state.replay, state.optimizers, state.generator).values())


if __name__ == "__main__":
    main()
