"""Does what the ensemble disagrees on tell where the gap is large? Rank correlations over held-out tasks.

    OMP_NUM_THREADS=1 python benchmarks/screening.py RUN... [--name TABLE] [--json FILE]

RUN: finished runs that `admrl evaluate` has judged. Their tasks are the candidates here, and their gaps (mean over
policy seeds) the truth. Every run screens them as `admrl train --selector screened` does, and scores them in several
ways:

    -return          minus the policy's return in the model (`--config.search.screen-by return`)
    disagreement     spread + optimism over the members (`--config.search.screen-by disagreement`)
    spread, optimism its parts, see `admrl.training.screening`
    regret           what the best of all candidates' policies gets in the model for this task, minus its own
    |model - real|   return in the model against one real episode of the same policy
    distance         to the nearest task of the training

and two ceilings, which know A*:

    own gap          A* minus the real return of the screened policies (40 episodes): all that short solves can say
    one seed         the gap of one policy seed of the table against the mean of the others: what a full solve says
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from admrl.evaluation.gap_files import load_tables
from admrl.evaluation.gap_table import GapTable
from admrl.solving.rollouts import episode_returns, real_rollout
from admrl.training.run import Run, load_run
from admrl.training.screening import Screening, member_returns, screen
from task_families.simulator import spawn_generators

SEED = 54_321  # no training has it
NUM_EPISODES = 40


def regret(run: Run, screening: Screening) -> np.ndarray:
    """(C,): the best candidate's policy under each task's reward, in the model, minus the task's own."""
    psi, num = screening.psi, len(screening.psi)
    rows = []
    for c in range(num):
        same = psi[c : c + 1].expand(num, -1)  # one task's reward for all policies
        rows.append(member_returns(run.family, same, screening.rollouts).mean(-1))
    returns = torch.stack(rows)  # (task, policy)
    return (returns.amax(1) - returns.diagonal()).numpy()


def scores(run: Run, table: GapTable) -> dict[str, np.ndarray]:
    """Scores (C,) of the table's tasks by name."""
    psi = torch.as_tensor(table.psi)
    generators = spawn_generators(torch.Generator().manual_seed(SEED), len(psi))
    screening = screen(run.family, run.state.learner.model, run.policy, psi, run.info.config, generators)
    rollout = real_rollout(run.family, screening.solution, NUM_EPISODES, generators)
    real = episode_returns(run.family, screening.psi, rollout).numpy()
    unit = run.family.box.to_unit
    visited = torch.stack([torch.as_tensor(record.psi) for record in run.state.records])
    model_return = screening.member_return.mean(-1).numpy()
    return {
        "-return": -model_return,
        "disagreement": (screening.spread + screening.optimism).numpy(),
        "spread": screening.spread.numpy(),
        "optimism": screening.optimism.numpy(),
        "regret": regret(run, screening),
        "|model - real|": np.abs(model_return - real[:, 0]),
        "distance": torch.cdist(unit(psi.double()), unit(visited.double())).amin(1).numpy(),
        "own gap": table.optimal_return - real.mean(1),
    }


def one_seed(gap: np.ndarray) -> float:
    """Mean rank correlation of one policy seed's gaps with the mean of the others': gap (C, R)."""
    rest = [np.delete(gap, r, axis=1).mean(1) for r in range(gap.shape[1])]
    return float(np.mean([rank_correlation(gap[:, r], other) for r, other in enumerate(rest)]))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; a constant score says nothing: 0."""
    return 0.0 if np.ptp(x) == 0 else float(spearmanr(x, y).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of admrl train, evaluated")
    parser.add_argument("--name", help="of the gap tables; needed if a run has several")
    parser.add_argument(
        "--updates", type=int, help="TRPO updates of a candidate (default: the run's settings)"
    )
    parser.add_argument("--samples", type=int, help="virtual steps per update (default: the run's settings)")
    parser.add_argument("--json", type=Path, help="write the correlations of every run to this file")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found: dict[str, list[float]] = {}
    for path, table in zip(args.runs, load_tables(args.runs, args.name), strict=True):
        run = load_run(path)
        search = run.info.config.search
        search = replace(
            search,
            num_screen_updates=args.updates or search.num_screen_updates,
            num_screen_samples=args.samples or search.num_screen_samples,
        )
        run.info = replace(run.info, config=replace(run.info.config, search=search))
        gap = table.gap[:, :, 0].T  # (C, R)
        for name, score in scores(run, table).items():
            found.setdefault(name, []).append(rank_correlation(score, gap.mean(1)))
        found.setdefault("one seed", []).append(one_seed(gap))
        print(
            f"{path.name}: " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in found.items()),
            flush=True,
        )
    print(f"\n{len(args.runs)} runs, {len(table.psi)} tasks: median (lower quartile to upper quartile)")
    for name, values in found.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"{name:>16}  {middle:5.2f}  ({low:.2f} to {high:.2f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
