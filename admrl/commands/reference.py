"""`admrl reference`"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from admrl.interruption import Interrupted
from admrl.parallel import Job, run_jobs
from admrl.reference import Reference
from admrl.reference_jobs import (
    check_reference,
    load_sac,
    read_candidates,
    sac_job,
    sac_settings,
    slbo_job,
    slbo_settings,
    training_folder,
)
from admrl.run_store import check_seed
from admrl.test_sets import TaskList, choose_tasks
from task_families.family import TaskFamily
from task_families.registry import make

if TYPE_CHECKING:
    from admrl.commands.options import ReferenceReturns


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    family: TaskFamily
    tasks: TaskList
    file: Path
    reference: Reference  # as it is
    jobs: list[Job]

    @property
    def work(self) -> Path:
        """The folder of the trainings."""
        return self.file.with_suffix(".work")

    def missing(self, method: str, seed: int, settings: dict[str, Any], num_stages: int) -> list[int]:
        """Tasks that this training has not reached that stage on."""
        reached: dict[tuple[float, ...], int] = {}
        for c in self.reference.candidates:
            if (c.method, c.seed, c.settings) == (method, seed, settings):
                reached[c.psi] = max(reached.get(c.psi, 0), c.stage)
        return [m for m, psi in enumerate(self.tasks.psi.tolist()) if reached.get(tuple(psi), 0) < num_stages]


def prepare(command: ReferenceReturns) -> Plan:
    """Everything checked; nothing is written.

    Raises:
        ValueError: impossible settings, a file of another family, no seed or method.
        ImportError: SAC is wanted and not installed.
    """
    if command.num_workers < 1:
        raise ValueError(f"--num-workers: expected 1 or more, got {command.num_workers}")
    for name, values in (("--methods", command.methods), ("--seeds", command.seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: expected at least one, each once; got {list(values)}")
    for seed in command.seeds:
        check_seed(seed)
    if "sac" in command.methods:
        load_sac()
    family = make(command.family, variant=command.variant)
    if family.psi_changes_dynamics and "slbo" in command.methods:
        raise ValueError(
            f"--methods slbo: the dynamics of {family.name} depend on the task, but SLBO learns one model for all; "
            "use --methods sac"
        )
    check_reference(command.config, family)
    tasks = choose_tasks(family, command.grid, command.tasks, allow_outside=command.allow_outside)
    file = command.out or Path(f"reference-{family.name}.json")
    if file.suffix != ".json":
        raise ValueError(f"--out: expected a file ending in .json, got {file}")
    if not file.parent.is_dir():
        raise ValueError(f"--out: the folder {file.parent} does not exist; make it first")
    reference = Reference(family.name, family.variant)
    if file.exists():
        reference = Reference.load(file)
        if (reference.family, reference.variant) != (family.name, family.variant):
            raise ValueError(
                f"--out {file}: the file is of {reference.family} ({reference.variant}), not of {family.name} "
                f"({family.variant}); choose another one"
            )
    plan = Plan(family, tasks, file, reference, [])
    left = read_candidates(plan.work)  # by an interruption
    plan = replace(plan, reference=reference.extended(left))
    plan.jobs.extend(_jobs(command, plan))
    return plan


def execute(command: ReferenceReturns, plan: Plan) -> None:
    """Train what is missing and write the file; what is finished is kept when interrupted."""
    console = Console(markup=False)
    if not plan.jobs:
        console.print("everything that was asked for is in the file already", highlight=False)
    try:
        if plan.jobs:
            run_jobs(plan.jobs, command.num_workers, console)
    except Interrupted as interrupt:
        reference = _merge(plan)
        raise Interrupted(
            f"{plan.file} holds {len(reference.candidates)} candidates; the same command goes on from there",
            interrupt.signum,
        ) from None
    reference = _merge(plan)
    returns, source = reference.optimal_returns(plan.family, plan.tasks.psi)
    methods = Counter(part.split()[0] for s in source for part in (s.split(" / ") * 2)[:2])
    console.print(
        f"{plan.file}, revision {reference.revision}: {len(reference.candidates)} candidates. A* of these "
        f"{len(returns)} tasks: mean {np.mean(returns):.0f}, from {np.min(returns):.0f} to {np.max(returns):.0f}, "
        "best from "
        + ", ".join(f"{name} ({count / 2:g} tasks)" for name, count in methods.most_common())
        + f"\nnext: admrl evaluate RUN... --reference {plan.file}",
        highlight=False,
    )


def _merge(plan: Plan) -> Reference:
    """The file with everything that the trainings have left."""
    reference = plan.reference.extended(read_candidates(plan.work))
    if not plan.file.exists() or reference.revision > Reference.load(plan.file).revision:
        reference.save(plan.file)
    return reference


def _jobs(command: ReferenceReturns, plan: Plan) -> list[Job]:
    """The trainings that the file does not hold yet, or not to their end."""
    config, tasks, jobs = command.config, plan.tasks, []
    family, unit = plan.family, plan.family.box.to_unit(plan.tasks.psi)
    for seed in command.seeds:
        if "slbo" in command.methods:
            # the tasks that lack it train together; a training that was begun is found again by its tasks
            missing = plan.missing("slbo", seed, slbo_settings(config), config.num_stages)
            if missing:
                part = replace(tasks, psi=tasks.psi[missing])
                settings = slbo_settings(config)
                folder = training_folder(plan.work, "slbo", seed, settings, unit[missing].tolist())
                num_left = config.num_stages - len(list(folder.glob("stage-*.json")))
                steps = num_left * (1 + config.num_iterations * config.num_updates)
                slbo = (family.name, family.variant, part, config, seed, folder)
                jobs.append(Job(f"SLBO seed {seed}", slbo_job, slbo, steps))
        if "sac" in command.methods:
            for m in plan.missing("sac", seed, sac_settings(config), 1):
                folder = training_folder(plan.work, "sac", seed, sac_settings(config), unit[m].tolist())
                sac = (family.name, family.variant, tasks, m, config, seed, folder)
                jobs.append(Job(f"SAC seed {seed}", sac_job, sac, 100))
    return jobs
