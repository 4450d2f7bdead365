"""Settings of a model that is fitted to logged transitions. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynamics.config import DynamicsConfig, FitConfig


@dataclass(frozen=True)
class DataFitConfig:
    """The networks, their fit, and its length."""

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """The networks."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(held_out=0.2))
    """The loss and its optimiser; `held_out` is the share of the episodes that the report is made on."""
    num_steps: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """Adam steps."""
