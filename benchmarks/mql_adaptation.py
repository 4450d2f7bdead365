"""What MQL's adaptation brings: A_n - A_0 of finished runs, task by task, and what each of its phases brings alone.

    admrl train-baseline mql --family point_robot --preset laptop --seed 0 --out runs/mql-0
    OMP_NUM_THREADS=1 python benchmarks/mql_adaptation.py runs/mql-0 runs/mql-1 runs/mql-2

Every run is scored on its own test tasks and on tasks drawn from the whole box, in episodes that no training saw. An
error is the standard error of the mean over tasks; *better* the share of tasks whose mean return rises.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluator import adapt_and_score
from admrl.mql.adapter import MqlAdapter
from admrl.mql.run import MqlRun

SEED, FRESH_SEED = 54_321, 99  # of the scoring, and of fresh tasks; no training has them
PHASES: dict[str, dict[str, Any]] = {
    "own data alone": {"num_main_steps": 0},
    "replay alone": {"num_snap_steps": 0},
    "constant lambda": {"proximity": "constant"},
}


def scored(
    run: MqlRun, psi: Tensor, num_samples: int, args: argparse.Namespace, **settings: Any
) -> np.ndarray:
    """(tasks, 2): A_0 and A_n, means over repetitions of the adaptation and episodes."""
    state = run.state
    config = replace(state.config, adapt=replace(state.config.adapt, **settings))
    evaluation = EvaluationConfig(
        num_policy_seeds=args.policy_seeds,
        num_episodes=args.episodes,
        num_stages=1,
        num_stage_samples=num_samples,
    )
    adapter = MqlAdapter(state.agent, state.replay, config)
    parts = [
        adapt_and_score(run.family, adapter, part, evaluation, SEED).episode_return for part in psi.split(20)
    ]
    return np.concatenate(parts, axis=1).mean((0, 3))


def line(name: str, table: np.ndarray) -> str:
    """A row of the answer."""
    gain = table[:, 1] - table[:, 0]
    error = gain.std(ddof=1) / len(gain) ** 0.5
    first, last = table.mean(0)
    return (
        f"{name:>40}  A_0 {first:7.2f}  A_n {last:7.2f}  gain {gain.mean():6.2f} +- {error:.2f}  "
        f"better {(gain > 0).mean():4.0%}"
    )


def main() -> None:
    """See the head of this page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of admrl train-baseline mql")
    parser.add_argument("--samples", type=int, nargs="+", help="n; default: that of the run's learning curve")
    parser.add_argument("--episodes", type=int, default=20, help="of each task and policy seed, for scoring")
    parser.add_argument("--policy-seeds", type=int, default=4, help="repetitions of the adaptation")
    parser.add_argument("--fresh", type=int, default=100, help="fresh tasks, uniform in the box; 0: none")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for path in args.runs:
        run = MqlRun.load(path)
        usual = run.info.config.num_test_samples
        print(f"{path}: {run.state.num_updates} TD3 steps, {run.state.real_samples} real samples")
        for n in args.samples or [usual]:
            print(line(f"test tasks, n = {n}", scored(run, run.state.test_psi, n, args)), flush=True)
        for name, settings in PHASES.items():
            table = scored(run, run.state.test_psi, usual, args, **settings)
            print(line(f"test tasks, n = {usual}, {name}", table), flush=True)
        if args.fresh:
            psi = run.family.box.fixed(args.fresh, FRESH_SEED)
            print(line(f"{args.fresh} fresh tasks, n = {usual}", scored(run, psi, usual, args)), flush=True)


if __name__ == "__main__":
    main()
