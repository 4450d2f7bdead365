"""Evidence: what the gradient of the gap of M tasks is estimated from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from admrl.config.training import TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient.score_function import Trajectories, trajectories, with_baseline
from admrl.solving.solution import Solution
from dynamics.ensemble import DynamicsEnsemble
from task_families.family import TaskFamily
from task_families.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Evidence:
    """The solutions of M tasks, rollouts by role, and the model that trained theta_hat."""

    family: TaskFamily
    theta_hat: Solution
    """Zero-shot: optimal in `model`."""
    theta_star: Solution
    """The SLBO solution of the same tasks."""
    hat_in_model: Rollout
    """Of theta_hat in the model that trained it."""
    hat_in_simulator: Rollout
    star_in_simulator: Rollout
    model: DynamicsEnsemble
    """As it was when it trained theta_hat (before SLBO)."""
    config: TaskGradientConfig
    virtual: VirtualTrainingConfig
    """The virtual training that made theta_hat: its trust region, its entropy bonus."""
    updated_model: DynamicsEnsemble | None = None
    """The model after SLBO; a control variate of every real return (`admrl.gradient.control_variate`). It biases
    nothing."""

    @property
    def theta(self) -> Tensor:
        """(M, p) of theta_hat."""
        return self.theta_hat.theta

    @property
    def psi(self) -> Tensor:
        """(M, k)"""
        return self.theta_hat.psi

    @property
    def half_range(self) -> Tensor:
        """(k,) half the box: what a unit-box coordinate is worth in psi."""
        return ((self.family.box.high - self.family.box.low) / 2).to(self.theta)

    def causal(self, rollout: Rollout) -> Trajectories:
        """Trajectories of theta_hat with a baseline."""
        data = trajectories(self.family, self.theta_hat, rollout)
        return with_baseline(self.family, self.theta_hat, rollout, data)

    def lanes(self, lanes: slice) -> Evidence:
        """The same with some of theta_hat's trajectories."""
        return replace(
            self,
            hat_in_model=self.hat_in_model.lanes(lanes),
            hat_in_simulator=self.hat_in_simulator.lanes(lanes),
        )

    def check(self) -> None:
        """Refuse rollouts of which no two halves can be estimated from.

        Raises:
            ValueError: rollouts of different tasks, or too few lanes; names the rollout.
        """
        num_tasks = len(self.theta)
        for name in ("hat_in_model", "hat_in_simulator", "star_in_simulator"):
            tasks, lanes = getattr(self, name).obs.shape[:2]
            least = 2 * self.model.num_members if name == "hat_in_model" else 4
            if tasks != num_tasks or lanes < least:
                raise ValueError(
                    f"{name}: expected {num_tasks} tasks with at least {least} episodes each, so that both halves of "
                    f"the data can be estimated from; got {tasks} tasks with {lanes}"
                )
