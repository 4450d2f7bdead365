"""`admrl reference`"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from admrl.commands.command import Command, at_least, check_own_family
from admrl.commands.flags import in_flags
from admrl.config.checks import check_config, check_seed
from admrl.config.evaluation import REFERENCE_METHODS, ReferenceConfig
from admrl.config.presets import Whole, round_counts
from admrl.number_text import counted, number
from admrl.storage.files import check_place
from dynamics.config import DynamicsConfig
from task_families.choices import check_name

if TYPE_CHECKING:
    from admrl.evaluation.reference_plan import Plan


@dataclass(frozen=True)
class ReferenceReturns(Command):
    """Compute or extend a file of reference returns A*: long training on the test tasks themselves.

    SLBO trains all tasks together on one model; TRPO and SAC (needs admrl[sac]) train each task alone in the
    simulator. Every candidate is kept with its method, seed and samples; the best counts. Interrupted, the same
    command goes on.
    """

    family: str = "hopper2d"
    """Task family, or your own: FILE.py:NAME, MODULE:NAME."""
    out: Path | None = None
    """The file; an existing one is extended. Default: reference-FAMILY.json."""
    tasks: str = "paper"
    """Tasks: "paper", "ood" or a file, as for `admrl evaluate`."""
    grid: tuple[int, ...] | None = None
    """A grid in place of --tasks."""
    allow_outside: bool = False
    """Accept tasks of a file that lie outside the box."""
    methods: tuple[str, ...] = ("slbo",)
    """slbo, trpo, sac, or several of them."""
    seeds: tuple[int, ...] = (0,)
    """One training for each (TRPO, SAC: for each task and seed)."""
    variant: str = "released"
    """The family's variant."""
    num_workers: int = 2
    """Processes, one thread each."""
    config: ReferenceConfig = ReferenceConfig()

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        at_least(self, num_workers=1)
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected at least one, each once; got {list(values)}")
        for method in self.methods:
            check_name("methods", method, REFERENCE_METHODS)
        for seed in self.seeds:
            check_seed(seed, "seeds")
        check_config(self.config)
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"out: expected a file ending in .json, got {self.out}")
        if self.out is not None:
            check_place(self.out)

    def prepare(self) -> Plan:
        """What is left to train."""
        from admrl.evaluation.reference_plan import plan_reference
        from admrl.evaluation.task_lists import choose_tasks
        from task_families.registry import make

        family = make(self.family, variant=self.variant)
        units = {
            "num_samples": Whole(family.horizon),
            "num_virtual_samples": Whole(family.horizon * DynamicsConfig().num_members),
            "trpo_samples": Whole(family.horizon),
        }
        config, notes = round_counts(self.config, ReferenceConfig(), units, f"horizon {family.horizon}")
        for note in notes:
            print(in_flags(note, type(self)))
        return plan_reference(
            family,
            choose_tasks(family, self.grid, self.tasks, allow_outside=self.allow_outside),
            config,
            methods=self.methods,
            seeds=self.seeds,
            file=self.out or Path(f"reference-{family.name}.json"),
        )

    def execute(self, plan: Plan) -> None:
        """Train what is missing and write the file; what is finished is kept when interrupted."""
        from admrl.evaluation.scoring import tasks_by_source
        from admrl.jobs.display import TextConsole
        from admrl.jobs.interruption import Interrupted
        from admrl.jobs.pool import run_jobs

        console = TextConsole()
        if not plan.jobs:
            console.print("everything that was asked for is in the file already")
        try:
            if plan.jobs:
                run_jobs(plan.jobs, self.num_workers, console)
        except Interrupted as interrupt:
            reference = plan.merge()
            raise Interrupted(
                f"{plan.file} holds {len(reference.candidates)} candidates; the same command goes on from there",
                interrupt.signum,
            ) from None
        reference = plan.merge()
        returns, source = reference.optimal_returns(plan.family, plan.tasks.psi)
        methods = tasks_by_source(source, called=lambda name: name.split()[0])
        mean, least, largest = (number(float(x)) for x in (returns.mean(), returns.min(), returns.max()))
        console.print(
            f"{plan.file}, revision {reference.revision}: {len(reference.candidates)} candidates. A* of these "
            f"{counted(len(returns), 'task')}: mean {mean}, from {least} to {largest}, "
            "best from "
            + ", ".join(f"{name} ({round(share, 2):g} tasks)" for name, share in methods.items())
            + f"\nnext: admrl evaluate RUN... {shlex.join(['--reference', str(plan.file)])}",
        )
