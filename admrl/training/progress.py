"""Where a round of tasks stands, as data: a run can stop after every step and go on from there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from admrl.config.training import MetaTrainConfig, SlboConfig, per_task
from admrl.solving.adaptation import num_slbo_steps
from admrl.solving.rollouts import moved
from admrl.solving.solution import Policies
from dynamics.ensemble import DynamicsEnsemble
from task_families.rollout import Rollout


class Phase(StrEnum):
    """The phases of a round, in order; the first round has no zero-shot phase."""

    ZERO_SHOT = "zero-shot"
    SLBO = "SLBO"
    GRADIENT = "task gradient"


@dataclass
class RoundProgress:
    """A round in progress: M = B tasks."""

    phase: Phase
    num_done: int  # steps of the phase that are done
    generators: list[torch.Generator]  # of each task
    solution: Policies  # theta_hat while it is made, then theta*
    theta_hat: Policies | None = None  # once the zero-shot phase is done
    model: DynamicsEnsemble | None = None  # that trained theta_hat, as it was before SLBO
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    """What line 9 needs: `model` and `hat` (theta_hat in the model and in the simulator), then `star` (theta*)."""

    def to(self, device: torch.device) -> RoundProgress:
        """The same on a device, where its policies are those of SLBO; the model itself is moved. Generators stay."""
        return replace(
            self,
            solution=moved(self.solution, device),
            theta_hat=None if self.theta_hat is None else moved(self.theta_hat, device),
            model=None if self.model is None else self.model.to(device),
            rollouts={name: rollout.to(device) for name, rollout in self.rollouts.items()},
        )


def phase_name(config: MetaTrainConfig, phase: Phase) -> str:
    """For messages: the second phase has the name of the learner."""
    return config.learner.upper() if phase is Phase.SLBO else str(phase)


def slbo_config(config: MetaTrainConfig, first: bool) -> SlboConfig:
    """SLBO of each task of a round: the first round has more stages."""
    slbo = per_task(config).slbo
    return replace(slbo, num_stages=config.num_first_stages) if first else slbo


def num_phase_steps(config: MetaTrainConfig, first: bool) -> dict[Phase, int]:
    """Calls of `Reporter.advance` in each phase of a round."""
    zero_shot = 0 if first else config.num_zero_shot * config.virtual.num_policy_updates
    return {
        Phase.ZERO_SHOT: zero_shot,
        Phase.SLBO: num_slbo_steps(slbo_config(config, first), config.virtual),
        Phase.GRADIENT: 1,
    }


def num_steps_left(config: MetaTrainConfig, num_tasks_done: int, progress: RoundProgress | None) -> int:
    """Steps that a run still has to do, for progress bars; the first round has one less, screening comes on top."""
    rounds = range(num_tasks_done, config.num_tasks, config.tasks_per_round)
    steps = sum(sum(num_phase_steps(config, i == 0).values()) for i in rounds)
    if progress is None:
        return steps
    of_round = num_phase_steps(config, num_tasks_done == 0)
    before = [phase for phase in Phase if list(Phase).index(phase) < list(Phase).index(progress.phase)]
    return steps - sum(of_round[phase] for phase in before) - progress.num_done
