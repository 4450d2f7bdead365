"""The tasks that a method trains on, and those of its learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.streams import Purpose, stream
from task_families.family import TaskFamily
from task_families.task_space import TaskSet, TaskSpace

TASK_SEED = 1337  # of the published task sets, and of those that are drawn here


def task_sets(family: TaskFamily, config: Any) -> tuple[Tensor, Tensor]:
    """Training and test tasks (n, k): published ones where there are, at most as many as configured (`num_tasks`,
    `num_test_tasks`)."""
    published = family.published_tasks(TASK_SEED)
    if published is None:
        drawn = family.box.fixed(config.num_tasks + config.num_test_tasks, TASK_SEED)
        return drawn[: config.num_tasks], drawn[config.num_tasks :]
    train, test = published
    return train[: config.num_tasks], test[: config.num_test_tasks]


def test_tasks(family: TaskFamily, num_tasks: int, seed: int = TASK_SEED) -> Tensor:
    """Tasks (K, k) of a learning curve: the published test tasks, at most so many, or drawn once, by a seed."""
    published = family.published_tasks(TASK_SEED)
    psi = family.box.fixed(num_tasks, seed) if published is None else published[1]
    return psi[:num_tasks]


test_tasks.__test__ = False  # type: ignore[attr-defined]  # not one of pytest's


@dataclass(frozen=True, eq=False)
class TrainingTasks:
    """What a training draws its tasks from: the family's set without a withheld box, or some tasks of it."""

    space: TaskSpace | TaskSet
    drawn: Tensor | None
    """(N, k), the tasks of a training that has so many."""

    @staticmethod
    def make(family: TaskFamily, config: Any, seed: int) -> TrainingTasks:
        """By `num_tasks` and `withheld` of a config that `admrl.config.checks.check_training_tasks` has seen."""
        space: TaskSpace | TaskSet = family.box
        if config.withheld:
            low, high = torch.tensor(config.withheld, dtype=torch.float64).view(2, -1)
            space = family.box.restrict(lambda psi: ~((psi >= low) & (psi <= high)).all(-1))
        if config.num_tasks is None:
            return TrainingTasks(space, None)
        return TrainingTasks(
            space, space.sample(config.num_tasks, "uniform", stream(seed, Purpose.TRAINING_TASKS))
        )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n tasks (n, k), uniform and independent."""
        if self.drawn is None:
            return self.space.sample(n, "uniform", generator)
        return self.drawn[torch.randint(len(self.drawn), (n,), generator=generator)]
