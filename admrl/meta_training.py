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
1. Every selector collects the same rollouts of theta_hat and theta*, and all of them join D: adversarial,
   uniform and gaussian runs have equal real budgets although only the first needs them for a gradient.
2. A gradient whose two halves of the data contradict each other (cosine <= 0) is not followed; its two parts
   that need no solve (optimal - adapted) are, and the run says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

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
from admrl.config import MetaTrainConfig, check_config, check_sample_counts, check_screening
from admrl.gradient import TaskGradient, task_gradient
from admrl.reporting import Reporter, Silent
from admrl.screening import ModelScreening, check_members
from admrl.search import ScreenedSearch, Search, make_search
from admrl.search.objective import scaled_gap, scaled_gradient
from admrl.virtual_training import new_solution, stochastic_actor, virtual_training
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from dynamics.virtual_env import VirtualEnv
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily, spawn_generators
from task_families.rollout import Rollout, collect


@dataclass(frozen=True)
class TaskRecord:
    """What one task of the training showed. Returns are undiscounted means per episode; JSON-able."""

    index: int
    psi: list[float]
    return_model: float | None  # theta_hat in the model; None for the first task
    return_hat: float | None  # theta_hat in the simulator
    return_star: float  # theta* in the simulator
    gradient: dict[str, list[float]] | None  # parts of Eq. 2 and their total
    split_half_cosine: float | None
    fell_back: bool  # the step ignored the implicit part
    solve_status: str | None  # of the solve with the Hessian, if the estimator has one
    relative_residual: float | None
    real_samples: int  # since the start of the run
    virtual_samples: int

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


@dataclass
class MetaState:
    """All that a meta-training run needs to go on."""

    learner: ModelLearner
    search: Search
    generator: torch.Generator  # everything but the model's fit and the search
    search_generator: torch.Generator
    records: list[TaskRecord] = field(default_factory=list)
    real_samples: int = 0
    virtual_samples: int = 0


def make_policy(family: TaskFamily, config: MetaTrainConfig) -> GaussianPolicy:
    """The policy shape of a configuration."""
    return GaussianPolicy(
        family.obs_size,
        family.act_size,
        hidden_sizes=config.policy_hidden_sizes,
        fixed_log_std=config.fixed_log_std,
    )


def new_state(
    family: TaskFamily, selector: str, config: MetaTrainConfig, seed: int, dtype: torch.dtype = torch.float32
) -> MetaState:
    """Alg. 1, line 1. The three random streams (search, model, everything else) are independent, so two
    selectors with one seed start from the same model and the same policy.

    Raises:
        ValueError: unknown selector, a first task outside the box, a setting outside its range, or a family
            whose dynamics differ by task.
    """
    check_config(config)
    check_sample_counts(config, family.horizon)
    if family.psi_changes_dynamics:
        raise ValueError(
            f"family: the dynamics of {family.name} depend on the task, but this method learns one model for all "
            "tasks (AdMRL section 3); choose a family that differs in rewards alone"
        )
    root = torch.Generator().manual_seed(seed)
    search_generator, model_generator, generator = spawn_generators(root, 3)
    learner = ModelLearner.make(family, config.dynamics, config.fit, model_generator, dtype=dtype)
    first = (
        family.first_psi if config.first_psi is None else torch.tensor(config.first_psi).to(family.first_psi)
    )
    search = make_search(
        selector,
        family.box,
        family.box.check(first),
        step_size=config.step_size,
        generator=search_generator,
        config=config.search,
    )
    if isinstance(search, ScreenedSearch):
        check_screening(config, family.horizon)
        check_members(learner.model)
    return MetaState(learner, search, generator, search_generator)


def meta_train(
    family: TaskFamily,
    state: MetaState,
    config: MetaTrainConfig,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    on_task: Callable[[MetaState], None] | None = None,
    estimate_gradient: Callable[..., TaskGradient] = task_gradient,
) -> MetaState:
    """Run Alg. 1 until the state has seen config.num_tasks tasks.

    Args:
        state: `new_state`, or one that was restored from a checkpoint.
        num_threads: of the simulator (results do not depend on it).
        on_task: called after every task, e.g. to save a checkpoint.
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
            # the phases of a task begin with its number: `admrl train --resume` keeps those of finished tasks
            lambda: f"task {len(state.records) + 1}/{config.num_tasks}: screening",
        )
        state.search.scorer, state.search.polisher = screening.score, screening.polish
    while len(state.records) < config.num_tasks:  # Alg. 1, line 2
        task = _Task(family, state, config, spawn_generators(state.generator, 1), num_threads, counter)
        told = _train_on(task, estimate_gradient)
        state.search.tell(task.psi, told.gap, told.gradient)  # lines 8 and 12
        if on_task is not None:
            on_task(state)
    return state


@dataclass
class _Task:
    """What the phases of one task share."""

    family: TaskFamily
    state: MetaState
    config: MetaTrainConfig
    generators: list[torch.Generator]
    num_threads: int
    reporter: Reporter

    def __post_init__(self) -> None:
        self.index = len(self.state.records)
        self.psi = self.state.search.ask().to(self.state.learner.model.weights[0].dtype)
        self.name = f"task {self.index + 1}/{self.config.num_tasks}"
        self.num_lanes = self.config.gradient.num_samples // self.family.horizon

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

    def mean_return(self, rollout: Rollout) -> float:
        """Undiscounted, per episode."""
        return float(episode_returns(self.family, self.psi, rollout).mean())

    def discounted(self, rollout: Rollout) -> Tensor:
        """(1,) discounted return of an episode, divided by the horizon: the unit of the task gradient."""
        return discounted_returns(self.family, self.psi, rollout).mean(-1) / self.family.horizon


@dataclass(frozen=True)
class _ZeroShot:
    """theta_hat and what line 9 needs of it."""

    theta_hat: Solution
    model: DynamicsEnsemble  # that trained it, as it was before SLBO
    model_rollout: Rollout
    hat_rollout: Rollout


@dataclass(frozen=True)
class _Told:
    """What the search learns of a task."""

    gap: Tensor  # (1,) discounted, per horizon step like the gradient; nan for the first task
    gradient: Tensor | None  # (1, k)


def _train_on(task: _Task, estimate_gradient: Callable[..., TaskGradient]) -> _Told:
    """Lines 3-11 of Alg. 1; appends the record."""
    family, state, config = task.family, task.state, task.config
    learner, virtual = state.learner, config.virtual
    policy = make_policy(family, config)
    solution = new_solution(learner.model, task.psi, policy, virtual, task.generators)  # line 3
    zero = None if task.index == 0 else _zero_shot(task, solution)  # line 4
    slbo = config.slbo if zero else replace(config.slbo, num_stages=config.num_first_stages)
    num_steps = slbo.num_stages * (1 + slbo.num_iterations * virtual.num_policy_updates)
    task.reporter.phase(f"{task.name}: SLBO", num_steps)
    theta_star = slbo_adapt(  # lines 5-7
        family,
        learner,
        zero.theta_hat if zero else solution,
        slbo,
        virtual,
        task.generators,
        num_threads=task.num_threads,
        reporter=task.reporter,
    )
    star_rollout = task.measure(theta_star)
    gradient = None
    if zero and state.search.uses_gradient:  # lines 9-11
        task.reporter.phase(f"{task.name}: task gradient", 1)
        gradient = estimate_gradient(
            family,
            zero.theta_hat,
            theta_star,
            hat_in_model=zero.model_rollout,
            hat_in_simulator=zero.hat_rollout,
            star_in_simulator=star_rollout,
            model=zero.model,
            updated_model=learner.model,
            config=config.gradient,
            virtual=virtual,
            generators=task.generators,
            on_real=task.keep,
            num_threads=task.num_threads,
        )
        state.virtual_samples += gradient.virtual_samples
    direction, cosine, fell_back = _direction(task, gradient)
    parts = ("optimal", "adapted", "implicit", "total")
    solve = gradient.solve if gradient else None
    state.records.append(
        TaskRecord(
            index=task.index,
            psi=[round(x, 6) for x in task.psi[0].tolist()],
            return_model=task.mean_return(zero.model_rollout) if zero else None,
            return_hat=task.mean_return(zero.hat_rollout) if zero else None,
            return_star=task.mean_return(star_rollout),
            gradient={name: getattr(gradient, name)[0].tolist() for name in parts} if gradient else None,
            split_half_cosine=cosine,
            fell_back=fell_back,
            solve_status=solve.status.item().name if solve else None,
            relative_residual=float(solve.relative_residual) if solve else None,
            real_samples=state.real_samples,
            virtual_samples=state.virtual_samples,
        )
    )
    return _told(task, zero, star_rollout, gradient, direction)


def _told(
    task: _Task,
    zero: _ZeroShot | None,
    star_rollout: Rollout,
    gradient: TaskGradient | None,
    direction: Tensor | None,
) -> _Told:
    """The gap of the real rollouts of theta* and theta_hat, and its gradient, in the scale of the configuration."""
    if zero is None:
        return _Told(torch.full((1,), torch.nan), None)
    optimal, adapted = (task.discounted(rollout) for rollout in (star_rollout, zero.hat_rollout))
    scale = task.config.search.scale
    gap = scaled_gap(optimal, adapted, scale)
    if not bool(gap.isfinite().all()):  # an unstable simulation, or a ratio to nothing
        task.reporter.event(f"{task.name}: the gap is not known; the search counts the task as failed")
        return _Told(torch.full((1,), torch.nan), None)
    if direction is not None and gradient is not None:
        direction = scaled_gradient(optimal, optimal - adapted, gradient.optimal, direction, scale)
    return _Told(gap, direction)


def _zero_shot(task: _Task, solution: Solution) -> _ZeroShot:
    """Line 4, and the rollouts of theta_hat that line 9 needs."""
    family, config, learner = task.family, task.config, task.state.learner
    task.reporter.phase(f"{task.name}: zero-shot", config.num_zero_shot * config.virtual.num_policy_updates)
    theta_hat = virtual_training(
        family,
        learner.model,
        solution,
        config.num_zero_shot,
        config.virtual,
        task.generators,
        learner=learner,
        reporter=task.reporter,
    )
    # in the model as it is now: theta_hat is optimal for the one before SLBO
    env = VirtualEnv(learner.model, family, (1, task.num_lanes))
    act = stochastic_actor(theta_hat, env.shape, family.horizon, task.generators)
    with torch.no_grad():
        model_rollout = collect(env, family, act, family.horizon, task.generators)
    task.state.virtual_samples += model_rollout.num_samples
    return _ZeroShot(theta_hat, learner.model.clone(), model_rollout, task.measure(theta_hat))


def _direction(task: _Task, gradient: TaskGradient | None) -> tuple[Tensor | None, float | None, bool]:
    """The direction to follow (1, k) or None, the agreement of the halves, and whether a part was ignored."""
    if gradient is None or gradient.split_half_cosine is None:
        return None, None, False
    cosine = float(gradient.split_half_cosine)
    task.reporter.advance(split_half_cosine=cosine)
    if gradient.solve is not None and not gradient.solve.ok:
        task.reporter.event(f"{task.name}: the solve with the Hessian: {gradient.solve.describe()}")
    direction, fell_back = gradient.total, not cosine > 0 or not bool(gradient.total.isfinite().all())
    if fell_back:
        task.reporter.event(
            f"{task.name}: the halves of the data disagree about the task gradient (cosine {cosine:.2f}); "
            "its implicit part is ignored"
        )
        direction = gradient.optimal - gradient.adapted
    if not bool(direction.isfinite().all()):  # e.g. an unstable simulation: nothing is known
        task.reporter.event(f"{task.name}: the task gradient is not finite; the next task is drawn at random")
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
