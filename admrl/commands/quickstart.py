"""`admrl quickstart`"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from admrl.commands.evaluate import evaluate_in_parallel, lock_runs, print_notes, print_tables
from admrl.config import PRESETS, EvaluationConfig
from admrl.evaluate_runs import check_runs
from admrl.figures import plot_gap_heatmap
from admrl.interruption import Interrupted
from admrl.parallel import Job, num_cores, run_jobs
from admrl.run_store import Run, load_run
from admrl.train_run import num_train_steps, prepare_run, train_job

if TYPE_CHECKING:
    from admrl.commands.options import Quickstart

SELECTORS = ("adversarial", "uniform")
SMOKE_EVALUATION = EvaluationConfig(
    num_episodes=4, num_updates=2, num_samples=800, num_reference_stages=1, num_reference_updates=2
)


def prepare(command: Quickstart) -> list[Run]:
    """The two runs, checked; their folders exist afterwards.

    Raises:
        ValueError, ImportError: see `prepare_run`; nothing is written if anything is wrong.
    """
    if command.num_workers < 1:
        raise ValueError(f"--num-workers: expected 1 or more, got {command.num_workers}")
    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise ValueError(f"--out {command.out} is not empty; nothing was changed. Choose another --out")
    if min(command.grid) < 2:
        raise ValueError(f"--grid: expected at least 2 2, got {' '.join(map(str, command.grid))}")
    return [
        prepare_run(
            command.out / selector,
            family="hopper2d",
            variant="released",
            selector=selector,
            preset=command.preset,
            seed=command.seed,
            config=PRESETS[command.preset],
        )
        for selector in SELECTORS
    ]


def execute(command: Quickstart, runs: list[Run]) -> None:
    """Train both, evaluate both, print the table, draw the figure."""
    try:
        _run(command, runs, Console(markup=False))
    except Interrupted as interrupt:
        folders = " ".join(str(run.path) for run in runs)
        raise Interrupted(
            f"everything is saved. Continue by hand: admrl train --resume {runs[0].path}, "
            f"the same for {runs[1].path}, then: admrl evaluate {folders} --grid {' '.join(map(str, command.grid))}",
            interrupt.signum,
        ) from None


def _run(command: Quickstart, runs: list[Run], console: Console) -> None:
    started = time.monotonic()
    if num_cores() < command.num_workers:
        console.print(
            f"{command.num_workers} workers on {num_cores()} core(s): this will take longer", style="yellow"
        )
    config = EvaluationConfig() if command.preset != "smoke" else SMOKE_EVALUATION
    tasks = check_runs(runs, command.grid, config)
    console.print("1/2 meta-training, equal budgets, the same seed and initial policies", highlight=False)
    run_jobs(
        [
            Job(r.info.selector, train_job, (r.path,), num_train_steps(r.info.config), saves_itself=True)
            for r in runs
        ],
        command.num_workers,
        console,
    )
    console.print(
        f"2/2 evaluation on {len(tasks.psi)} tasks, {config.num_policy_seeds} policies each", highlight=False
    )
    runs = [load_run(run.path) for run in runs]
    lock_runs(runs)
    tables = evaluate_in_parallel(
        runs, tasks, config, command.seed, command.num_workers, console, name=tasks.name
    )
    print_tables(tables, console)
    print_notes(tables, console)
    figure = command.out / "quickstart.png"
    plot_gap_heatmap(tables, figure)
    minutes = (time.monotonic() - started) / 60
    console.print(f"wrote {figure} after {minutes:.1f} minutes", highlight=False)
