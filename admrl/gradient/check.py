"""How good the estimators of the task gradient are: independent draws of each, against re-solved policies.

The truth is `resolve` with a larger budget and other seeds: the difference of real returns of re-solved policies,
with a standard error from its replicates; `optimal` and `adapted` come from `truth_lanes` real episodes each.
All numbers are discounted returns per unit-box coordinate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig, ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient.estimators import task_gradient
from admrl.gradient.evidence import Evidence
from admrl.gradient.result import TaskGradient
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.adaptation import slbo_adapt, zero_shot
from admrl.solving.rollouts import real_rollout, virtual_rollout
from admrl.solving.solution import Solution
from admrl.streams import Purpose, stream
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Truth:
    """What the estimators are judged by."""

    implicit: list[float]
    implicit_error: list[float]  # standard error
    total: list[float]
    total_error: list[float]


@dataclass(frozen=True)
class Draws:
    """What one estimator said in independent draws; one row per draw."""

    estimator: str
    easy: list[list[float]]  # optimal - adapted
    implicit: list[list[float]]
    total: list[list[float]]
    split_half_cosine: list[float]
    split_half_error: list[float]
    seconds: list[float]
    real_samples: int
    status: str | None
    relative_residual: float | None
    curvature: list[float] | None
    growth: float | None
    gradient_norm: float
    implicit_at: dict[str, list[float]] = field(
        default_factory=dict
    )  # relative damping -> implicit, last draw

    def cosine(self, truth: Truth) -> np.ndarray:
        """Cosine of every draw's total with the true one."""
        a, b = np.array(self.total), np.array(truth.total)
        return a @ b / (np.linalg.norm(a, axis=1) * np.linalg.norm(b) + 1e-30)

    def signs_right(self, truth: Truth) -> np.ndarray:
        """Whether every draw has the right sign wherever the truth exceeds twice its standard error."""
        sure = np.abs(truth.total) > 2 * np.array(truth.total_error)
        return ((np.sign(self.total) == np.sign(truth.total)) | ~sure).all(1)


@dataclass(frozen=True)
class GradientCheck:
    """One task of one family; plain data."""

    family: str
    psi: list[float]
    truth: Truth
    draws: list[Draws]
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class SolvedTask:
    """One task, solved without and with real samples (M = 1)."""

    theta_hat: Solution
    theta_star: Solution
    model: DynamicsEnsemble  # that trained theta_hat
    updated_model: DynamicsEnsemble | None  # after SLBO; None: no control variate


@dataclass(frozen=True)
class CheckPlan:
    """How much is drawn."""

    estimators: Sequence[str]
    num_draws: int | Mapping[str, int]
    """For all estimators, or for each by name."""
    truth: ResolveConfig
    """The budget of the truth; its seeds are not those of the draws."""
    truth_lanes: int
    """Real episodes of theta_hat and of theta* each, for the truth."""
    seed: int = 0

    def draws_of(self, name: str) -> int:
        """Of one estimator."""
        return self.num_draws if isinstance(self.num_draws, int) else self.num_draws[name]


def solve_task(
    family: TaskFamily,
    learner: ModelLearner,
    psi: Tensor,
    config: MetaTrainConfig,
    seed: int,
    *,
    policy: GaussianPolicy,
    reporter: Reporter | None = None,
) -> SolvedTask:
    """theta_hat (zero-shot in the frozen model) and theta* (SLBO on a copy of the learner) of a task psi (1, k). The
    learner stays as it is."""
    reporter = reporter or Silent()
    generators = [stream(seed, Purpose.CHECK_SOLUTION, i) for i in range(2)]
    model, virtual, mine = learner.model.clone(), config.virtual, generators[:1]
    psi = psi.to(model.weights[0])
    reporter.phase("theta_hat")
    frozen = replace(virtual, num_model_steps=0)
    theta_hat = zero_shot(family, model, psi, policy, config.num_zero_shot, frozen, mine, reporter=reporter)
    copy = learner.fork(generators[1:])
    lanes = config.gradient.num_samples // family.horizon
    copy.add(real_rollout(family, theta_hat, lanes, mine))  # as in the training, line 9
    reporter.phase("theta*")
    theta_star = slbo_adapt(family, copy, theta_hat, config.slbo, virtual, mine, reporter=reporter)
    return SolvedTask(theta_hat, theta_star, model, copy.model)


def check_gradient(
    family: TaskFamily,
    solved: SolvedTask,
    plan: CheckPlan,
    config: TaskGradientConfig,
    virtual: VirtualTrainingConfig,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> GradientCheck:
    """Draw every estimator as often as planned for one task (M = 1), and the truth once.

    Raises:
        ValueError: more than one task.
    """
    psi = solved.theta_hat.psi
    if len(psi) != 1:
        raise ValueError(f"theta_hat: expected one task, got {len(psi)}; check them one by one")
    reporter = reporter or Silent()
    scale = ((family.box.high - family.box.low) / 2).to(solved.theta_hat.theta) * family.horizon
    draw = partial(_draw, family, solved, virtual, num_threads)
    reporter.phase("truth")
    settings, members = replace(config, estimator="resolve", resolve=plan.truth), solved.model.num_members
    exact, _ = draw(settings, plan.truth_lanes // members * members, stream(plan.seed, Purpose.CHECK_TRUTH))
    reporter.advance()
    lanes = config.num_samples // family.horizon
    rows = []
    for name in plan.estimators:
        reporter.phase(name)
        found = []
        for i in range(plan.draws_of(name)):
            settings = replace(config, estimator=name)  # type: ignore[arg-type]
            found.append(draw(settings, lanes, stream(plan.seed, Purpose.CHECK_DRAW, i)))
            reporter.advance()
        rows.append(_rows(name, [g for g, _ in found], [s for _, s in found], scale))
    return GradientCheck(
        family=family.name,
        psi=psi[0].tolist(),
        truth=_truth(exact, scale),
        draws=rows,
        provenance={
            "config": asdict(config),
            "truth": asdict(plan.truth),
            "truth_lanes": plan.truth_lanes,
            "num_lanes": lanes,
            "seed": plan.seed,
            "control_variate": solved.updated_model is not None,
        },
    )


def _draw(
    family: TaskFamily,
    solved: SolvedTask,
    virtual: VirtualTrainingConfig,
    num_threads: int,
    config: TaskGradientConfig,
    num_lanes: int,
    generator: torch.Generator,
) -> tuple[TaskGradient, float]:
    """One estimate from fresh rollouts, and the seconds that it took without them."""
    generators = [generator]
    in_model = virtual_rollout(family, solved.model, solved.theta_hat, num_lanes, generators)
    hat, star = (
        real_rollout(family, s, num_lanes, generators, num_threads=num_threads)
        for s in (solved.theta_hat, solved.theta_star)
    )
    start = time.perf_counter()
    evidence = Evidence(
        family=family,
        theta_hat=solved.theta_hat,
        theta_star=solved.theta_star,
        hat_in_model=in_model,
        hat_in_simulator=hat,
        star_in_simulator=star,
        model=solved.model,
        config=config,
        virtual=virtual,
        updated_model=solved.updated_model,
    )
    return task_gradient(evidence, generators, num_threads=num_threads), time.perf_counter() - start


def _truth(gradient: TaskGradient, scale: Tensor) -> Truth:
    assert gradient.halves is not None and gradient.implicit_error is not None
    implicit_error = gradient.implicit_error[0] * scale
    easy_error = gradient.easy_error
    assert easy_error is not None
    total_error = (implicit_error.square() + (easy_error[0] * scale).square()).sqrt()
    return Truth(
        implicit=(gradient.implicit[0] * scale).tolist(),
        implicit_error=implicit_error.tolist(),
        total=(gradient.total[0] * scale).tolist(),
        total_error=total_error.tolist(),
    )


def _rows(name: str, gradients: list[TaskGradient], seconds: list[float], scale: Tensor) -> Draws:
    last = gradients[-1]
    solve, path = last.solve, last.implicit_at
    return Draws(
        estimator=name,
        easy=[((g.optimal - g.adapted)[0] * scale).tolist() for g in gradients],
        implicit=[(g.implicit[0] * scale).tolist() for g in gradients],
        total=[(g.total[0] * scale).tolist() for g in gradients],
        split_half_cosine=[float(g.split_half_cosine) for g in gradients],  # type: ignore[arg-type]
        split_half_error=[float(g.split_half_error) for g in gradients],  # type: ignore[arg-type]
        seconds=seconds,
        real_samples=last.real_samples,
        status=solve.status[0].name if solve is not None else None,
        relative_residual=float(solve.relative_residual) if solve is not None else None,
        curvature=last.curvature[0].tolist() if last.curvature is not None else None,
        growth=float(last.growth) if last.growth is not None else None,
        gradient_norm=float(last.gradient_norm),  # type: ignore[arg-type]
        implicit_at={f"{d:g}": (path(d)[0] * scale).tolist() for d in DAMPINGS} if path else {},
    )
