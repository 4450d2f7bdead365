"""Settings of RL2 and their presets. Free of torch, so that the command line can describe them.

`preset_config(preset, family)`: `paper` has the sizes of Duan et al. (2016) for bandits; elsewhere iterations, tasks
and trials of ProMP's released RL2, and network and PPO of varibad. `laptop` and `smoke` are ours. [ours] marks a
number that no paper states. varibad: the PyTorch RL2 of Zintgraf et al. (2020).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from admrl.config.checks import check_config, check_training_tasks
from admrl.config.methods import METHODS

TITLES = METHODS["recurrent"]
WHOLE_EPISODES: tuple[str, ...] = ()
"""Settings that a preset rounds to whole episodes: none, a trial is counted in them."""
BeyondTrial = Literal["keep", "restart"]


@dataclass(frozen=True)
class PpoConfig:
    """The update of RL2; see `admrl.recurrent.ppo`."""

    learning_rate: float = field(default=7e-4, metadata={"range": (0, 1)})
    """Of Adam. varibad: 7e-4; ProMP's RL2: 1e-3."""
    num_epochs: int = field(default=2, metadata={"range": (1, 10_000)})
    """Passes over the trials of an iteration. varibad: 2; ProMP's RL2: 5."""
    num_minibatches: int = field(default=4, metadata={"range": (1, 10_000)})
    """Of whole trials, a gradient step each. varibad: 4; ProMP's RL2: 1."""
    clip: float = field(default=0.1, metadata={"range": (1e-6, 1e6)})
    """epsilon, of the ratio. varibad: 0.1; ProMP's RL2: 0.2."""
    value_weight: float = field(default=0.5, metadata={"range": (0, 1e6)})
    """Of the value's squared error. varibad: 0.5."""
    entropy_weight: float = field(default=0.01, metadata={"range": (0, 1e6)})
    """Of the policy's entropy, nats. varibad: 0.01; garage: 0.02."""
    max_grad_norm: float = field(default=0.5, metadata={"range": (1e-6, 1e6)})
    """Longer gradients are shortened to it. varibad: 0.5."""


@dataclass(frozen=True)
class RecurrentConfig:
    """Meta-training of a recurrent policy, and its test protocol."""

    num_iterations: int = field(default=501, metadata={"range": (1, 1_000_000)})
    """Samplings, each followed by an update. ProMP's RL2: 501; Duan et al.: up to 1000."""
    meta_batch: int = field(default=100, metadata={"range": (1, 1_000_000)})
    """Tasks of an iteration. ProMP's RL2: 100."""
    num_tasks: int | None = field(default=None, metadata={"range": (1, 100_000)})
    """Training tasks, drawn once by the run's seed; an iteration draws of them with replacement. None: all, drawn
    anew in every iteration. The robustness study varies it."""
    withheld: tuple[float, ...] = ()
    """Tasks that the training never draws: those in this box, given by its lows and then its highs, one of each a
    task parameter. The robustness study: all directions but those from 0 to 90 degrees."""
    num_trials: int = field(default=1, metadata={"range": (1, 100_000)})
    """Trials of every task, each from an empty memory. ProMP's RL2: 1."""
    trial_episodes: int = field(default=2, metadata={"range": (1, 10_000)})
    """Episodes of a trial, over which the memory lasts. ProMP's RL2, varibad: 2; bandits: 1."""
    hidden_size: int = field(default=128, metadata={"range": (1, 100_000)})
    """Units of the GRU. varibad: 128; ProMP's RL2: 64 (an LSTM); Duan et al.: 256."""
    action_scale: float = field(default=10.0, metadata={"range": (1e-3, 1e6)})
    """Half the range of an action in units of the policy, whose standard deviation begins at 1. ProMP: 10."""
    gamma: float | None = field(default=None, metadata={"range": (0, 1)})
    """Discount per step, over the whole trial; None: the family's. ProMP's RL2, Duan et al.: 0.99."""
    gae_lambda: float = field(default=0.9, metadata={"range": (0, 1)})
    """lambda of generalised advantage estimation. varibad: 0.9; Duan et al.: 0.3 for bandits."""
    beyond_trial: BeyondTrial = "keep"
    """Test: what happens to the memory after more episodes than a trial of the training has. keep: it goes on, as in
    the papers' runs, into lengths that were never trained. restart: it begins anew, so that every scored episode is
    the last of a trial of the trained length."""
    num_test_tasks: int = field(default=20, metadata={"range": (1, 100_000)})
    """Tasks of the learning curve: the published test tasks, at most so many, or drawn once. [ours]"""
    test_every: int = field(default=10, metadata={"range": (1, 1_000_000)})
    """Iterations between two points of the learning curve. [ours]"""
    ppo: PpoConfig = PpoConfig()


BANDITS: dict[str, int] = {
    "bernoulli_bandit_5": 10,
    "bernoulli_bandit_5x100": 100,
    "bernoulli_bandit_10": 100,
    "bernoulli_bandit_50": 500,
}
"""Pulls of an episode."""
DUAN_BATCH = 250_000
"""Steps of an iteration, for bandits (Duan et al.)."""


def paper_config(family: str) -> RecurrentConfig:
    """The sizes of the papers; see the fields. Duan et al. used TRPO; the update here is one for all families."""
    if family not in BANDITS:
        return RecurrentConfig()
    return RecurrentConfig(
        num_iterations=1000,
        meta_batch=DUAN_BATCH // BANDITS[family],
        trial_episodes=1,
        hidden_size=256,
        gae_lambda=0.3,
    )


def preset_config(preset: str, family: str, algorithm: str = "rl2") -> RecurrentConfig:
    """The settings that a user then changes.

    laptop [ours]: fewer tasks and iterations; bandits and the point robots have their own. smoke: seconds.
    """
    config = paper_config(family)
    if preset != "paper":
        config = _laptop(config, family)
    if preset == "smoke":
        small: dict[str, Any] = {"num_iterations": 2, "meta_batch": 4, "num_trials": 2, "hidden_size": 8}
        config = replace(config, **small, num_test_tasks=2, test_every=1)
    return config


def _laptop(config: RecurrentConfig, family: str) -> RecurrentConfig:
    """Fewer samples, and more and longer steps on them."""
    ppo = replace(config.ppo, learning_rate=2e-3, num_epochs=4, num_minibatches=8, clip=0.2)
    config = replace(config, hidden_size=64, gae_lambda=0.9, ppo=ppo)
    if family in BANDITS:
        num_iterations, meta_batch = {10: (100, 1000), 100: (160, 300), 500: (160, 60)}[BANDITS[family]]
        return replace(
            config, num_iterations=num_iterations, meta_batch=meta_batch, num_test_tasks=200, test_every=5
        )
    if family in ("point_robot", "sparse_point_robot"):
        return replace(config, num_iterations=100, meta_batch=400, action_scale=1.0, test_every=5)
    return replace(config, num_iterations=200, meta_batch=40, test_every=5)


def check_recurrent(config: RecurrentConfig, family: Any) -> None:
    """Refuse settings that cannot work, before any work.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    check_config(config)
    check_training_tasks(config, family)
    num_trials = config.meta_batch * config.num_trials
    if config.ppo.num_minibatches > num_trials:
        raise ValueError(
            f"config.ppo.num_minibatches: expected at most {num_trials} (meta_batch x num_trials: whole trials), "
            f"got {config.ppo.num_minibatches}"
        )
