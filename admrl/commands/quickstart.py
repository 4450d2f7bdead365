"""`admrl quickstart`"""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from admrl.commands.command import Command, at_least, check_own_family
from admrl.commands.flags import in_flags
from admrl.commands.train import Train
from admrl.config.checks import check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS, fitted, fitted_evaluation, preset_config
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.config.training import MetaTrainConfig
    from admrl.training.run import Run

SELECTORS = ("population", "uniform")
# of a training at laptop size; docs/performance.md says what they do
STEPS_PER_LANE, NUM_MODEL_STEPS = 40, 50
ROUND_SAMPLES = 2400  # virtual steps per update and task, where a round has several tasks
EVALUATIONS = {
    "smoke": EvaluationConfig(
        num_episodes=4, num_updates=2, num_samples=800, num_reference_stages=1, num_reference_updates=2
    ),
    "laptop": EvaluationConfig(num_episodes=20, num_updates=60, num_reference_stages=1),
    "paper": EvaluationConfig(),
}


@dataclass(frozen=True)
class Quickstart(Command):
    """Meta-training on chosen and on uniform tasks of a family, by default Hopper2D, and one figure with both gaps.

    Trains twice with equal real budgets and the same seed, evaluates both on a common grid of tasks, prints a table
    and draws quickstart.png. Real MuJoCo; 7 minutes on two idle cores.
    """

    out: Path = Path("quickstart")
    """Folder for the two runs, the tables and the figure; must not exist or be empty."""
    family: str = "hopper2d"
    """Task family, or your own: FILE.py:NAME, MODULE:NAME, or a name that an installed package has registered."""
    seed: int = 0
    """Seed of both trainings and of the evaluation."""
    grid: tuple[int, ...] | None = None
    """Tasks per task parameter on the evaluation grid, e.g. 4 4. Default: 4 of each, 12 of a single one."""
    preset: str = "laptop"
    """smoke (seconds, proves the installation), laptop or paper (hours). At laptop size the model is fitted half as
    much as by admrl train, lanes go on between updates, and the evaluation is shorter."""
    num_workers: int = 2
    """Processes, one thread each."""

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        check_name("preset", self.preset, tuple(PRESETS))
        at_least(self, num_workers=1)
        check_seed(self.seed)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out: {self.out} is not empty; nothing was changed. Choose another `out`")
        if self.grid is not None and min(self.grid, default=0) < 2:
            raise ValueError(f"grid: expected at least 2 2, got {' '.join(map(str, self.grid))}")

    def prepare(self) -> list[Run]:
        """The two runs; their folders exist afterwards."""
        from admrl.runs.families import new_family
        from admrl.training.run import prepare_run

        family = new_family(self.family, "released")
        family.box.grid(self._grid(family.box.size))  # refuses one that does not fit, before any training
        sizes = {selector: training_sizes(self.preset, family.horizon, selector) for selector in SELECTORS}
        runs = [
            prepare_run(
                self.out / selector,
                family=family,
                variant="released",
                selector=selector,
                preset=self.preset,
                seed=self.seed,
                config=config,
            )
            for selector, (config, _) in sizes.items()
        ]
        for run in runs:
            run.notes += [in_flags(note, Train) for note in sizes[run.info.selector][1]]
        return runs

    def _grid(self, num_parameters: int) -> tuple[int, ...]:
        """The evaluation grid of so many task parameters."""
        return self.grid or ((12,) if num_parameters == 1 else (4,) * num_parameters)

    def execute(self, runs: list[Run]) -> None:
        """Train both, evaluate both, print the table, draw the figure."""
        from admrl.jobs.display import TextConsole
        from admrl.jobs.interruption import Interrupted
        from admrl.runs.families import family_words

        console, started = TextConsole(), time.monotonic()
        try:
            self._train(runs, console)
            figure = self._evaluate(runs, console)
        except Interrupted as interrupt:
            evaluate = ["admrl", "evaluate", *(str(run.path) for run in runs)]
            evaluate += [*family_words(runs[0].info.source), *self._evaluation_words(runs[0])]
            steps = [*(run.resume_command for run in runs), shlex.join(evaluate)]
            raise Interrupted(
                "everything is saved. Continue by hand:\n  " + "\n  ".join(steps), interrupt.signum
            ) from None
        minutes = (time.monotonic() - started) / 60
        console.print(f"wrote {figure} after {minutes:.1f} minutes")

    def _train(self, runs: list[Run], console: Console) -> None:
        from admrl.jobs.pool import Job, num_cores, run_jobs
        from admrl.runs.families import NamedFamily
        from admrl.training.run import train_job

        if num_cores() < self.num_workers:
            console.print(
                f"{self.num_workers} workers on {num_cores()} core(s): this will take longer", style="yellow"
            )
        for run in runs:
            for note in run.notes:
                console.print(f"{run.info.selector}: {note}")
        console.print("1/2 meta-training, equal real budgets, the same seed")
        named = NamedFamily(self.family if runs[0].info.source else None)
        jobs = [
            Job(r.info.selector, train_job, (r.path, named), r.steps_left, saves_itself=True) for r in runs
        ]
        run_jobs(jobs, self.num_workers, console)

    def _evaluation(self, run: Run) -> tuple[EvaluationConfig, list[str]]:
        """The sizes of the evaluation, in whole episodes of the run's family; and what was changed, for the user."""
        default = EVALUATIONS[self.preset]
        return fitted_evaluation(default, run.family.horizon, run.info.config.dynamics.num_members, default)

    def _evaluation_words(self, run: Run) -> list[str]:
        """The same evaluation as options of `admrl evaluate`."""
        words = ["--grid", *map(str, self._grid(run.family.box.size)), "--seed", str(self.seed)]
        usual = asdict(EvaluationConfig())
        for name, value in asdict(self._evaluation(run)[0]).items():
            if value != usual[name]:
                words += [f"--config.{name.replace('_', '-')}", str(value)]
        return words

    def _evaluate(self, runs: list[Run], console: Console) -> Path:
        from admrl.commands.gap_printing import print_difference, print_notes, print_tables
        from admrl.evaluation.evaluate_runs import check_runs
        from admrl.evaluation.parallel import Plan, evaluate_in_parallel, lock_runs
        from admrl.reports.heatmap import plot_gap_heatmap
        from admrl.run_kinds import load_any_run
        from admrl.runs.families import NamedFamily

        load = partial(load_any_run, named=NamedFamily(self.family if runs[0].info.source else None))
        trained = [load(run.path) for run in runs]
        config, notes = self._evaluation(runs[0])
        for note in notes:
            console.print(note)
        tasks = check_runs(trained, self._grid(runs[0].family.box.size), config)
        console.print(
            f"2/2 evaluation on {len(tasks.psi)} tasks, {config.num_policy_seeds} policies each",
        )
        lock_runs(trained)
        plan = Plan(tasks, config, self.seed, load)
        tables = evaluate_in_parallel(trained, plan, self.num_workers, console, name=tasks.name)
        print_tables(tables, console)
        print_difference(tables[0], tables[1], console)
        print_notes(tables, console)
        figure = self.out / "quickstart.png"
        plot_gap_heatmap(tables, figure)
        return figure


def training_sizes(preset: str, horizon: int, selector: str) -> tuple[MetaTrainConfig, list[str]]:
    """The preset for a horizon, smaller at laptop size, with lanes that go on; what was rounded, for the user."""
    config = preset_config(preset, selector)
    if preset == "laptop":
        num_samples = ROUND_SAMPLES if config.tasks_per_round > 1 else config.virtual.num_samples
        virtual = replace(
            config.virtual,
            steps_per_lane=STEPS_PER_LANE,
            num_model_steps=NUM_MODEL_STEPS,
            num_samples=num_samples,
        )
        config = replace(config, virtual=virtual)
    return fitted(config, config, horizon, preset)
