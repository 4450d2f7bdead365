"""Settings of MACAW and their presets. Free of torch, so that the command line can describe them.

`preset_config(preset, family, algorithm)`: `paper` has the sizes of the released configuration (`standard.json`);
`laptop` and `smoke` are ours. [ours] marks a number that no paper states.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from admrl.config.checks import check_config
from admrl.config.methods import METHODS, check_whole_episodes
from admrl.config.sac import SacConfig

TITLES = METHODS["offline"]
ALGORITHMS = tuple(TITLES)
WHOLE_EPISODES = ("num_adapt_samples", "num_buffer_samples")
"""Counts that are whole episodes."""
BUFFERS_PER_STEP = 10
"""Buffers that are recorded together, in a step. The SAC learners of ten tasks take 1.1 CPU ms a sample and task,
those of two 2.8 and of forty 0.75 (point robot, laptop)."""
UPDATES_PER_STEP = 10
"""Outer updates of a step, after which the training can stop and go on bit-identically."""
BANDITS = ("bernoulli_bandit_5", "bernoulli_bandit_5x100", "bernoulli_bandit_10", "bernoulli_bandit_50")
PUBLISHED = {"half_cheetah_fwd_back": 2, "ant_fwd_back": 2, "half_cheetah_vel": 35, "ant_dir": 45}
"""Training tasks of the released data, or of the family's published sets."""


@dataclass(frozen=True)
class MacawConfig:
    """Meta-training from recorded data of many tasks, and its test protocol."""

    data: tuple[str, ...] = ()
    """Recorded data of training tasks: folders of finished or unfinished runs of `admrl train-baseline` that keep a
    replay, or of Minari data sets. None: recorded in the simulator, and counted."""
    data_sha256: tuple[str, ...] = ()
    """Of the transitions of each of `data`, filled in when the run is made."""
    num_tasks: int = field(default=12, metadata={"range": (1, 10_000)})
    """Buffers, one for each training task: the first published tasks, or drawn once; of `data`, the first ones, at
    most so many. MACAW: 45 (Ant-Dir), 35 (Cheetah-Vel), 2 (Cheetah-Dir); the robustness study's bandit: 12."""
    num_buffer_samples: int = field(default=100_000, metadata={"range": (1, 100_000_000)})
    """Real samples that are recorded of every training task. MACAW: 1e5 to 2.5e6; the study's bandit: 5000."""
    thinning: int = field(default=7, metadata={"range": (1, 10_000)})
    """Of every so many transitions of a buffer one is used, in training. MACAW: 7."""
    num_iterations: int = field(default=1_000_000, metadata={"range": (1, 100_000_000)})
    """Outer updates, a multiple of 10. MACAW: up to 1e6; the study: 1e5 (Half-Cheetah-Dir), 250 (bandit)."""
    meta_batch: int = field(default=5, metadata={"range": (1, 10_000)})
    """Tasks of an outer update, without replacement; all, where there are fewer. MACAW: 5."""
    inner_batch: int = field(default=256, metadata={"range": (2, 1_000_000)})
    """Consecutive transitions of an inner step. MACAW: 256."""
    outer_batch: int = field(default=256, metadata={"range": (2, 1_000_000)})
    """Other transitions of the task for the outer loss. MACAW: 256."""
    hidden_sizes: tuple[int, ...] = (100, 100, 100)
    """Widths of the ReLU layers of policy and V. MACAW: 100 100 100."""
    latent_size: int = field(default=100, metadata={"range": (1, 10_000)})
    """Of the code z of every layer. MACAW: 100."""
    head_size: int = field(default=32, metadata={"range": (1, 10_000)})
    """Width of the hidden layer of the advantage head. MACAW: 32."""
    sigma: float = field(default=0.2, metadata={"range": (1e-6, 10)})
    """Standard deviation of unit actions, fixed. MACAW: 0.2. Of no use where actions are choices."""
    gamma: float | None = field(default=None, metadata={"range": (0, 1)})
    """Discount per step; None: the family's. MACAW: 0.99."""
    temperature: float = field(default=1.0, metadata={"range": (1e-6, 1e6)})
    """T, in standard deviations of the advantages of a batch. MACAW: 1."""
    max_weight: float = field(default=20.0, metadata={"range": (1, 1e9)})
    """Largest weight of a transition. MACAW: 20."""
    value_rate: float = field(default=1e-5, metadata={"range": (0, 1)})
    """Of Adam, for V. MACAW: 1e-5."""
    policy_rate: float = field(default=1e-4, metadata={"range": (0, 1)})
    """Of Adam, for the policy. MACAW: 1e-4."""
    inner_rate: float = field(default=1e-3, metadata={"range": (1e-12, 1e3)})
    """First step size of every tensor in an inner step. MACAW: 1e-3."""
    rate_rate: float = field(default=1e-3, metadata={"range": (0, 1)})
    """Of Adam, for the inner step sizes and the weight of the advantage loss. MACAW: 1e-3."""
    advantage_weight: float = field(default=0.01, metadata={"range": (1e-12, 1e6)})
    """First weight lambda of the advantage loss. MACAW: 0.01."""
    target_keep: float = field(default=0.9, metadata={"range": (0, 1)})
    """Share of phi in the target network of the outer loss of V. MACAW: 0.9."""
    test_data: Literal["offline", "online"] = "offline"
    """Test: whose episodes the adaptation samples are. offline: of the learner that records the buffers, from the
    beginning of a lifetime of as many samples as are adapted on (MACAW: the test task's buffer). online: of the
    policy itself, stochastic."""
    num_adapt_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Adaptation samples of the points of the learning curve. [ours]"""
    num_test_tasks: int = field(default=20, metadata={"range": (1, 10_000)})
    """Tasks of the learning curve: the published test tasks, at most so many, or drawn once. [ours]; MACAW: 5."""
    test_every: int = field(default=2500, metadata={"range": (1, 100_000_000)})
    """Outer updates between two points of the learning curve, a multiple of 10. [ours]; MACAW: 250."""
    updates_per_sample: float = field(default=1.0, metadata={"range": (0, 1000)})
    """Gradient steps of the SAC that records a buffer, for each sample. [ours]"""
    sac: SacConfig = SacConfig(
        hidden_sizes=(256, 256),
        temperature=None,
        use_value=False,
        reward_scale=1.0,
        mean_penalty=0.0,
        log_std_penalty=0.0,
    )
    """Of the learners that record buffers, where the family is no bandit. [ours]: the second version of SAC."""


def paper_config(family: str) -> MacawConfig:
    """The sizes of the released configuration; see the fields."""
    config = MacawConfig(num_tasks=PUBLISHED.get(family, 12))
    if family in BANDITS:
        # the maml-pt bandit ends after every pull, so that a return is an outcome
        config = replace(config, num_buffer_samples=5000, thinning=1, gamma=0.0, num_adapt_samples=1000)
    return config


def preset_config(preset: str, family: str, algorithm: str) -> MacawConfig:
    """The settings that a user then changes.

    laptop [ours]: networks of 64 and codes of 32, buffers of 10 000 and 10 000 outer updates; bandits and point
    robots have their own. smoke: seconds.
    """
    config = paper_config(family)
    if preset != "paper":
        config = replace(
            config,
            num_buffer_samples=min(config.num_buffer_samples, 10_000),
            thinning=1,
            num_iterations=10_000,
            hidden_sizes=(64, 64),
            latent_size=32,
            value_rate=1e-3,
            policy_rate=1e-3,
            inner_rate=1e-2,
            rate_rate=1e-2,
            sac=replace(config.sac, hidden_sizes=(64, 64), batch_size=128, learning_rate=1e-3),
        )
        if family in BANDITS:
            config = replace(config, num_iterations=500, hidden_sizes=(32, 32), latent_size=16, test_every=50)
        elif family in ("point_robot", "sparse_point_robot"):
            robots: dict[str, Any] = {"num_tasks": 40, "num_buffer_samples": 3000, "num_adapt_samples": 1000}
            config = replace(config, num_iterations=4000, test_every=1000, **robots)
    if preset == "smoke":
        config = replace(
            config,
            num_iterations=20,
            num_tasks=min(config.num_tasks, 3),
            num_buffer_samples=400,
            meta_batch=2,
            inner_batch=32,
            outer_batch=32,
            hidden_sizes=(8, 8),
            latent_size=4,
            head_size=4,
            num_test_tasks=2,
            test_every=10,
            num_adapt_samples=400,
            updates_per_sample=0.05,
            sac=replace(config.sac, hidden_sizes=(16, 16), batch_size=16),
        )
    return config


def check_macaw(config: MacawConfig, family: Any) -> None:
    """Refuse settings that cannot work, before any work.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    check_config(config)
    check_whole_episodes(config, WHOLE_EPISODES, family)
    if not config.hidden_sizes:
        raise ValueError("config.hidden_sizes: expected one width or more, got none")
    for name in ("num_iterations", "test_every"):
        if (count := getattr(config, name)) % UPDATES_PER_STEP:
            raise ValueError(
                f"config.{name}: expected a multiple of {UPDATES_PER_STEP} (outer updates of a step), got {count}"
            )
    if not (family.picks_largest or family.action_bounds.are_finite):
        raise ValueError(
            f"{family.name} has actions without finite limits, which policies of this method need; choose another "
            "family, or set act_limit (or act_low and act_high)"
        )
    if not config.data:
        check_size("config.num_buffer_samples", config, config.num_buffer_samples)


def check_size(name: str, config: MacawConfig, num_samples: int) -> None:
    """Refuse a buffer that is no more than an inner batch.

    Raises:
        ValueError: says how many transitions a buffer must have.
    """
    least = (config.inner_batch + 1) * config.thinning
    if num_samples < least:
        raise ValueError(
            f"{name}: expected {least} transitions or more of every task (an inner batch of {config.inner_batch} and "
            f"others for the outer one, every {config.thinning}th), got {num_samples}; record more, or make "
            "`config.inner_batch` or `config.thinning` smaller"
        )
