"""Configuration of the learned dynamics. Free of torch, so that the command line can describe it at once.

`range` in a field's metadata is what `admrl.config.check_config` allows, both ends included.
"""

from dataclasses import dataclass, field
from typing import Literal

RolloutPrecision = Literal["full", "bfloat16"]
Predicts = Literal["mean", "gaussian"]


@dataclass(frozen=True)
class DynamicsConfig:
    """The networks of the dynamics model."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the ReLU layers. Released AdMRL code: 1000 1000."""
    num_members: int = field(default=4, metadata={"range": (1, 100)})
    """E, networks in the ensemble; every virtual trajectory runs in one of them. The paper has 1."""
    output_scale: float = field(default=0.01, metadata={"range": (0, 10)})
    """Initial weights of the last layer relative to the others: near 0 predicts the mean change of state."""
    predicts: Predicts = "mean"
    """mean: the change of state, fitted by SLBO's loss. gaussian: its mean and variance, fitted by likelihood, and
    virtual steps are drawn from them (PETS, Chua et al. 2018; MBPO, Janner et al. 2019). AdMRL, SLBO: mean."""


@dataclass(frozen=True)
class FitConfig:
    """Fitting the model to real transitions (SLBO's multi-step loss, Luo et al. 2018)."""

    batch_size: int = field(default=256, metadata={"range": (1, 1_000_000)})
    """Windows per step and member, drawn with replacement. Released code: 256."""
    num_horizon: int = field(default=1, metadata={"range": (1, 100)})
    """H, steps that the model is rolled out in the loss. Released code: 1."""
    learning_rate: float = field(default=1e-3, metadata={"range": (1e-8, 1)})
    """Adam step size. Released code: 1e-3."""
    weight_decay: float = field(default=1e-5, metadata={"range": (0, 1)})
    """L2 penalty on all parameters. Released code: 1e-5."""
    max_grad_norm: float = field(default=2.0, metadata={"range": (1e-8, 1e8)})
    """Each member's gradient is clipped to this norm. Released code: 2."""
    held_out: float = field(default=0.1, metadata={"range": (0, 0.9)})
    """Share of the collected lanes that is kept for validation and never fitted."""


def check_horizon(dynamics: DynamicsConfig, fit: FitConfig) -> None:
    """Refuse a likelihood of several steps: gaussian members know the variance of one alone.

    Raises:
        ValueError: names both settings.
    """
    if dynamics.predicts == "gaussian" and fit.num_horizon > 1:
        raise ValueError(
            "config.fit.num_horizon: expected 1 with `config.dynamics.predicts` gaussian, whose likelihood is of one "
            f"step; got {fit.num_horizon}"
        )
