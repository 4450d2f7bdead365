"""Configuration of policy optimisation. Free of torch, so that the command line can describe it at once.

`range` in a field's metadata is what `admrl.config.check_config` allows, both ends included.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrpoConfig:
    """Trust-region policy optimisation (Schulman et al. 2015)."""

    max_kl: float = field(default=0.01, metadata={"range": (1e-8, 10)})
    """Trust region: mean KL(old || new) per state, in nats. Released AdMRL code: 0.01."""
    cg_steps: int = field(default=10, metadata={"range": (1, 1000)})
    """Steps of conjugate gradients for the natural gradient. Released code: 10."""
    cg_damping: float = field(default=0.1, metadata={"range": (0, 1e3)})
    """Added to the diagonal of the Fisher matrix. Released code: 0.1."""
    max_backtracks: int = field(default=10, metadata={"range": (0, 60)})
    """Halvings of the step before the update is rejected. Released code: 10."""
    kl_slack: float = field(default=1.5, metadata={"range": (1, 10)})
    """A step is accepted up to kl_slack * max_kl. Released code: 1.5."""
    entropy_bonus: float = field(default=0.005, metadata={"range": (0, 10)})
    """Weight of the policy's entropy in the objective, nats. Released code: 0.005."""
    fisher_fraction: float = field(default=1.0, metadata={"range": (0.001, 1)})
    """Share of the states (evenly spaced) that the Fisher products use; 1 is all of them."""


@dataclass(frozen=True)
class ValueConfig:
    """The state-value function and the advantage estimate."""

    gae_lambda: float = field(default=0.95, metadata={"range": (0, 1)})
    """lambda of generalised advantage estimation. Released code: 0.95."""
    num_features: int = field(default=128, metadata={"range": (1, 10_000)})
    """Random tanh features of the value function, fitted by ridge regression."""
    ridge: float = field(default=1e-3, metadata={"range": (1e-12, 1e6)})
    """Ridge penalty relative to the mean squared feature."""
