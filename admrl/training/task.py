"""One task of the meta-training: what its phases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig
from admrl.gradient import TaskGradient
from admrl.jobs.reporter import Reporter
from admrl.search.objective import scaled_gap, scaled_gradient
from admrl.solving.adaptation import Solution
from admrl.solving.rollouts import (
    discounted_returns,
    episode_returns,
    real_rollout,
    report_unstable,
)
from admrl.training.progress import Phase, TaskProgress
from admrl.training.state import MetaState
from task_families.family import TaskFamily
from task_families.rollout import Rollout


@dataclass
class Task:
    """What the phases of one task share."""

    family: TaskFamily
    state: MetaState
    progress: TaskProgress
    config: MetaTrainConfig
    num_threads: int
    reporter: Reporter
    on_step: Callable[[MetaState], None] | None
    on_phase: Callable[[MetaState], None] | None

    def __post_init__(self) -> None:
        self.index = len(self.state.records)
        self.psi = self.progress.solution.psi
        self.generators = [self.progress.generator]
        self.name = f"task {self.index + 1}/{self.config.num_tasks}"
        self.num_lanes = self.config.gradient.num_samples // self.family.horizon

    def announce(self) -> None:
        """Tell the reporter which phase begins or goes on."""
        self.reporter.phase(f"{self.name}: {self.progress.phase}")

    def advance(self, **metrics: float) -> None:
        """Tell the reporter that a step is done, with the samples so far."""
        samples = self.state.samples
        self.reporter.advance(real_samples=samples.real, virtual_samples=samples.virtual, **metrics)

    def step_done(self, num_done: int, solution: Solution) -> None:
        """A step of the phase is done; the state is complete."""
        self.progress.num_done, self.progress.solution = num_done, solution
        if self.on_step is not None:
            self.on_step(self.state)

    def end_phase(self, following: Phase) -> None:
        """The phase is done; the state is complete."""
        self.progress.phase, self.progress.num_done = following, 0
        if self.on_phase is not None:
            self.on_phase(self.state)

    def measure(self, solution: Solution) -> Rollout:
        """A real rollout without exploration noise: for the gradient and the returns, and for D."""
        rollout = real_rollout(
            self.family, solution, self.num_lanes, self.generators, num_threads=self.num_threads
        )
        self.keep(rollout)
        return rollout

    def keep(self, rollout: Rollout) -> None:
        """Real samples are counted and join D."""
        self.state.learner.add(rollout)
        self.state.samples.real += rollout.num_samples
        report_unstable(rollout, self.reporter)

    def mean_return(self, name: str) -> float | None:
        """Of a rollout; undiscounted, per episode that stayed stable."""
        rollout = self.progress.rollouts.get(name)
        if rollout is None:
            return None
        returns = episode_returns(self.family, self.psi, rollout)
        stable = returns[returns.isfinite()]
        return float(stable.mean()) if len(stable) else None

    def discounted(self, name: str) -> Tensor:
        """(1,) discounted return of an episode, divided by the horizon: the unit of the task gradient."""
        returns = discounted_returns(self.family, self.psi, self.progress.rollouts[name])
        return returns.mean(-1) / self.family.horizon


@dataclass(frozen=True)
class Told:
    """What the search learns of a task."""

    gap: Tensor  # (1,) discounted, per horizon step like the gradient; nan for the first task
    gradient: Tensor | None  # (1, k)


def tell(task: Task, gradient: TaskGradient | None, direction: Tensor | None) -> Told:
    """The gap of the real rollouts of theta* and theta_hat, and its gradient, in the scale of the configuration."""
    if task.progress.theta_hat is None:
        return Told(torch.full((1,), torch.nan), None)
    optimal, adapted = task.discounted("star"), task.discounted("hat")
    scale = task.config.search.scale
    gap = scaled_gap(optimal, adapted, scale)
    if not bool(gap.isfinite().all()):  # an unstable simulation, or a ratio to nothing
        task.reporter.event(f"{task.name}: the gap is not known; the search counts the task as failed")
        return Told(torch.full((1,), torch.nan), None)
    if direction is not None and gradient is not None:
        direction = scaled_gradient(optimal, optimal - adapted, gradient.optimal, direction, scale)
    return Told(gap, direction)


def plain_numbers(x: Tensor) -> list[float | None]:
    """Plain numbers; None where there is none, because JSON has no nan."""
    return [value if isfinite(value) else None for value in x.flatten().tolist()]


def direction_to_follow(
    task: Task, gradient: TaskGradient | None
) -> tuple[Tensor | None, float | None, bool]:
    """The direction to follow (1, k) or None, the agreement of the halves, and whether a part was ignored."""
    if gradient is None or gradient.split_half_cosine is None:
        return None, None, False
    cosine = float(gradient.split_half_cosine)
    task.advance(split_half_cosine=cosine)
    if gradient.solve is not None and not gradient.solve.ok:
        task.reporter.event(f"{task.name}: the solve with the Hessian: {gradient.solve.describe()}")
    finite = bool(gradient.total.isfinite().all())
    direction, fell_back = gradient.total, not finite or not cosine > 0
    if fell_back:
        why = (
            f"the halves of the data disagree about the task gradient (cosine {cosine:.2f})"
            if finite
            else "the task gradient is not finite"
        )
        task.reporter.event(f"{task.name}: {why}; its implicit part is ignored")
        direction = gradient.optimal - gradient.adapted
    if not bool(direction.isfinite().all()):  # e.g. an unstable simulation: nothing is known
        task.reporter.event(f"{task.name}: without it, too; the next task is drawn at random")
        return None, cosine, fell_back
    return direction, cosine, fell_back
