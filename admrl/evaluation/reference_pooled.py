"""The built-in reference run: SLBO on all test tasks together, from the models and the data of the evaluated runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from admrl.config.checks import check_lanes
from admrl.config.evaluation import EvaluationConfig, evaluation_virtual
from admrl.config.training import SlboConfig
from admrl.evaluation.evaluable_run import ModelSource
from admrl.evaluation.scoring import score_for_every_seed
from admrl.evaluation.task_lists import TaskList
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.adaptation import num_slbo_steps, slbo_adapt, zero_shot
from admrl.solving.health import fit_or_restore
from admrl.solving.rollouts import SolutionPolicy
from admrl.solving.samples import SampleCounts
from admrl.streams import Purpose, stream, task_streams

NAME = "reference: SLBO on all tasks"


@dataclass(frozen=True, eq=False)
class PooledReference:
    """What the reference run reached."""

    episode_return: np.ndarray  # (R, M, N) undiscounted, on the start states of every policy seed
    real_samples: int | None  # that it drew, of all tasks together; None: not recorded


def check_pooled(sources: Sequence[ModelSource], config: EvaluationConfig) -> None:
    """Refuse a reference run that cannot be, before any work.

    Raises:
        ValueError: impossible counts, or sources that differ in the shape of models or policies.
    """
    first = sources[0]
    check_lanes("config.num_reference_samples", config.num_reference_samples, first.family.horizon)
    for source in sources:
        if _architecture(source, config) != _architecture(first, config):
            raise ValueError(
                f"{first.path} and {source.path} have different models or policies, so they cannot share the "
                "built-in reference run; make one with `admrl reference` and pass it as `reference`, or set "
                "`config.num_reference_stages` to 0"
            )


def _architecture(source: ModelSource, config: EvaluationConfig) -> tuple[object, ...]:
    """What the sources must have in common; samples per update are the evaluation's, whatever the training's were."""
    shapes = tuple(tuple(p.shape) for p in source.learner.model.parameters())
    policy, virtual = source.policy, replace(source.virtual, num_samples=config.num_samples)
    return shapes, virtual, policy.hidden_sizes, policy.fixed_log_std


def num_pooled_steps(source: ModelSource, config: EvaluationConfig) -> int:
    """Calls of `Reporter.advance` in `pooled_reference`, for progress bars."""
    return config.num_updates + num_slbo_steps(_slbo(source, config), source.virtual)


def _slbo(source: ModelSource, config: EvaluationConfig) -> SlboConfig:
    return SlboConfig(
        num_stages=config.num_reference_stages,
        num_iterations=math.ceil(config.num_reference_updates / source.virtual.num_policy_updates),
        num_samples=config.num_reference_samples,
    )


def pooled_reference(
    sources: Sequence[ModelSource],
    tasks: TaskList,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> PooledReference:
    """A reference run on M tasks; it does not depend on the order of the sources.

    One model is fine-tuned on the data of all sources; then SLBO runs on all tasks together, pooling their
    real samples. It sees far more real data of the tasks than any method that is evaluated.
    """
    reporter, samples = reporter or Silent(), SampleCounts()
    sources = sorted(sources, key=lambda source: str(source.path))
    family, virtual, psi = sources[0].family, sources[0].virtual, tasks.psi
    generators = task_streams(seed, Purpose.POOLED, 1, family.box.to_unit(psi))
    learner = sources[0].learner.fork([stream(seed, Purpose.POOLED_MODEL)])
    for source in sources[1:]:
        data = source.learner.data[0]
        learner.data[0].extend(data)
        fit = ~data.is_held_out
        learner.model.update_normalizers(data.obs[fit], data.next_obs[fit])
    fit_or_restore(learner, 10 * virtual.num_model_steps, reporter)
    reporter.phase(f"reference, zero-shot, {len(psi)} tasks")
    solution = zero_shot(
        family,
        learner.model,
        psi,
        sources[0].policy,
        1,
        evaluation_virtual(virtual, config),
        generators,
        reporter=reporter,
        samples=samples,
        allow_outside=tasks.allow_outside,
    )
    reporter.phase(f"reference, SLBO, {len(psi)} tasks together")
    solution = slbo_adapt(
        family,
        learner,
        solution,
        _slbo(sources[0], config),
        replace(virtual, num_samples=config.num_samples),
        generators,
        num_threads=num_threads,
        reporter=reporter,
        samples=samples,
    )
    policy = SolutionPolicy(solution)
    returns = score_for_every_seed(
        family,
        policy,
        solution.psi,
        config.num_policy_seeds,
        config.num_episodes,
        seed,
        num_threads=num_threads,
    )
    return PooledReference(returns, samples.real)
