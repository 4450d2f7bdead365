"""`admrl evaluate`"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, at_least, check_own_family
from admrl.commands.flags import in_flags
from admrl.commands.outside import create_all, fitted_to, named_by, open_together, with_inferred
from admrl.config.checks import check_config, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.search import OBJECTIVES, SCALES
from admrl.devices.names import AUTO, CPU, check_device_name
from admrl.number_text import counted
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.devices.choice import Choice
    from admrl.evaluation.parallel import Plan
    from admrl.evaluation.reference import Reference
    from admrl.evaluation.task_lists import TaskList
    from admrl.run_kinds import AnyRun
    from admrl.solving.sizes import Sizes

    Prepared = tuple[list[AnyRun], TaskList, Reference | None, Choice]


@dataclass(frozen=True)
class Evaluate(Command):
    """Sub-optimality gaps of runs on a set of tasks, against the best known returns.

    A_0: all policies are solved in the frozen models in batches, then scored in the simulator. With
    --config.num-stages 3 every task then adapts its own copy of the model: A_2000, A_4000, A_6000. Writes
    gaps/NAME.json into each run folder. A run that is not finished is evaluated at its newest checkpoint.
    Interrupted, the same command goes on after the last finished batch.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS", help_behavior_hint="")
    ] = ()
    """Run folders of one family; evaluated together they share one reference A*."""
    tasks: str = "paper"
    """Test tasks: "paper" (6 x 6, 4 x 4 x 3, or 20 on the boundary), "ood" (Ant2D, around the box), or a file."""
    grid: tuple[int, ...] | None = None
    """A grid in place of --tasks: tasks per task parameter, corners included, e.g. 6 6."""
    allow_outside: bool = False
    """Accept tasks of a file that lie outside the box."""
    reference: Path | None = None
    """A* from a file of `admrl reference`. Default: the best of the runs and a built-in reference run."""
    decompose: bool = False
    """Also say how much of each gap is the optimisation's and how much the model's: every policy is trained once
    more, by the same updates in the true simulator. Its samples are counted apart."""
    name: str | None = None
    """Name of the table, gaps/NAME.json. Default: the name of the set of tasks."""
    only_cells: bool = False
    """Solve and score what is missing of each run, and write no table: several machines that share the folders take
    some of the runs each, and then one of them all runs, without this option."""
    seed: int = 0
    """Seed of the evaluation, the same for all runs."""
    num_workers: int = 2
    """Processes, one thread each."""
    device: str = CPU
    """Where policies are solved and adapt: cpu, cuda, cuda:1, or auto, the faster one for these sizes. The simulator
    stays on the CPU, as do methods that know no other device. On a GPU take few workers and large batches."""
    objective: str = "worst"
    """worst, cvar, softmax or mean: one number for each method's gaps over the tasks, printed below the table."""
    alpha: float = 0.2
    """Share of tasks of the CVaR."""
    temperature: float = 0.5
    """Of the softmax, in standard deviations of the gaps."""
    scale: str = "absolute"
    """Gaps of that number: absolute (A* - A), or ratio (A* - A) / |A*|."""
    policy: tuple[str, ...] = ()
    """Policies from elsewhere beside the runs: a file of stable-baselines3 (.zip), ONNX (.onnx) or TorchScript (.pt),
    a function FILE.py:NAME, or a program with its arguments in quotes. NAME=... names it; see docs/baselines.md."""
    method: tuple[str, ...] = ()
    """Methods of your own beside the runs: FILE.py:NAME, called with the family, returns an Adapter or a function."""
    sees_psi: bool = False
    """These policies take psi behind the observation."""
    infer_psi: int | None = None
    """Evaluate the runs of admrl train once more without telling them psi: it is inferred from the rewards of so many
    real episodes of each task, which count as samples (needs --config.num-stages). The tables go into RUN-inferred-K,
    which works like a run in heatmap and compare."""
    family: str | None = None
    """The family of the runs, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name; or
    that of the policies, where no run is given."""
    accept_changed: bool = False
    """Open runs although the file of their family has changed since they were made."""
    config: EvaluationConfig = EvaluationConfig()

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        check_name("objective", self.objective, OBJECTIVES)
        check_name("scale", self.scale, SCALES)
        at_least(self, num_workers=1)
        check_device_name(self.device)
        if self.infer_psi is not None:
            at_least(self, infer_psi=1)
        check_seed(self.seed)
        check_config(self.config)
        if not (self.runs or self.policy or self.method):
            raise ValueError("runs: expected at least one run folder, or a `policy` or `method`, got none")
        if self.only_cells and (self.reference or self.name):
            raise ValueError(
                "only_cells: makes no table, which `reference` and `name` are for; leave these out"
            )
        if repeated := [str(path) for path, n in Counter(p.resolve() for p in self.runs).items() if n > 1]:
            raise ValueError(f"runs: {repeated[0]} is given twice; a run counts once")

    def prepare(self) -> Prepared:
        """The runs, locked, the tasks and the reference."""
        from admrl.evaluation.evaluate_runs import check_runs
        from admrl.evaluation.gap_files import check_same_settings, check_same_tasks, gaps_file
        from admrl.evaluation.parallel import lock_runs
        from admrl.evaluation.reference import Reference
        from admrl.evaluation.task_lists import choose_tasks
        from admrl.search.objective import Objective

        Objective(self.objective, self.alpha, self.temperature)
        runs = open_together(self.runs, self, self.accept_changed)
        runs = with_inferred(runs, self.infer_psi, named_by(self, self.accept_changed))
        chosen = choose_tasks(runs[0].family, self.grid, self.tasks, allow_outside=self.allow_outside)
        reference = None if self.reference is None else Reference.load(self.reference)
        config, _ = fitted_to(self.config, runs)
        judged = replace(config, num_reference_stages=0) if self.only_cells else config
        tasks = check_runs(runs, chosen, judged, reference, self.decompose)
        for run in () if self.only_cells else runs:
            file = gaps_file(run.path, self.name or tasks.name)
            check_same_settings(file, config, self.seed, self.decompose)
            check_same_tasks(file, run.family.box, tasks.psi)
        choice = self._choose(runs, len(tasks.psi), config)
        create_all(runs)
        lock_runs(runs)
        return runs, tasks, reference, choice

    def _choose(self, runs: list[AnyRun], num_tasks: int, config: EvaluationConfig) -> Choice:
        """The device, before anything is written; the runs whose methods can go there are moved."""
        from admrl.devices.choice import choose
        from admrl.devices.demand import num_bytes
        from admrl.solving.sizes import Spaces, evaluation_sizes
        from admrl.training.run import Run

        sources = [source for run in runs if run.can_move and isinstance(source := run.model_source, Run)]
        if not sources and self.device not in (CPU, AUTO):
            raise ValueError(
                f"device: got {self.device}, and none of these methods is solved in a model that could go there; "
                "leave it out"
            )

        def sizes() -> Sizes:
            found = [
                evaluation_sizes(
                    source.info.config,
                    config,
                    num_tasks,
                    len(source.learner.data[0]),
                    Spaces.of(source.family),
                    self.reference is not None,
                )
                for source in sources
            ]
            return max(found, key=num_bytes)

        choice = choose(self.device if sources else CPU, sizes, self.num_workers)
        for run in runs:
            run.move_to(choice.device)
        return choice

    def execute(self, prepared: Prepared) -> None:
        """Evaluate, print a table, write one gap table into every run folder; or solve the cells alone."""
        from admrl.jobs.display import TextConsole
        from admrl.jobs.interruption import Interrupted

        (runs, _, _, choice), console = prepared, TextConsole()
        config, notes = fitted_to(self.config, runs)
        for note in notes:
            console.print(in_flags(note, type(self)))
        self._say_where(runs, choice, console)
        for run in runs:
            if not run.finished:
                console.print(
                    f"{run.path}: evaluated as it is at its newest checkpoint: {run.position}; it goes on with: "
                    f"{run.resume_command}",
                    style="yellow",
                )
        try:
            if self.only_cells:
                self._solve(prepared, config, console)
            else:
                self._make_tables(prepared, config, console)
        except Interrupted as interrupt:
            raise Interrupted(
                "every finished batch of tasks is saved; the same command goes on from there",
                interrupt.signum,
            ) from None

    def _solve(self, prepared: Prepared, config: EvaluationConfig, console: Console) -> None:
        from admrl.evaluation.parallel import solve_cells

        runs, tasks, _, choice = prepared
        solve_cells(runs, self._plan(tasks, config, choice), self.num_workers, console)
        console.print(
            f"{counted(len(runs), 'run')}: all cells are there; next, with all runs that are compared: the same "
            "without --only-cells"
        )

    def _make_tables(self, prepared: Prepared, config: EvaluationConfig, console: Console) -> None:
        from admrl.commands.gap_printing import print_notes, print_objective, print_parts, print_tables
        from admrl.evaluation.parallel import evaluate_in_parallel
        from admrl.search.objective import Objective

        runs, tasks, reference, choice = prepared
        name = self.name or tasks.name
        tables = evaluate_in_parallel(
            runs,
            self._plan(tasks, config, choice),
            self.num_workers,
            console,
            name=name,
            reference=reference,
        )
        objective = Objective(self.objective, self.alpha, self.temperature)
        for j in range(len(tables[0].num_samples)):
            print_tables(tables, console, j)
            print_objective(tables, objective, self.scale, console, j)
            if self.decompose:
                print_parts(tables, console, j)
        print_notes(tables, console)
        words = ["admrl", "compare", *(str(run.path) for run in runs), "--tasks", name, "--out", "report"]
        console.print(f"wrote {name} into each run; next: {shlex.join(words)}")

    def _plan(self, tasks: TaskList, config: EvaluationConfig, choice: Choice) -> Plan:
        from admrl.evaluation.parallel import Plan
        from admrl.run_kinds import load_on

        load = partial(load_on, named=named_by(self, self.accept_changed), device=str(choice.device))
        return Plan(tasks, config, self.seed, load, self.decompose)

    def _say_where(self, runs: list[AnyRun], choice: Choice, console: Console) -> None:
        """The device, where it is not the CPU, or was chosen; and who stays on the CPU."""
        from admrl.devices.names import described

        if choice.note is not None:
            console.print(choice.note)
        if choice.device.type == CPU:
            return
        console.print(f"policies are solved on {choice.device}, {described(choice.device)}")
        for run in runs:
            if not run.can_move:
                console.print(f"{run.path}: stays on the CPU, as its method knows no other device")
