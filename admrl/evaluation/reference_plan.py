"""What is left to train for a file of reference returns, and what the trainings have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from admrl.config.evaluation import ReferenceConfig
from admrl.evaluation.reference import Candidate, Reference, read_candidates, training_folder
from admrl.evaluation.reference_sac import load_sac, sac_job, sac_settings
from admrl.evaluation.reference_training import (
    check_reference,
    slbo_settings,
    training_job,
    trpo_settings,
)
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.pool import Job
from admrl.runs.families import CODE, code_key
from task_families.family import TaskFamily
from task_families.registry import sendable

TASKS_PER_JOB = 8
"""Tasks of a TRPO training that one process updates together: a batch costs less than its tasks one by one."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    family: TaskFamily
    tasks: TaskList
    config: ReferenceConfig
    file: Path
    reference: Reference  # as it is, with what an interruption left
    jobs: list[Job]

    @property
    def work(self) -> Path:
        """The folder of the trainings."""
        return self.file.with_suffix(".work")

    def merge(self) -> Reference:
        """The file with everything that the trainings have left; written if that is news."""
        reference = self.reference.extended(self.left())
        if not self.file.exists() or reference.revision > Reference.load(self.file).revision:
            reference.save(self.file)
        return reference

    def left(self) -> list[Candidate]:
        """What trainings left in their folders; not those of a family from outside whose code has changed since."""
        code = code_key(self.family).get(CODE)
        return [c for c in read_candidates(self.work) if c.settings.get(CODE) == code]

    def slbo_jobs(self, seed: int) -> list[Job]:
        """The tasks that lack it train together; a training that was begun is found again by its tasks."""
        config, settings = self.config, slbo_settings(self.config, self.family)
        missing = self._missing("slbo", seed, settings, config.num_stages)
        if not missing:
            return []
        part = replace(self.tasks, psi=self.tasks.psi[missing])
        unit = self.family.box.to_unit(part.psi)
        folder = training_folder(self.work, "slbo", seed, settings, unit.tolist())
        num_left = config.num_stages - len(list(folder.glob("stage-*.json")))
        steps = num_left * (1 + config.num_iterations * config.num_updates)
        arguments = ("slbo", sendable(self.family), self.family.variant, part, config, seed, folder)
        return [Job(f"SLBO seed {seed}", training_job, arguments, steps)]

    def trpo_jobs(self, seed: int) -> list[Job]:
        """The tasks that lack it, some at a time."""
        config, settings = self.config, trpo_settings(self.config, self.family)
        missing, jobs = self._missing("trpo", seed, settings, config.trpo_stages), []
        for begin in range(0, len(missing), TASKS_PER_JOB):
            part = replace(self.tasks, psi=self.tasks.psi[missing[begin : begin + TASKS_PER_JOB]])
            unit = self.family.box.to_unit(part.psi)
            folder = training_folder(self.work, "trpo", seed, settings, unit.tolist())
            num_done = len(list(folder.glob("stage-*.json")))
            steps = (config.trpo_stages - num_done) * config.trpo_updates + (num_done == 0)
            arguments = ("trpo", sendable(self.family), self.family.variant, part, config, seed, folder)
            jobs.append(Job(f"TRPO seed {seed}", training_job, arguments, steps))
        return jobs

    def sac_jobs(self, seed: int) -> list[Job]:
        """A training for every task that lacks it."""
        config, tasks, settings, jobs = self.config, self.tasks, sac_settings(self.config, self.family), []
        unit = self.family.box.to_unit(tasks.psi)
        for m in self._missing("sac", seed, settings, 1):
            folder = training_folder(self.work, "sac", seed, settings, unit[m].tolist())
            arguments = (sendable(self.family), self.family.variant, tasks, m, config, seed, folder)
            jobs.append(Job(f"SAC seed {seed}", sac_job, arguments, 100))
        return jobs

    def _missing(self, method: str, seed: int, settings: dict[str, Any], num_stages: int) -> list[int]:
        """Tasks that this training has not reached that stage on."""
        reached: dict[tuple[float, ...], int] = {}
        for c in self.reference.candidates:
            if (c.method, c.seed, c.settings) == (method, seed, settings):
                reached[c.psi] = max(reached.get(c.psi, 0), c.stage)
        return [m for m, psi in enumerate(self.tasks.psi.tolist()) if reached.get(tuple(psi), 0) < num_stages]


def plan_reference(
    family: TaskFamily,
    tasks: TaskList,
    config: ReferenceConfig,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    file: Path,
) -> Plan:
    """Everything checked; nothing is written.

    Raises:
        ValueError: impossible settings, or a file of another family.
        ImportError: SAC is wanted and not installed.
    """
    if "sac" in methods:
        load_sac()
    if family.psi_changes_dynamics and "slbo" in methods:
        raise ValueError(
            f"methods: slbo learns one model for all tasks, but the dynamics of {family.name} depend on the task; "
            "use trpo or sac"
        )
    check_reference(config, family)
    reference = Reference(family.name, family.variant)
    if file.exists():
        reference = Reference.load(file)
        if (reference.family, reference.variant) != (family.name, family.variant):
            raise ValueError(
                f"out: {file} is of {reference.family} ({reference.variant}), not of {family.name} "
                f"({family.variant}); choose another one"
            )
        reference.check_code(family)
    plan = Plan(family, tasks, config, file, reference, [])
    plan = replace(plan, reference=reference.extended(plan.left()))  # left by an interruption
    for seed in seeds:
        if "slbo" in methods:
            plan.jobs.extend(plan.slbo_jobs(seed))
        if "trpo" in methods:
            plan.jobs.extend(plan.trpo_jobs(seed))
        if "sac" in methods:
            plan.jobs.extend(plan.sac_jobs(seed))
    return plan
