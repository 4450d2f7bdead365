"""What tells, without an oracle, where the gap is large? Rank correlations over held-out tasks.

    OMP_NUM_THREADS=1 python benchmarks/screening.py RUN... [--name TABLE] [--part model] [--json FILE]

RUN: finished runs that `admrl evaluate` has judged. Their tasks are the candidates here, and their gaps, or the part
of them that `admrl evaluate --decompose` measured (mean over policy seeds), the truth. Every run screens them as
`admrl train --selector screened` does, and scores them in several ways:

    -return          minus the policy's return in the model (`--config.search.screen-by return`)
    disagreement     spread + optimism over the members (`--config.search.screen-by disagreement`)
    spread, optimism its parts, see `admrl.training.screening`
    regret           what the best of all candidates' policies gets in the model for this task, minus its own
    |model - real|   return in the model against one real episode of the same policy
    model - real     the same with its sign, of two episodes and of all
    hindsight        best return of a stored policy under the task (`admrl.solving.hindsight`) minus the real return
    -real            minus the real return
    error, error 20  of the model along the policies' own real trajectories, after one step and twenty, in standard
                     deviations of the states
    distance         to the nearest task of the training
    from the centre  largest coordinate of the task in the unit box

and two ceilings, which know A*:

    own gap          A* (of a part: A_oracle) minus the real return of the screened policies (40 episodes): all that
                     short solves can say
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

from admrl.datasets.fitting import open_loop
from admrl.evaluation.gap_files import load_tables
from admrl.evaluation.gap_table import GapTable
from admrl.solving.hindsight import hindsight_bound, stored_returns
from admrl.solving.rollouts import episode_returns, real_rollout
from admrl.training.run import Run, load_run
from admrl.training.screening import Screening, member_returns, screen
from task_families.rollout import Rollout
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
    unit_psi = unit(psi.double())
    visited = torch.stack([torch.as_tensor(record.psi) for record in run.state.records])
    stored = hindsight_bound(stored_returns(run.family, run.learner.data[0], screening.psi)).value.numpy()
    model_return = screening.member_return.mean(-1).numpy()
    return {
        "-return": -model_return,
        "disagreement": (screening.spread + screening.optimism).numpy(),
        "spread": screening.spread.numpy(),
        "optimism": screening.optimism.numpy(),
        "regret": regret(run, screening),
        "|model - real|": np.abs(model_return - real[:, 0]),
        "model - real, 2": model_return - real[:, :2].mean(1),
        "model - real": model_return - real.mean(1),
        "hindsight, 2": stored - real[:, :2].mean(1),
        "hindsight": stored - real.mean(1),
        "-real, 2": -real[:, :2].mean(1),
        "-real": -real.mean(1),
        "error": own_error(run, rollout, 1),
        "error 20": own_error(run, rollout, 20),
        "distance": torch.cdist(unit_psi, unit(visited.double())).amin(1).numpy(),
        "from the centre": unit_psi.abs().amax(1).numpy(),
        "own gap": table.optimal_return - real.mean(1),
    }


def own_error(run: Run, rollout: Rollout, num_steps: int) -> np.ndarray:
    """(C,): root mean square error of the members' predictions num_steps ahead along real trajectories, open loop."""
    model, errors = run.learner.model, []
    whole = rollout.first_episode().all(-1)  # (C, N) lanes of one episode
    for begin in range(0, run.family.horizon - num_steps + 1, max(num_steps, 10)):
        steps = slice(begin, begin + num_steps)
        obs, act, end = (
            rollout.obs[:, :, begin],
            rollout.act[:, :, steps],
            rollout.next_obs[:, :, steps][:, :, -1],
        )
        predicted = open_loop(model, obs.flatten(0, 1), act.flatten(0, 1))[:, :, -1]  # (E, C N, S)
        error = (predicted - end.flatten(0, 1)) / model.obs_normalizer.std[0]
        errors.append(error.square().mean((0, 2)).view(whole.shape))
    square = torch.stack(errors).mean(0)
    return torch.where(whole, square, torch.nan).nanmean(1).sqrt().numpy()


def one_seed(gap: np.ndarray) -> float:
    """Mean rank correlation of one policy seed's gaps with the mean of the others': gap (C, R)."""
    rest = [np.delete(gap, r, axis=1).mean(1) for r in range(gap.shape[1])]
    return float(np.mean([rank_correlation(gap[:, r], other) for r, other in enumerate(rest)]))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, of the tasks with a score; a constant score says nothing: 0."""
    known = np.isfinite(x)
    x, y = x[known], y[known]
    return 0.0 if not len(x) or np.ptp(x) == 0 else float(spearmanr(x, y).statistic)


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
    parser.add_argument("--part", choices=["gap", "model", "optimisation"], default="gap", help="of the gaps")
    parser.add_argument("--json", type=Path, help="write the correlations of every run to this file")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found: dict[str, list[float]] = {}
    for path, table in zip(args.runs, load_tables(args.runs, args.name), strict=True):
        run, table = load_run(path), table.part(args.part)
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
