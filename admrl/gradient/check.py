"""How good the estimators of the task gradient are: independent draws of each, against re-solved policies.

The truth is `resolve` with a larger budget and other seeds: the difference of real returns of re-solved policies,
with a standard error from its replicates; `optimal` and `adapted` come from `truth_lanes` real episodes each.
All numbers are discounted returns per unit-box coordinate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import real_rollout, slbo_adapt, zero_shot
from admrl.config import MetaTrainConfig, ResolveConfig, TaskGradientConfig, VirtualTrainingConfig
from admrl.gradient.estimators import task_gradient
from admrl.gradient.result import TaskGradient
from admrl.reporting import Reporter, Silent
from admrl.virtual_training import Solution, virtual_rollout
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily, spawn_generators

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


def solve_task(
    family: TaskFamily,
    learner: ModelLearner,
    psi: Tensor,
    config: MetaTrainConfig,
    seed: int,
    *,
    reporter: Reporter | None = None,
) -> tuple[Solution, Solution, DynamicsEnsemble, DynamicsEnsemble]:
    """theta_hat (zero-shot in the frozen model) and theta* (SLBO on a copy of the learner) for one task (1, k), the
    model of theta_hat, and the model after SLBO. The learner stays as it is."""
    reporter = reporter or Silent()
    generators = spawn_generators(torch.Generator().manual_seed(seed), 2)
    model, virtual, mine = learner.model.clone(), config.virtual, generators[:1]
    psi = psi.to(model.weights[0])
    reporter.phase("theta_hat", config.num_zero_shot * virtual.num_policy_updates)
    policy = GaussianPolicy(
        family.obs_size,
        family.act_size,
        hidden_sizes=config.policy_hidden_sizes,
        fixed_log_std=config.fixed_log_std,
    )
    frozen = replace(virtual, num_model_steps=0)
    theta_hat = zero_shot(family, model, psi, policy, config.num_zero_shot, frozen, mine, reporter=reporter)
    copy = learner.fork(generators[1:])
    lanes = config.gradient.num_samples // family.horizon
    copy.add(real_rollout(family, theta_hat, lanes, mine))  # as in the training, line 9
    reporter.phase("theta*", num_slbo_steps(config))
    theta_star = slbo_adapt(family, copy, theta_hat, config.slbo, virtual, mine, reporter=reporter)
    return theta_hat, theta_star, model, copy.model


def num_slbo_steps(config: MetaTrainConfig) -> int:
    """Calls of `Reporter.advance` of one task's SLBO."""
    slbo = config.slbo
    return slbo.num_stages * (1 + slbo.num_iterations * config.virtual.num_policy_updates)


def check_gradient(
    family: TaskFamily,
    theta_hat: Solution,
    theta_star: Solution,
    *,
    model: DynamicsEnsemble,
    updated_model: DynamicsEnsemble | None,
    config: TaskGradientConfig,
    virtual: VirtualTrainingConfig,
    estimators: Sequence[str],
    num_draws: int | Mapping[str, int],
    truth: ResolveConfig,
    truth_lanes: int,
    seed: int = 0,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> GradientCheck:
    """Draw every estimator num_draws times for one task (M = 1), and the truth once.

    Args:
        num_draws: for all estimators, or for each by name.
        model, updated_model: see `task_gradient`.
        truth: the budget of the truth; its seeds are not those of the draws.
        truth_lanes: real episodes of theta_hat and of theta* each, for the truth.

    Raises:
        ValueError: more than one task.
    """
    if len(theta_hat.psi) != 1:
        raise ValueError(f"theta_hat: expected one task, got {len(theta_hat.psi)}; check them one by one")
    reporter = reporter or Silent()
    scale = ((family.box.high - family.box.low) / 2).to(theta_hat.theta) * family.horizon

    def draw(settings: TaskGradientConfig, num_lanes: int, number: int) -> tuple[TaskGradient, float]:
        generators = spawn_generators(torch.Generator().manual_seed(number), 1)
        in_model = virtual_rollout(family, model, theta_hat, num_lanes, generators)
        hat, star = (
            real_rollout(family, s, num_lanes, generators, num_threads=num_threads)
            for s in (theta_hat, theta_star)
        )
        start = time.perf_counter()
        gradient = task_gradient(
            family,
            theta_hat,
            theta_star,
            hat_in_model=in_model,
            hat_in_simulator=hat,
            star_in_simulator=star,
            model=model,
            updated_model=updated_model,
            config=settings,
            virtual=virtual,
            generators=generators,
            num_threads=num_threads,
        )
        return gradient, time.perf_counter() - start

    reporter.phase("truth", 1)
    settings = replace(config, estimator="resolve", resolve=truth)
    exact, _ = draw(settings, truth_lanes // model.num_members * model.num_members, 10_000_019 + seed)
    reporter.advance()
    lanes = config.num_samples // family.horizon
    rows = []
    for name in estimators:
        number = num_draws if isinstance(num_draws, int) else num_draws[name]
        reporter.phase(name, number)
        found = []
        for i in range(number):
            found.append(draw(replace(config, estimator=name), lanes, 1000 * seed + i))  # type: ignore[arg-type]
            reporter.advance()
        rows.append(_rows(name, [g for g, _ in found], [s for _, s in found], scale))
    return GradientCheck(
        family=family.name,
        psi=theta_hat.psi[0].tolist(),
        truth=_truth(exact, scale),
        draws=rows,
        provenance={
            "config": asdict(config),
            "truth": asdict(truth),
            "truth_lanes": truth_lanes,
            "num_lanes": lanes,
            "seed": seed,
            "control_variate": updated_model is not None,
        },
    )


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
