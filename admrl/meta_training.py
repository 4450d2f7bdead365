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
    episode_returns,
    real_rollout,
    report_unstable,
    slbo_adapt,
    zero_shot,
)
from admrl.config import MetaTrainConfig, check_config, check_lanes, check_sample_counts
from admrl.reporting import Reporter, Silent
from admrl.search import TaskSearch, make_search
from admrl.task_gradient import TaskGradient, rollout_task_gradient
from admrl.virtual_training import new_solution, stochastic_actor
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
    real_samples: int  # since the start of the run
    virtual_samples: int

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


@dataclass
class MetaState:
    """All that a meta-training run needs to go on."""

    learner: ModelLearner
    search: TaskSearch
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
        selector, family.box, family.box.check(first), step_size=config.step_size, generator=search_generator
    )
    return MetaState(learner, search, generator, search_generator)


def meta_train(
    family: TaskFamily,
    state: MetaState,
    config: MetaTrainConfig,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    on_task: Callable[[MetaState], None] | None = None,
) -> MetaState:
    """Run Alg. 1 until the state has seen config.num_tasks tasks.

    Args:
        state: `new_state`, or one that was restored from a checkpoint.
        num_threads: of the simulator (results do not depend on it).
        on_task: called after every task, e.g. to save a checkpoint.
    """
    reporter = reporter or Silent()
    counter = _Counting(reporter, state)
    while len(state.records) < config.num_tasks:  # Alg. 1, line 2
        index = len(state.records)
        psi = state.search.ask().to(state.learner.model.weights[0].dtype)
        gradient, record = _train_on(family, state, config, index, psi, num_threads, counter)
        state.records.append(record)
        direction = None
        if gradient is not None:
            direction = gradient.optimal - gradient.adapted if record.fell_back else gradient.total
            if not bool(direction.isfinite().all()):  # e.g. an unstable simulation: nothing is known
                counter.event("the task gradient is not finite; the next task is drawn at random")
                direction = None
        state.search.tell(psi, direction)  # lines 8 and 12
        if on_task is not None:
            on_task(state)
    return state


def _train_on(
    family: TaskFamily,
    state: MetaState,
    config: MetaTrainConfig,
    index: int,
    psi: Tensor,
    num_threads: int,
    reporter: _Counting,
) -> tuple[TaskGradient | None, TaskRecord]:
    """One task: lines 3-11 of Alg. 1."""
    learner, virtual = state.learner, config.virtual
    generators = spawn_generators(state.generator, 1)
    policy = make_policy(family, config)
    num_lanes = check_lanes("gradient.num_samples", config.gradient.num_samples, family.horizon)
    where = f"task {index + 1}/{config.num_tasks}"
    first = index == 0
    slbo = replace(config.slbo, num_stages=config.num_first_stages) if first else config.slbo

    theta_hat: Solution | None = None
    model_rollout: Rollout | None = None
    hat_rollout: Rollout | None = None
    solution = new_solution(learner.model, psi, policy, virtual, generators)  # line 3
    if not first:  # line 4
        reporter.phase(f"{where}: zero-shot", config.num_zero_shot * virtual.num_policy_updates)
        theta_hat = solution = zero_shot(
            family,
            learner.model,
            psi,
            policy,
            config.num_zero_shot,
            virtual,
            generators,
            learner=learner,
            reporter=reporter,
        )
        # line 9, now: the model that theta_hat is optimal for is the one before SLBO
        env = VirtualEnv(learner.model, family, (1, num_lanes))
        act = stochastic_actor(theta_hat, env.shape, family.horizon, generators)
        with torch.no_grad():
            model_rollout = collect(env, family, act, family.horizon, generators)
        hat_rollout = _measure(family, theta_hat, num_lanes, generators, num_threads, state, reporter)
    reporter.phase(f"{where}: SLBO", slbo.num_stages * (1 + slbo.num_iterations * virtual.num_policy_updates))
    theta_star = slbo_adapt(  # lines 5-7
        family, learner, solution, slbo, virtual, generators, num_threads=num_threads, reporter=reporter
    )
    star_rollout = _measure(family, theta_star, num_lanes, generators, num_threads, state, reporter)

    gradient, cosine, fell_back = None, None, False
    # lines 9-11
    if theta_hat and model_rollout and hat_rollout and state.search.uses_gradient:
        reporter.phase(f"{where}: task gradient", 1)
        gradient = rollout_task_gradient(
            family,
            theta_hat,
            theta_star,
            model_rollout=model_rollout,
            hat_rollout=hat_rollout,
            star_rollout=star_rollout,
            config=config.gradient,
        )
        assert gradient.split_half_cosine is not None
        cosine = float(gradient.split_half_cosine)
        fell_back = not cosine > 0 or not bool(gradient.total.isfinite().all())
        if fell_back:
            reporter.event(
                f"{where}: the halves of the data disagree about the task gradient (cosine {cosine:.2f}); "
                "its implicit part is ignored"
            )
        reporter.advance(split_half_cosine=cosine)

    def mean_return(rollout: Rollout | None) -> float | None:
        return None if rollout is None else float(episode_returns(family, psi, rollout).mean())

    record = TaskRecord(
        index=index,
        psi=[round(x, 6) for x in psi[0].tolist()],
        return_model=mean_return(model_rollout),
        return_hat=mean_return(hat_rollout),
        return_star=float(episode_returns(family, psi, star_rollout).mean()),
        gradient=None
        if gradient is None
        else {
            name: getattr(gradient, name)[0].tolist() for name in ("optimal", "adapted", "implicit", "total")
        },
        split_half_cosine=cosine,
        fell_back=fell_back,
        real_samples=state.real_samples,
        virtual_samples=state.virtual_samples,
    )
    return gradient, record


def _measure(
    family: TaskFamily,
    solution: Solution,
    num_lanes: int,
    generators: list[torch.Generator],
    num_threads: int,
    state: MetaState,
    reporter: Reporter,
) -> Rollout:
    """A real rollout without exploration noise: for the gradient and the returns, and for D."""
    rollout = real_rollout(family, solution, num_lanes, generators, num_threads=num_threads)
    state.learner.add(rollout)
    state.real_samples += rollout.num_samples
    report_unstable(rollout, reporter)
    return rollout


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
