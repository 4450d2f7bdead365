"""The presets of meta-training: they only fill values in."""

from __future__ import annotations

from admrl.config.training import (
    MetaTrainConfig,
    ResolveConfig,
    SlboConfig,
    TaskGradientConfig,
    VirtualTrainingConfig,
)
from dynamics.config import DynamicsConfig
from policy_opt.config import TrpoConfig

_PAPER = MetaTrainConfig(
    virtual=VirtualTrainingConfig(trpo=TrpoConfig(fisher_fraction=0.25)),
    dynamics=DynamicsConfig(hidden_sizes=(1000, 1000), num_members=1),
)
_LAPTOP = MetaTrainConfig(
    num_tasks=6,
    num_zero_shot=6,
    num_first_stages=4,
    slbo=SlboConfig(num_stages=2, num_iterations=6, num_samples=4000),
    virtual=VirtualTrainingConfig(
        num_model_steps=100, num_policy_updates=10, num_samples=4000, trpo=TrpoConfig(fisher_fraction=0.25)
    ),
    gradient=TaskGradientConfig(
        num_samples=4000,
        num_extra_episodes=8,
        resolve=ResolveConfig(num_updates=5, num_replicates=2, num_episodes=2),
    ),
)
_SMOKE = MetaTrainConfig(
    num_tasks=3,
    num_zero_shot=1,
    num_first_stages=1,
    slbo=SlboConfig(num_stages=1, num_iterations=1, num_samples=800),
    virtual=VirtualTrainingConfig(num_model_steps=5, num_policy_updates=2, num_samples=800),
    dynamics=DynamicsConfig(hidden_sizes=(32,), num_members=2),
    gradient=TaskGradientConfig(
        num_samples=800,
        num_extra_episodes=0,
        max_steps=3,
        polish_steps=1,
        resolve=ResolveConfig(num_updates=1, num_replicates=2, num_episodes=2, num_virtual_episodes=1),
    ),
)
PRESETS = {"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER}
"""smoke: seconds, proves the installation; laptop: minutes; paper: Table 1 and App. C, hours."""
