"""Virtual training (Alg. 2) at the paper's sizes: seconds, and how far from the machine's own arithmetic.

    python benchmarks/virtual_training.py [--quick] [--json FILE] [--threads 1 2] [--devices cpu cuda]

One iteration is 100 model steps of batch 256 and 20 policy updates of 10 000 virtual samples each (rollout,
advantages, TRPO, value fit). "paper": a 1000 x 1000 model; "laptop": the preset, four members of 256 x 256. The floor
ratio is the measured time over that of all its matrix products at the rate of this machine's own float32 product of
1024 x 1024 matrices, measured before and after in the same process with the same number of threads: of `a @ b`, and
in brackets of the faster of that and oneDNN, which is stricter where torch is slow. Peak memory is that of a
process that does nothing else. "36 tasks": a policy update of 36 tasks in one batch, seconds per task.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    family: str
    preset: str
    threads: int
    device: str
    precision: str
    num_tasks: int
    repeats: int

    @property
    def name(self) -> str:
        """For the rows."""
        where = f"{self.threads} thread(s)" if self.device == "cpu" else self.device
        return f"{self.family} {self.preset}, {where}, {self.precision}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases and repeats, ends within 45 seconds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of CPU threads")
    parser.add_argument("--devices", nargs="+", default=None, help="cpu, cuda; default: those that there are")
    parser.add_argument("--families", nargs="+", default=["ant2d", "hopper2d"])
    arguments = parser.parse_args()
    rows: list[Row] = []
    for case in cases(arguments):
        rows += in_process(case)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))


def cases(arguments: argparse.Namespace) -> list[Case]:
    """What is measured, in this order."""
    devices = arguments.devices or ["cpu", *(["cuda"] if has_gpu() else [])]
    if arguments.quick:
        return [Case("hopper2d", "laptop", 1, devices[-1], "full", 1, 1)]
    found = []
    for family in arguments.families:
        for device in devices:
            for threads in arguments.threads if device == "cpu" else [1]:
                for precision in ("full", "bfloat16"):
                    found.append(Case(family, "paper", threads, device, precision, 1, 3))
                    found.append(Case(family, "paper", threads, device, precision, 36, 2))
                if family == "hopper2d":
                    found.append(Case(family, "laptop", threads, device, "full", 1, 5))
    return found


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def in_process(case: Case) -> list[Row]:
    """The rows of a case, measured in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = str(case.threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case,))


def measure(case: Case) -> list[Row]:
    """One iteration and its phases; with many tasks, one round of policy updates."""
    import torch

    from admrl.solving.virtual_training import virtual_training, virtual_update

    torch.set_num_threads(case.threads)
    family, learner, solution, config, generators = prepare(case)
    num_lanes = config.num_samples // family.horizon
    rate, best_rate = matmul_rates(case.device)

    def update() -> None:
        virtual_update(family, learner.model, solution, num_lanes, config, generators)

    def iteration() -> None:
        virtual_training(family, learner.model, solution, 1, config, generators, learner=learner)

    rows: list[Row] = []

    def add(name: str, seconds: list[float], flops: float) -> None:
        value = statistics.median(seconds)
        load = os.getloadavg()[0]
        ratio, best_ratio = (value * r / flops if flops else None for r in (rate, best_rate))
        rows.append(
            {
                "name": f"{case.name}: {name}",
                "value": value,
                "unit": "s",
                "threads": case.threads,
                "floor_ratio": ratio,
                "best_floor_ratio": best_ratio,
                "load": load,
            }
        )
        floor = f"{ratio:5.2f} x floor ({best_ratio:.2f})" if ratio else ""
        print(
            f"{rows[-1]['name']:72s} {value:8.3f} s (min {min(seconds):.3f})  {floor}  load {load:.1f}",
            flush=True,
        )

    work = operations(family, learner, solution, config)
    updates = config.num_policy_updates
    if case.num_tasks > 1:
        seconds = timed(update, case.repeats, case.device)
        per_task = [s / case.num_tasks for s in seconds]
        add(f"policy update, {case.num_tasks} tasks, per task", per_task, work["update"])
    else:
        add("iteration", timed(iteration, case.repeats, case.device), work["fit"] + updates * work["update"])
        add(
            "  model steps",
            timed(lambda: learner.fit(config.num_model_steps), case.repeats, case.device),
            work["fit"],
        )
        add("  policy update", timed(update, 5 * case.repeats, case.device), work["update"])
        for name, phase in phases(family, learner, solution, config, generators).items():
            add(f"    {name}", timed(phase, 5 * case.repeats, case.device), work.get(name, 0.0))
    rate_after, best_after = matmul_rates(case.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tasks = f", {case.num_tasks} tasks" if case.num_tasks > 1 else ""
    extra = [
        ("matrix products", rate / 1e9, "GFLOP/s"),
        ("matrix products, afterwards", rate_after / 1e9, "GFLOP/s"),
        ("matrix products, faster library", best_rate / 1e9, "GFLOP/s"),
        ("matrix products, faster library, afterwards", best_after / 1e9, "GFLOP/s"),
        (f"peak memory{tasks}", peak, "MiB"),
    ]
    for name, value, unit in extra:
        rows.append({"name": f"{case.name}: {name}", "value": value, "unit": unit, "threads": case.threads})
        print(f"{rows[-1]['name']:72s} {value:8.0f} {unit}", flush=True)
    return rows


def prepare(case: Case) -> tuple[Any, ...]:
    """A family, a model that has seen 10 000 real samples, policies, the configuration, generators."""
    import torch

    from admrl.config.presets import PRESETS
    from admrl.solving.rollouts import real_rollout
    from admrl.solving.solution import new_solution
    from dynamics import ModelLearner
    from policy_opt import GaussianPolicy
    from task_families import make, spawn_generators

    family, preset = make(case.family), PRESETS[case.preset]
    config = replace(preset.virtual, rollout_precision=case.precision)
    generator = torch.Generator().manual_seed(0)
    learner = ModelLearner.make(family, preset.dynamics, preset.fit, generator)
    policy = GaussianPolicy(family.obs_size, family.act_size)
    psi = family.box.sample(case.num_tasks, "uniform", generator)
    generators = spawn_generators(generator, case.num_tasks)
    first = new_solution(learner.model, psi[:1], policy, config, generators[:1])
    learner.add(real_rollout(family, first, 10_000 // family.horizon, generators[:1]))
    learner.fit(20)
    if case.device != "cpu":
        learner = learner.to(case.device)
    solution = new_solution(learner.model, psi.to(case.device), policy, config, generators)
    return family, learner, solution, config, generators


def phases(
    family: Any, learner: Any, solution: Any, config: Any, generators: Any
) -> dict[str, Callable[[], Any]]:
    """The parts of one policy update, each by itself on the same rollout."""
    import torch

    from admrl.solving.rollouts import virtual_rollout
    from admrl.solving.virtual_training import advantages
    from policy_opt.trpo import trpo_step

    num_lanes = config.num_samples // family.horizon

    def collect_rollout() -> Any:
        return virtual_rollout(
            family, learner.model, solution, num_lanes, generators, precision=config.rollout_precision
        )

    with torch.no_grad():
        rollout = collect_rollout()
        reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
        advantage, target, features = advantages(family, solution, rollout, reward, config)
    return {
        "rollout": torch.no_grad()(collect_rollout),
        "advantages": torch.no_grad()(lambda: advantages(family, solution, rollout, reward, config)),
        "TRPO step": lambda: trpo_step(
            solution.policy, solution.theta, rollout.obs, rollout.act, advantage, config.trpo
        ),
        "value fit": torch.no_grad()(lambda: solution.value.fit(features, target)),
    }


def operations(family: Any, learner: Any, solution: Any, config: Any) -> dict[str, float]:
    """Floating-point operations of the matrix products, by phase; updates per task."""
    model, samples = learner.model, config.num_samples
    per_step = 2 * sum(w.shape[-2] * w.shape[-1] for w in model.weights)  # one member, forward
    windows = config.num_model_steps * learner.config.batch_size * learner.config.num_horizon
    net = 2 * solution.policy.mlp.num_params
    num_features = solution.weights.shape[1]
    basis = 2 * solution.value.directions.numel()
    gradient, fisher, search = 3 * net, 4 * net * (config.trpo.cg_steps + 1), 2 * net
    work = {
        "fit": 3 * per_step * windows * model.num_members,
        "rollout": samples * (per_step + net),
        "advantages": samples * (basis + 2 * num_features),
        "TRPO step": samples * (gradient + fisher * config.trpo.fisher_fraction + search),
        "value fit": samples * 2 * num_features**2,
    }
    return work | {"update": sum(work[p] for p in ("rollout", "advantages", "TRPO step", "value fit"))}


def matmul_rates(device: str) -> tuple[float, float]:
    """Floating-point operations per second of this machine's own float32 matrix product: torch's, and the fastest."""
    import torch

    from dynamics import onednn

    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device)

    def rate(multiply: Callable[[Any, Any], Any]) -> float:
        return 2 * size**3 / statistics.median(timed(lambda: multiply(a, a), 15, device))

    ordinary = rate(torch.matmul)
    return ordinary, max(ordinary, rate(onednn.product)) if onednn.has_onednn(a) else ordinary


def timed(work: Callable[[], Any], repeats: int, device: str) -> list[float]:
    """Seconds of each of several calls, after one that is not counted."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
