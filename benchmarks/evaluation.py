"""A 6 x 6 grid of Hopper2D tasks in one batch against the same tasks one after the other.

Claim: task by task, zero-shot training in the frozen model takes at least 1.2 times as long on one core, and 10 times
on a GPU; one replicate (36 policies) of the laptop-size evaluation takes at most 3 minutes for n = 0 and 15 for
n = 0..6000 on two idle cores.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--quick] [--json FILE] [--device cuda]

On the CPU, CPU seconds of this one thread are counted: what an idle core would take, also on a busy machine. The
replicate's time is extrapolated from single updates and fits; two cores work on batches of their own.
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
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig, evaluation_virtual
from admrl.config.presets import PRESETS
from admrl.solving.rollouts import real_rollout
from admrl.solving.solution import Solution, make_policy, new_solution
from admrl.solving.virtual_training import virtual_update
from admrl.streams import Purpose, task_streams
from dynamics.learner import ModelLearner
from task_families import make

FAMILY, LAPTOP = make("hopper2d"), PRESETS["laptop"]
CORES = 2
CLOCK = {"cpu": time.process_time}  # wall time elsewhere


def make_learner() -> ModelLearner:
    """A model of laptop size, fitted a little."""
    learner = ModelLearner.make(FAMILY, LAPTOP.dynamics, LAPTOP.fit, torch.Generator().manual_seed(0))
    start, generators = first_solution(learner, FAMILY.box.grid((1, 1)))
    learner.add(real_rollout(FAMILY, start, 50, generators))
    learner.fit(100)
    return learner


def first_solution(learner: ModelLearner, psi: Tensor) -> tuple[Solution, list[torch.Generator]]:
    """Random policies and the generators of M tasks."""
    generators = task_streams(0, Purpose.ADAPTATION, 1, FAMILY.box.to_unit(psi))
    policy = make_policy(FAMILY, LAPTOP)
    device = learner.model.weights[0].device
    return new_solution(learner.model, psi.to(device), policy, LAPTOP.virtual, generators), generators


def updates(learner: ModelLearner, psi: Tensor, config: EvaluationConfig, num: int) -> float:
    """Seconds of num TRPO updates of M tasks in one batch, after one to warm up."""
    virtual = evaluation_virtual(LAPTOP.virtual, config)
    solution, generators = first_solution(learner, psi)
    num_lanes = config.num_samples // FAMILY.horizon
    clock = CLOCK.get(learner.model.weights[0].device.type, time.perf_counter)
    for step in range(num + 1):
        if step == 1:
            begin = clock()
        solution, report = virtual_update(FAMILY, learner.model, solution, num_lanes, virtual, generators)
        report.returns.cpu()  # waits for a GPU
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer tasks and repetitions, ends within 45 seconds"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", default="cpu", help="where the model and the policies live")
    arguments = parser.parse_args()
    config = EvaluationConfig(num_stages=3)
    side, num, repeats = (4, 1, 2) if arguments.quick else (6, 2, 5)
    psi, rows = FAMILY.box.grid((side, side)), []

    def row(name: str, value: float, unit: str) -> None:
        load = os.getloadavg()[0]
        rows.append(
            {"name": name, "value": value, "unit": unit, "threads": torch.get_num_threads(), "load": load}
        )
        print(f"{name:64s} {value:9.3f} {unit}  (load {load:.1f})")

    learner = make_learner()
    learner.model.to(arguments.device)
    batch = statistics.median([updates(learner, psi, config, num) / num for _ in range(repeats)])
    alone = statistics.median(
        [sum(updates(learner, one, config, num) / num for one in psi.split(1)) for _ in range(repeats)]
    )
    row(f"zero-shot update, {len(psi)} tasks in a batch", batch, "s")
    row(f"zero-shot update, {len(psi)} tasks one by one", alone, "s")
    row("one by one / batch, zero-shot", alone / batch, "ratio")
    if arguments.device != "cpu":
        write(arguments.json, rows)
        return  # the fit of the models stays on the CPU
    few = psi[:: max(1, len(psi) // config.tasks_per_batch)][: config.tasks_per_batch]
    forked = learner.fork(task_streams(0, Purpose.ADAPTER, 1, FAMILY.box.to_unit(few)))
    single = learner.fork(task_streams(0, Purpose.ADAPTER, 1, FAMILY.box.to_unit(few[:1])))
    steps, seconds = (4 if arguments.quick else 20), {}
    for name, one in (("batch", forked), ("single", single)):
        one.fit(1)
        begin = time.process_time()
        one.fit(steps)
        seconds[name] = (time.process_time() - begin) / steps
    own = updates(forked, few, config, num) / num
    own_alone = len(few) * updates(single, few[:1], config, num) / num
    row(f"fit step of {len(few)} models in a batch", seconds["batch"], "s")
    row("one by one / batch, fit", len(few) * seconds["single"] / seconds["batch"], "ratio")
    row(f"update in {len(few)} models of their own in a batch", own, "s")
    row("one by one / batch, update in models of their own", own_alone / own, "ratio")
    share = 36 / CORES
    zero = config.num_updates * batch / len(psi) * share / 60
    iteration = config.num_stage_model_steps * seconds["batch"] + config.num_stage_updates * own
    stages = config.num_stages * config.num_stage_iterations * iteration / len(few) * share / 60
    row("one replicate, 36 tasks, n = 0, two cores (extrapolated)", zero, "min")
    row("one replicate, 36 tasks, n = 0..6000, two cores (extrapolated)", zero + stages, "min")
    write(arguments.json, rows)


def write(file: Path | None, rows: list[dict[str, object]]) -> None:
    """The rows as JSON, if a file is named."""
    if file:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
