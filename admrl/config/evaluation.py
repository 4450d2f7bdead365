"""Configuration of the evaluation on test tasks, and of the reference returns A*."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from admrl.config.training import (
    VirtualTrainingConfig,
)

REFERENCE_METHODS = ("slbo", "trpo", "sac")
PARTS = ("gap", "optimisation", "model")
"""The gap and what it is the sum of; see `admrl.evaluation.gap_table`."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Zero-shot evaluation on a grid of tasks and the reference returns that it is compared with."""

    num_policy_seeds: int = field(default=3, metadata={"range": (1, 1000)})
    """R, policies solved per task: one alone is dominated by the noise of its optimisation."""
    num_episodes: int = field(default=40, metadata={"range": (1, 100_000)})
    """Real episodes per policy that its return is averaged over."""
    num_updates: int = field(default=100, metadata={"range": (1, 100_000)})
    """TRPO updates of a zero-shot policy (n_zeroshot x n_policy)."""
    num_samples: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """Virtual steps per update and policy; a multiple of horizon x ensemble members."""
    num_reference_stages: int = field(default=3, metadata={"range": (0, 10_000)})
    """SLBO stages of the reference run, all grid tasks together; 0: only the methods themselves."""
    num_reference_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Real steps per stage and task of the reference run; a multiple of the horizon."""
    num_reference_updates: int = field(default=60, metadata={"range": (1, 1_000_000)})
    """TRPO updates per stage of the reference run."""
    num_stages: int = field(default=0, metadata={"range": (0, 1000)})
    """SLBO stages after zero-shot, each task on its own copy of the model. 0: A_0 alone. Paper: 3."""
    num_stage_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Real steps per stage and task; a multiple of the horizon. Paper: 2000."""
    num_stage_iterations: int = field(default=6, metadata={"range": (1, 100_000)})
    """n_inner, virtual-training iterations per stage. Paper: 20."""
    num_stage_updates: int = field(default=10, metadata={"range": (1, 100_000)})
    """n_policy, TRPO updates per iteration. Paper: 20."""
    num_stage_model_steps: int = field(default=100, metadata={"range": (0, 1_000_000)})
    """n_model, optimiser steps of each task's model per iteration. Paper: 100."""
    tasks_per_batch: int = field(default=12, metadata={"range": (1, 10_000)})
    """Tasks that adapt in one batch, and that are computed again if an evaluation is interrupted. On a GPU: all."""


@dataclass(frozen=True)
class ReferenceConfig:
    """Long training on the test tasks themselves, for A*: SLBO on all together, TRPO and SAC on each alone."""

    num_stages: int = field(default=10, metadata={"range": (1, 10_000)})
    """SLBO: stages, the first from nothing."""
    num_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """SLBO: real steps per stage and task; a multiple of the horizon. All tasks share the model and the data."""
    num_iterations: int = field(default=6, metadata={"range": (1, 100_000)})
    """SLBO: virtual-training iterations per stage."""
    num_model_steps: int = field(default=200, metadata={"range": (0, 1_000_000)})
    """SLBO: optimiser steps of the model per iteration."""
    num_updates: int = field(default=10, metadata={"range": (1, 100_000)})
    """SLBO: TRPO updates per iteration."""
    num_virtual_samples: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """SLBO: virtual steps per update and task; a multiple of horizon x ensemble members."""
    trpo_stages: int = field(default=10, metadata={"range": (1, 10_000)})
    """TRPO: times that its policies are kept; more of them go on where an earlier training stopped."""
    trpo_updates: int = field(default=20, metadata={"range": (1, 100_000)})
    """TRPO: updates per stage."""
    trpo_samples: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """TRPO: real steps per update and task; a multiple of the horizon."""
    sac_steps: int = field(default=50_000, metadata={"range": (200, 100_000_000)})
    """SAC: real steps per task and seed, with stable-baselines3's own settings."""
    num_episodes: int = field(default=40, metadata={"range": (2, 100_000)})
    """Real episodes that a policy's return is averaged over."""


def evaluation_virtual(config: VirtualTrainingConfig, evaluation: EvaluationConfig) -> VirtualTrainingConfig:
    """Zero-shot training as the evaluation runs it: one iteration of its own updates, in a frozen model."""
    return replace(
        config,
        num_model_steps=0,
        num_policy_updates=evaluation.num_updates,
        num_samples=evaluation.num_samples,
    )
