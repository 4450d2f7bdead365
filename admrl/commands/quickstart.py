"""`admrl quickstart`"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from admrl.commands.command import Command, at_least
from admrl.config.checks import check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.training.run import Run

SELECTORS = ("adversarial", "uniform")
SMOKE_EVALUATION = EvaluationConfig(
    num_episodes=4, num_updates=2, num_samples=800, num_reference_stages=1, num_reference_updates=2
)


@dataclass(frozen=True)
class Quickstart(Command):
    """Adversarial and uniform meta-training on Hopper2D, and one figure with the gaps of both.

    Trains twice with equal real budgets, the same seed and the same initial policies, evaluates both on a common
    grid of tasks, prints a table and draws quickstart.png. Real MuJoCo; about 10 minutes on two cores.
    """

    out: Path = Path("quickstart")
    """Folder for the two runs, the tables and the figure; must not exist or be empty."""
    seed: int = 0
    """Seed of both trainings and of the evaluation."""
    grid: tuple[int, int] = (4, 4)
    """Tasks per task parameter on the evaluation grid."""
    preset: str = "laptop"
    """smoke (seconds, proves the installation), laptop or paper (hours)."""
    num_workers: int = 2
    """Processes, one thread each."""

    def check(self) -> None:
        """See `Command`."""
        check_name("preset", self.preset, tuple(PRESETS))
        at_least(self, num_workers=1)
        check_seed(self.seed)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out: {self.out} is not empty; nothing was changed. Choose another `out`")
        if min(self.grid) < 2:
            raise ValueError(f"grid: expected at least 2 2, got {' '.join(map(str, self.grid))}")

    def prepare(self) -> list[Run]:
        """The two runs; their folders exist afterwards."""
        from admrl.training.run import prepare_run

        return [
            prepare_run(
                self.out / selector,
                family="hopper2d",
                variant="released",
                selector=selector,
                preset=self.preset,
                seed=self.seed,
                config=PRESETS[self.preset],
            )
            for selector in SELECTORS
        ]

    def execute(self, runs: list[Run]) -> None:
        """Train both, evaluate both, print the table, draw the figure."""
        from rich.console import Console

        from admrl.jobs.interruption import Interrupted

        console, started = Console(markup=False), time.monotonic()
        try:
            self._train(runs, console)
            figure = self._evaluate(runs, console)
        except Interrupted as interrupt:
            folders = " ".join(str(run.path) for run in runs)
            raise Interrupted(
                f"everything is saved. Continue by hand: admrl train --resume {runs[0].path}, "
                f"the same for {runs[1].path}, then: admrl evaluate {folders} --grid {' '.join(map(str, self.grid))}",
                interrupt.signum,
            ) from None
        minutes = (time.monotonic() - started) / 60
        console.print(f"wrote {figure} after {minutes:.1f} minutes", highlight=False)

    def _train(self, runs: list[Run], console: Console) -> None:
        from admrl.jobs.pool import Job, num_cores, run_jobs
        from admrl.training.run import train_job

        if num_cores() < self.num_workers:
            console.print(
                f"{self.num_workers} workers on {num_cores()} core(s): this will take longer", style="yellow"
            )
        console.print("1/2 meta-training, equal budgets, the same seed and initial policies", highlight=False)
        jobs = [Job(r.info.selector, train_job, (r.path,), r.steps_left, saves_itself=True) for r in runs]
        run_jobs(jobs, self.num_workers, console)

    def _evaluate(self, runs: list[Run], console: Console) -> Path:
        from admrl.commands.gap_printing import print_notes, print_tables
        from admrl.evaluation.evaluate_runs import check_runs
        from admrl.evaluation.parallel import evaluate_in_parallel, lock_runs
        from admrl.reports.heatmap import plot_gap_heatmap
        from admrl.run_kinds import load_any_run
        from admrl.training.run import load_run

        config = EvaluationConfig() if self.preset != "smoke" else SMOKE_EVALUATION
        trained = [load_run(run.path) for run in runs]
        tasks = check_runs(trained, self.grid, config)
        console.print(
            f"2/2 evaluation on {len(tasks.psi)} tasks, {config.num_policy_seeds} policies each",
            highlight=False,
        )
        lock_runs(trained)
        tables = evaluate_in_parallel(
            trained, tasks, config, self.seed, self.num_workers, console, name=tasks.name, load=load_any_run
        )
        print_tables(tables, console)
        print_notes(tables, console)
        figure = self.out / "quickstart.png"
        plot_gap_heatmap(tables, figure)
        return figure
