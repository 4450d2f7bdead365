"""One round of the meta-training, B tasks at once: what its phases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig
from admrl.gradient import TaskGradient
from admrl.jobs.reporter import Reporter
from admrl.search.base import TaskSearch
from admrl.search.objective import scaled_gap, scaled_gradient
from admrl.solving.inner_method import InnerMethod
from admrl.solving.rollouts import (
    discounted_returns,
    episode_returns,
    real_rollout,
    report_unstable,
)
from admrl.solving.solution import Policies
from admrl.training.progress import Phase, RoundProgress, phase_name
from admrl.training.state import MetaState
from task_families.family import TaskFamily
from task_families.rollout import Rollout


@dataclass
class Round:
    """What the phases of one round share."""

    family: TaskFamily
    state: MetaState
    progress: RoundProgress
    config: MetaTrainConfig
    """Of one task; see `per_task`."""
    num_threads: int
    reporter: Reporter
    on_step: Callable[[MetaState], None] | None
    on_phase: Callable[[MetaState], None] | None

    method: InnerMethod[Any]
    """How its tasks are solved."""

    def __post_init__(self) -> None:
        self.index = len(self.state.records)  # of its first task
        self.psi = self.progress.solution.psi.cpu()
        self.generators = self.progress.generators
        self.num_lanes = self.config.gradient.num_samples // self.family.horizon

    @property
    def name(self) -> str:
        """For messages."""
        first, last = self.index + 1, self.index + len(self.psi)
        which = f"task {first}" if first == last else f"tasks {first}-{last}"
        return f"{which}/{self.config.num_tasks}"

    def task_name(self, i: int) -> str:
        """Of one task of the round, for messages."""
        return f"task {self.index + i + 1}/{self.config.num_tasks}"

    def announce(self) -> None:
        """Tell the reporter which phase begins or goes on."""
        self.reporter.phase(f"{self.name}: {phase_name(self.config, self.progress.phase)}")

    def advance(self, **metrics: float) -> None:
        """Tell the reporter that a step is done, with the samples so far."""
        samples = self.state.samples
        self.reporter.advance(real_samples=samples.real, virtual_samples=samples.virtual, **metrics)

    def step_done(self, num_done: int, solution: Policies) -> None:
        """A step of the phase is done; the state is complete."""
        self.progress.num_done, self.progress.solution = num_done, solution
        if self.on_step is not None:
            self.on_step(self.state)

    def end_phase(self, following: Phase) -> None:
        """The phase is done; the state is complete."""
        self.progress.phase, self.progress.num_done = following, 0
        if self.on_phase is not None:
            self.on_phase(self.state)

    def measure(self, solution: Policies) -> Rollout:
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

    @property
    def num_probed(self) -> int:
        """Candidates that were tried before the round, by real episodes, too."""
        return max(0, int((self.state.zero_shots[:, 0] == self.index).sum()) - len(self.psi))

    def mean_returns(self, name: str) -> list[float | None]:
        """Of a rollout, one for each task; undiscounted, per episode that stayed stable."""
        rollout = self.progress.rollouts.get(name)
        if rollout is None:
            return [None for _ in self.psi]
        returns = episode_returns(self.family, self.psi, rollout).cpu()
        stable = [row[row.isfinite()] for row in returns]
        return [float(row.mean()) if len(row) else None for row in stable]

    def discounted(self, name: str) -> Tensor:
        """(B,) discounted return of an episode, divided by the horizon: the unit of the task gradient."""
        returns = discounted_returns(self.family, self.psi, self.progress.rollouts[name])
        return returns.mean(-1).cpu() / self.family.horizon


@dataclass(frozen=True)
class Direction:
    """What one task's part of the task gradient is good for."""

    value: Tensor | None  # (k,) to follow; None: not known
    cosine: float | None  # agreement of the halves of the data
    fell_back: bool  # the implicit part is ignored


@dataclass(frozen=True)
class Told:
    """What the search learns of a round's tasks."""

    gap: Tensor  # (B,) discounted, per horizon step like the gradient; nan for the first round
    gradient: Tensor  # (B, k) nan where it is not known

    def tell(self, search: TaskSearch, psi: Tensor) -> None:
        """Tell it of tasks (B, k): those with a gradient, then those without."""
        known = ~self.gradient.isnan().any(-1)
        for rows, gradient in ((known, self.gradient[known]), (~known, None)):
            if bool(rows.any()):
                search.tell(psi[rows], self.gap[rows], gradient)


def gaps(now: Round, gradient: TaskGradient | None, directions: list[Direction]) -> Told:
    """Gaps of the real rollouts of theta* and theta_hat, and their gradients, in the scale of the configuration."""
    unknown = torch.full_like(now.psi, torch.nan)
    if now.progress.theta_hat is None:
        return Told(unknown[:, 0], unknown)
    optimal, adapted = now.discounted("star"), now.discounted("hat")
    scale = now.config.search.scale
    gap = scaled_gap(optimal, adapted, scale)
    failed = ~gap.isfinite()  # an unstable simulation, or a ratio to nothing
    for i in failed.nonzero()[:, 0].tolist():
        now.reporter.event(f"{now.task_name(i)}: the gap is not known; the search counts the task as failed")
    follows = now.state.search.follows_fallbacks
    slope = torch.stack(
        [
            u if d.value is None or (d.fell_back and not follows) else d.value
            for u, d in zip(unknown, directions, strict=True)
        ]
    )
    if gradient is not None:
        slope = scaled_gradient(optimal, optimal - adapted, gradient.optimal, slope, scale)
    return Told(torch.where(failed, torch.nan, gap), torch.where(failed[:, None], torch.nan, slope))


def plain_numbers(x: Tensor) -> list[float | None]:
    """Plain numbers; None where there is none, because JSON has no nan."""
    return [value if isfinite(value) else None for value in x.flatten().tolist()]


def directions_to_follow(now: Round, gradient: TaskGradient | None) -> list[Direction]:
    """One for each task of the round."""
    if gradient is None or gradient.split_half_cosine is None:
        return [Direction(None, None, False) for _ in now.psi]
    if gradient.solve is not None and not gradient.solve.ok:
        now.reporter.event(f"{now.name}: the solve with the Hessian: {gradient.solve.describe()}")
    cosine = gradient.split_half_cosine
    known = cosine[cosine.isfinite()]
    now.advance(split_half_cosine=float(known.mean() if len(known) else torch.nan))
    return [_direction(now, gradient, i, float(c)) for i, c in enumerate(cosine)]


def _direction(now: Round, gradient: TaskGradient, i: int, cosine: float) -> Direction:
    """Of task i of the round."""
    name, total = now.task_name(i), gradient.total[i]
    finite = bool(total.isfinite().all())
    if finite and cosine > 0:
        return Direction(total, cosine, False)
    why = (
        f"the halves of the data disagree about the task gradient (cosine {cosine:.2f})"
        if finite
        else "the task gradient is not finite"
    )
    now.reporter.event(f"{name}: {why}; its implicit part is ignored")
    without = (gradient.optimal - gradient.adapted)[i]
    if not bool(without.isfinite().all()):  # e.g. an unstable simulation: nothing is known
        now.reporter.event(f"{name}: without it, too; the next task is drawn at random")
        return Direction(None, cosine, True)
    return Direction(without, cosine, True)
