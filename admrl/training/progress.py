"""Where a task of the meta-training stands, as data: a run can stop after every step and go on from there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from admrl.config.training import MetaTrainConfig, SlboConfig
from admrl.solving.adaptation import num_slbo_steps
from admrl.solving.solution import Solution
from dynamics.ensemble import DynamicsEnsemble
from task_families.rollout import Rollout


class Phase(StrEnum):
    """The phases of a task, in order; the first task has no zero-shot phase."""

    ZERO_SHOT = "zero-shot"
    SLBO = "SLBO"
    GRADIENT = "task gradient"


@dataclass
class TaskProgress:
    """A task in progress (M = 1)."""

    phase: Phase
    num_done: int  # steps of the phase that are done
    generator: torch.Generator  # of this task
    solution: Solution  # theta_hat while it is made, then theta*
    theta_hat: Solution | None = None  # once the zero-shot phase is done
    model: DynamicsEnsemble | None = None  # that trained theta_hat, as it was before SLBO
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    """What line 9 needs: `model` and `hat` (theta_hat in the model and in the simulator), then `star` (theta*)."""


def slbo_config(config: MetaTrainConfig, index: int) -> SlboConfig:
    """SLBO of a task: the first one has more stages."""
    return config.slbo if index else replace(config.slbo, num_stages=config.num_first_stages)


def num_phase_steps(config: MetaTrainConfig, index: int) -> dict[Phase, int]:
    """Calls of `Reporter.advance` in each phase of a task."""
    zero_shot = config.num_zero_shot * config.virtual.num_policy_updates if index else 0
    return {
        Phase.ZERO_SHOT: zero_shot,
        Phase.SLBO: num_slbo_steps(slbo_config(config, index), config.virtual),
        Phase.GRADIENT: 1,
    }


def num_steps_left(config: MetaTrainConfig, num_tasks_done: int, progress: TaskProgress | None) -> int:
    """Steps that a run still has to do, for progress bars; the first task has one less, screening comes on top."""
    steps = sum(sum(num_phase_steps(config, i).values()) for i in range(num_tasks_done, config.num_tasks))
    if progress is None:
        return steps
    of_task = num_phase_steps(config, num_tasks_done)
    before = [phase for phase in Phase if list(Phase).index(phase) < list(Phase).index(progress.phase)]
    return steps - sum(of_task[phase] for phase in before) - progress.num_done
