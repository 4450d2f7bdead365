"""Settings of soft actor-critic, as the baselines and the learner "mbpo" train by it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SacConfig:
    """Soft actor-critic."""

    hidden_sizes: tuple[int, ...] = (300, 300, 300)
    """Widths of the ReLU layers of policy, Q and V. PEARL: 300 300 300."""
    batch_size: int = field(default=256, metadata={"range": (1, 100_000)})
    """Transitions of each task in a step. PEARL: 256."""
    learning_rate: float = field(default=3e-4, metadata={"range": (0, 1)})
    """Of Adam, for all networks. PEARL: 3e-4."""
    learning_rate_decay: Literal["none", "linear"] = "none"
    """linear: to 0 at the last gradient step of the training. PEARL: none. [ours]"""
    gamma: float | None = field(default=None, metadata={"range": (0, 1)})
    """Discount per step; None: the family's. PEARL: 0.99; 0.9 for the sparse point robot."""
    tau: float = field(default=0.005, metadata={"range": (0, 1)})
    """Share of the new network in the target network, per step. PEARL: 0.005."""
    reward_scale: float = field(default=5.0, metadata={"range": (0, 1e6)})
    """Factor of the reward, the inverse of a fixed temperature. PEARL: 5; 100 for the point robots."""
    temperature: float | None = field(default=1.0, metadata={"range": (0, 1e6)})
    """alpha; None: adjusted until the entropy is -A (CRL Eq. 4). PEARL: 1, absorbed in the reward scale."""
    use_value: bool = True
    """A network V with a target V (PEARL); otherwise target networks of Q (SAC of 2018, second version)."""
    mean_penalty: float = field(default=1e-3, metadata={"range": (0, 1e3)})
    """Of the squared mean of the Gaussian before the tanh. PEARL: 1e-3."""
    log_std_penalty: float = field(default=1e-3, metadata={"range": (0, 1e3)})
    """Of the squared logarithm of its standard deviation. PEARL: 1e-3."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in a gradient step; weights and losses stay float32. [ours]"""
