"""Adversarial meta-training, AdMRL Alg. 1.

     1: initialise phi, psi; D <- {}
     2: for n_tasks iterations
     3:   initialise theta randomly
     4:   if D is not empty, theta_hat = VirtualTraining(theta, phi, psi, D, n_zeroshot)
     5:   for n_slbo iterations
     6:     D <- D + {n_collect real samples using pi_theta with noise}
     7:     theta* = VirtualTraining(theta, phi, psi, D, n_inner)
     8:   if first task, re-initialise psi randomly; otherwise
     9:     estimate the ingredients of Eq. 2
    10:     solve with the Hessian
    11:     dL/dpsi (Eq. 2)
    12:     psi <- project(psi + alpha dL/dpsi)

Differs from the paper:
1. Every selector collects the same rollouts of theta_hat and theta*, and all of them join D. A selector that uses
   no gradient draws as many further episodes of theta_hat as the gradient would have (`num_gradient_episodes`), so
   that all selectors have equal real budgets; the virtual samples of the gradient are its own and are counted.
2. A gradient whose two halves of the data contradict each other (cosine <= 0) is not followed; its two parts
   that need no solve (optimal - adapted) are, and the run says so.

A run can stop after every step and go on from a `MetaState` that was saved there, bit-identically: where a task in
progress stands is data (`TaskProgress`), and each phase of it begins by looking how much is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from admrl.adaptation import (
    Solution,
    discounted_returns,
    episode_returns,
    real_rollout,
    report_unstable,
    slbo_adapt,
)
from admrl.config import MetaTrainConfig, num_gradient_episodes
from admrl.gradient import TaskGradient, task_gradient
from admrl.meta_state import MetaState, TaskRecord, make_policy
from admrl.reporting import Reporter, Silent
from admrl.screening import ModelScreening
from admrl.search import ScreenedSearch
from admrl.search.objective import scaled_gap, scaled_gradient
from admrl.task_progress import Phase, TaskProgress, num_phase_steps, slbo_config
from admrl.virtual_training import new_solution, virtual_rollout, virtual_training
from task_families.family import TaskFamily, spawn_generators
from task_families.rollout import Rollout


def meta_train(
    family: TaskFamily,
    state: MetaState,
    config: MetaTrainConfig,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    on_step: Callable[[MetaState], None] | None = None,
    on_phase: Callable[[MetaState], None] | None = None,
    on_task: Callable[[MetaState], None] | None = None,
    estimate_gradient: Callable[..., TaskGradient] = task_gradient,
) -> MetaState:
    """Run Alg. 1 until the state has seen config.num_tasks tasks.

    Args:
        state: `new_state`, or one that was restored from a checkpoint.
        num_threads: of the simulator (results do not depend on it).
        on_step, on_phase, on_task: called after every step, phase and task. The state is complete then: saved and
            restored, it goes on with the same numbers.
        estimate_gradient: the estimator of lines 9-11, called like `task_gradient`.
    """
    counter = _Counting(reporter or Silent(), state)
    if isinstance(state.search, ScreenedSearch):
        screening = ModelScreening(
            family,
            state.learner,
            make_policy(family, config),
            config,
            state.search_generator,
            num_threads,
            counter,
            lambda: f"task {len(state.records) + 1}/{config.num_tasks}: screening",
        )
        state.search.scorer, state.search.polisher = screening.score, screening.polish
    while len(state.records) < config.num_tasks:  # Alg. 1, line 2
        progress = state.progress
        if progress is None:
            state.progress = progress = _begin_task(family, state, config)  # line 3
            if isinstance(state.search, ScreenedSearch) and on_step is not None:
                on_step(state)  # screening may take as long as a phase
        task = _Task(family, state, progress, config, num_threads, counter, on_step, on_phase)
        if progress.phase is Phase.ZERO_SHOT:
            _zero_shot(task)  # line 4
        if progress.phase is Phase.SLBO:
            _slbo(task)  # lines 5-7
        told = _task_gradient(task, estimate_gradient)  # lines 9-11
        state.search.tell(task.psi, told.gap, told.gradient)  # lines 8 and 12
        state.progress = None
        for tell in (on_task, on_phase):  # the checkpoint comes last: what it covers is complete
            if tell is not None:
                tell(state)
    return state


def _begin_task(family: TaskFamily, state: MetaState, config: MetaTrainConfig) -> TaskProgress:
    """Line 3: a random policy for the task that the search asks for."""
    model, (generator,) = state.learner.model, spawn_generators(state.generator, 1)
    psi = state.search.ask().to(model.weights[0].dtype)
    solution = new_solution(model, psi, make_policy(family, config), config.virtual, [generator])
    return TaskProgress(Phase.ZERO_SHOT if state.records else Phase.SLBO, 0, generator, solution)


@dataclass
class _Task:
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
        phase = self.progress.phase
        num_steps = num_phase_steps(self.config, self.index)[phase] - self.progress.num_done
        self.reporter.phase(f"{self.name}: {phase}", num_steps)

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
        self.state.real_samples += rollout.num_samples
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
class _Told:
    """What the search learns of a task."""

    gap: Tensor  # (1,) discounted, per horizon step like the gradient; nan for the first task
    gradient: Tensor | None  # (1, k)


def _zero_shot(task: _Task) -> None:
    """Line 4, and the rollouts of theta_hat that line 9 needs."""
    family, config, learner, progress = task.family, task.config, task.state.learner, task.progress
    task.announce()
    theta_hat = virtual_training(
        family,
        learner.model,
        progress.solution,
        config.num_zero_shot,
        config.virtual,
        task.generators,
        learner=learner,
        reporter=task.reporter,
        num_done=progress.num_done,
        on_step=task.step_done,
    )
    # in the model as it is now: theta_hat is optimal for the one before SLBO
    model_rollout = virtual_rollout(family, learner.model, theta_hat, task.num_lanes, task.generators)
    task.state.virtual_samples += model_rollout.num_samples
    progress.theta_hat = progress.solution = theta_hat
    progress.model = learner.model.clone()
    progress.rollouts = {"model": model_rollout, "hat": task.measure(theta_hat)}
    task.end_phase(Phase.SLBO)


def _slbo(task: _Task) -> None:
    """Lines 5-7, and the rollout of theta* that line 9 needs."""
    progress = task.progress
    task.announce()
    progress.solution = slbo_adapt(
        task.family,
        task.state.learner,
        progress.solution,
        slbo_config(task.config, task.index),
        task.config.virtual,
        task.generators,
        num_threads=task.num_threads,
        reporter=task.reporter,
        num_done=progress.num_done,
        on_step=task.step_done,
    )
    progress.rollouts["star"] = task.measure(progress.solution)
    task.end_phase(Phase.GRADIENT)


def _task_gradient(task: _Task, estimate_gradient: Callable[..., TaskGradient]) -> _Told:
    """Lines 9-11; appends the record."""
    state, progress, rollouts = task.state, task.progress, task.progress.rollouts
    gradient = None
    if progress.theta_hat is not None and state.search.uses_gradient:
        task.announce()
        gradient = estimate_gradient(
            task.family,
            progress.theta_hat,
            progress.solution,
            hat_in_model=rollouts["model"],
            hat_in_simulator=rollouts["hat"],
            star_in_simulator=rollouts["star"],
            model=progress.model,
            updated_model=state.learner.model,
            config=task.config.gradient,
            virtual=task.config.virtual,
            generators=task.generators,
            on_real=task.keep,
            num_threads=task.num_threads,
        )
        state.virtual_samples += gradient.virtual_samples
    elif progress.theta_hat is not None:
        _draw_as_many(task, progress.theta_hat)
    direction, cosine, fell_back = _direction(task, gradient)
    parts = ("optimal", "adapted", "implicit", "total")
    solve = gradient.solve if gradient else None
    state.records.append(
        TaskRecord(
            index=task.index,
            psi=[round(x, 6) for x in task.psi[0].tolist()],
            return_model=task.mean_return("model"),
            return_hat=task.mean_return("hat"),
            return_star=task.mean_return("star"),
            gradient={name: _finite(getattr(gradient, name)[0]) for name in parts} if gradient else None,
            split_half_cosine=cosine if cosine is not None and isfinite(cosine) else None,
            fell_back=fell_back,
            solve_status=solve.status.item().name if solve else None,
            relative_residual=_finite(solve.relative_residual)[0] if solve else None,
            real_samples=state.real_samples,
            virtual_samples=state.virtual_samples,
        )
    )
    return _told(task, gradient, direction)


def _draw_as_many(task: _Task, theta_hat: Solution) -> None:
    """The further real episodes that the gradient would have drawn, all of theta_hat; see the head of this page."""
    num_episodes = num_gradient_episodes(task.config.gradient, task.family.box.size)
    if num_episodes:
        task.reporter.phase(f"{task.name}: further episodes", 1)
        task.keep(
            real_rollout(task.family, theta_hat, num_episodes, task.generators, num_threads=task.num_threads)
        )
        task.reporter.advance()


def _told(task: _Task, gradient: TaskGradient | None, direction: Tensor | None) -> _Told:
    """The gap of the real rollouts of theta* and theta_hat, and its gradient, in the scale of the configuration."""
    if task.progress.theta_hat is None:
        return _Told(torch.full((1,), torch.nan), None)
    optimal, adapted = task.discounted("star"), task.discounted("hat")
    scale = task.config.search.scale
    gap = scaled_gap(optimal, adapted, scale)
    if not bool(gap.isfinite().all()):  # an unstable simulation, or a ratio to nothing
        task.reporter.event(f"{task.name}: the gap is not known; the search counts the task as failed")
        return _Told(torch.full((1,), torch.nan), None)
    if direction is not None and gradient is not None:
        direction = scaled_gradient(optimal, optimal - adapted, gradient.optimal, direction, scale)
    return _Told(gap, direction)


def _finite(x: Tensor) -> list[float | None]:
    """Plain numbers; None where there is none, because JSON has no nan."""
    return [value if isfinite(value) else None for value in x.flatten().tolist()]


def _direction(task: _Task, gradient: TaskGradient | None) -> tuple[Tensor | None, float | None, bool]:
    """The direction to follow (1, k) or None, the agreement of the halves, and whether a part was ignored."""
    if gradient is None or gradient.split_half_cosine is None:
        return None, None, False
    cosine = float(gradient.split_half_cosine)
    task.reporter.advance(split_half_cosine=cosine)
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


class _Counting:
    """Passes everything on to a reporter and keeps the state's sample counts."""

    def __init__(self, reporter: Reporter, state: MetaState) -> None:
        self._reporter, self._state = reporter, state

    def phase(self, name: str, num_steps: int) -> None:
        self._reporter.phase(name, num_steps)

    def advance(self, **metrics: float) -> None:
        self._state.real_samples += int(metrics.pop("real_samples", 0))
        self._state.virtual_samples += int(metrics.pop("virtual_samples", 0))
        self._reporter.advance(
            real_samples=self._state.real_samples, virtual_samples=self._state.virtual_samples, **metrics
        )

    def event(self, message: str) -> None:
        self._reporter.event(message)
