"""A_n(psi), AdMRL section 5: return after n real samples of the test task, for n = 0, 2000, 4000, 6000.

    theta_hat = zero-shot policy in the frozen model          A_0 = its real return
    for every stage:
      collect 2000 real samples of psi with exploration noise
      fit the task's own copy of the model, train theta inside it (SLBO)
      A_n = the real return of theta, without noise

Tasks are independent: each starts from the trained model, its normalisers and its data, and adapts a copy. All tasks
of a batch run together: one shared model while it is frozen, batched models once they are fine-tuned. Samples are
counted apart: adaptation (n, the held-out ones among them), held-out, scoring, virtual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import slbo_adapt, zero_shot
from admrl.config import EvaluationConfig, SlboConfig, VirtualTrainingConfig, evaluation_virtual
from admrl.evaluation import score, task_generators
from admrl.reporting import Reporter, Silent
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily

COUNTS = ("adaptation", "held_out", "scoring", "virtual")
PROBE_LANES = 2  # scoring episodes per task whose transitions all models are tested on


@dataclass(frozen=True, eq=False)
class Adapted:
    """Returns and costs of R policy seeds on M tasks at J sample counts."""

    episode_return: np.ndarray  # (R, M, J, N) undiscounted, N episodes
    counts: (
        np.ndarray
    )  # (R, M, J, 4) samples of each kind of COUNTS, since the start, per task and policy seed
    probe: np.ndarray  # (M, P, 2 S + A) real (obs, act, next_obs) of the first seed's zero-shot policies


def joined(parts: Sequence[Adapted]) -> Adapted:
    """Batches of tasks put together again."""
    return Adapted(
        np.concatenate([p.episode_return for p in parts], axis=1),
        np.concatenate([p.counts for p in parts], axis=1),
        np.concatenate([p.probe for p in parts]),
    )


def adapted_returns(
    family: TaskFamily,
    learner: ModelLearner,
    policy: GaussianPolicy,
    psi: Tensor,
    virtual: VirtualTrainingConfig,
    config: EvaluationConfig,
    seed: int,
    *,
    policy_seeds: Sequence[int] | None = None,
    allow_outside: bool = False,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> Adapted:
    """A_n of M tasks and R policy seeds, all in one batch; see the head of this page.

    The learner is not changed. Initial policies, initial states and noise depend on seed, task and policy seed
    alone, so every method is given the same.

    Args:
        psi: (M, k)
        virtual: how policies are trained in the model; the evaluation's own counts replace its.
        policy_seeds: which ones; all of the configuration by default.

    Raises:
        ValueError: psi has the wrong shape or is outside the box.
    """
    reporter = reporter or Silent()
    chosen = range(config.num_policy_seeds) if policy_seeds is None else policy_seeds
    rows = psi.repeat(len(chosen), 1)  # (R M, k), seed-major
    unit = family.box.to_unit(psi)
    generators = task_generators(seed, chosen, unit)
    reporter.phase(f"zero-shot, {len(rows)} policies", config.num_updates)
    solution = zero_shot(
        family,
        learner.model,
        rows,
        policy,
        1,
        evaluation_virtual(virtual, config),
        generators,
        reporter=reporter,
        allow_outside=allow_outside,
    )
    scored = score(family, solution, config.num_episodes, seed, num_threads=num_threads)
    first = scored.rollout.tasks(slice(0, len(psi))).lanes(slice(0, PROBE_LANES))
    probe = torch.cat([first.obs, first.act, first.next_obs], dim=-1).flatten(1, 2).numpy()
    returns, held_out = [scored.returns], [np.zeros(len(rows), dtype=int)]
    # a model and data for every row
    forked = learner.fork(task_generators(seed + 3, chosen, unit)) if config.num_stages else learner
    before = num_held_out(forked)
    for stage in range(1, config.num_stages + 1):
        n = stage * config.num_stage_samples
        reporter.phase(f"adaptation to n = {n}, {len(rows)} policies", _num_stage_steps(config))
        solution = slbo_adapt(
            family,
            forked,
            solution,
            SlboConfig(1, config.num_stage_iterations, config.num_stage_samples),
            stage_virtual(virtual, config),
            generators,
            num_threads=num_threads,
            reporter=reporter,
        )
        returns.append(score(family, solution, config.num_episodes, seed, num_threads=num_threads).returns)
        held_out.append(num_held_out(forked) - before)
    shape = (len(chosen), len(psi), config.num_stages + 1)
    return Adapted(
        episode_return=np.stack(returns, axis=1).reshape(*shape, config.num_episodes),
        counts=_counts(np.stack(held_out, axis=1), config, family.horizon).reshape(*shape, len(COUNTS)),
        probe=probe,
    )


def stage_virtual(virtual: VirtualTrainingConfig, config: EvaluationConfig) -> VirtualTrainingConfig:
    """Virtual training of an adaptation stage."""
    return replace(
        virtual,
        num_model_steps=config.num_stage_model_steps,
        num_policy_updates=config.num_stage_updates,
        num_samples=config.num_samples,
    )


def _num_stage_steps(config: EvaluationConfig) -> int:
    return 1 + config.num_stage_iterations * config.num_stage_updates


def num_held_out(learner: ModelLearner) -> np.ndarray:
    """Held-out transitions of every model's data (K,)."""
    return np.array([int(d.is_held_out.sum()) for d in learner.data])


def _counts(held_out: np.ndarray, config: EvaluationConfig, horizon: int) -> np.ndarray:
    """Samples of every kind: held_out (rows, J) -> (rows, J, 4), since the start."""
    stage = np.arange(held_out.shape[1])
    updates = config.num_updates + stage * config.num_stage_iterations * config.num_stage_updates
    columns = (
        stage * config.num_stage_samples,
        held_out,
        (stage + 1) * config.num_episodes * horizon,
        updates * config.num_samples,
    )
    return np.stack([np.broadcast_to(c, held_out.shape) for c in columns], axis=-1)


def num_steps(config: EvaluationConfig) -> int:
    """Calls of `Reporter.advance` that one batch makes; for progress bars."""
    return config.num_updates + config.num_stages * _num_stage_steps(config)


def zero_shot_returns(
    family: TaskFamily,
    learner: ModelLearner,
    policy: GaussianPolicy,
    psi: Tensor,
    virtual: VirtualTrainingConfig,
    config: EvaluationConfig,
    seed: int,
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> np.ndarray:
    """A_0 on M tasks, all tasks and policy seeds in one batch: episodes (R, M, N); see `adapted_returns`."""
    adapted = adapted_returns(
        family,
        learner,
        policy,
        psi,
        virtual,
        replace(config, num_stages=0),
        seed,
        num_threads=num_threads,
        reporter=reporter,
    )
    return adapted.episode_return[:, :, 0]


@torch.no_grad()
def model_errors(model: DynamicsEnsemble, probe: Tensor, scale: Tensor) -> np.ndarray:
    """One-step error of a model on real transitions of M tasks (AdMRL Fig. 6): (M,), per unit of scale.

    Root mean square over coordinates of (predicted s' - true s') / scale, averaged over transitions and over the
    members of the ensemble. Transitions of unstable simulations are left out; nan if none is left.

    Args:
        probe: (M, P, 2 S + A), see `Adapted`.
        scale: (S,), e.g. the standard deviation of s' - s over the transitions of all tasks.
    """
    obs, act, next_obs = probe.to(model.weights[0]).split(
        [model.obs_size, model.act_size, model.obs_size], -1
    )
    flat = [x.flatten(0, 1).expand(1, model.num_members, -1, -1) for x in (obs, act)]
    predicted = model(*flat)[0].unflatten(1, probe.shape[:2])  # (E, M, P, S)
    error = ((predicted - next_obs) / scale.to(predicted)).square().mean(-1).sqrt().mean(0)  # (M, P)
    finite = probe.isfinite().all(-1)
    total = torch.where(finite, error, torch.zeros_like(error)).double().sum(-1)
    return (total / finite.sum(-1)).numpy()  # 0 / 0 is nan


def probe_scale(probe: Tensor, obs_size: int) -> Tensor:
    """Standard deviation of s' - s over transitions (..., 2 S + A) of all tasks: (S,), at least 1e-6."""
    rows = probe.flatten(0, -2)
    rows = rows[rows.isfinite().all(-1)]
    return (rows[:, -obs_size:] - rows[:, :obs_size]).std(0).clamp(min=1e-6)
