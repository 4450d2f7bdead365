"""Settings of MQL and their presets. Free of torch, so that the command line can describe them.

`preset_config(preset, family)`: `paper` has the released hyper-parameters by environment; `laptop` and `smoke` are
ours. [ours] marks a number that no paper states.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from admrl.config.checks import check_config
from admrl.config.methods import METHODS, PUBLISHED, check_limits, check_published, check_whole_episodes

TITLES = METHODS["mql"]
WHOLE_EPISODES = ("num_initial_steps", "num_test_samples")
"""Counts that are whole episodes."""


@dataclass(frozen=True)
class Td3Config:
    """TD3 whose actor and critics see a recurrent context."""

    hidden_sizes: tuple[int, ...] = (300, 300)
    """Widths of the ReLU layers of actor and critics. MQL: 300 300."""
    context_size: int = field(default=30, metadata={"range": (1, 10_000)})
    """Units of each GRU: one for the actor, one for both critics. MQL: 15 to 40 by environment."""
    history_length: int = field(default=25, metadata={"range": (1, 10_000)})
    """L, newest tuples (a, r, s) of the episode that a GRU reads. MQL: 10 to 40."""
    batch_size: int = field(default=256, metadata={"range": (1, 100_000)})
    """Transitions of a step, of all tasks together. MQL: 256."""
    learning_rate: float = field(default=3e-4, metadata={"range": (0, 1)})
    """Of Adam, for actor and critics. MQL: 3e-4 to 1e-3."""
    gamma: float | None = field(default=None, metadata={"range": (0, 1)})
    """Discount per step; None: the family's. MQL: 0.99."""
    tau: float = field(default=0.005, metadata={"range": (0, 1)})
    """Share of the new networks in the target networks, per step of the actor. MQL, TD3: 0.005."""
    policy_delay: int = field(default=4, metadata={"range": (1, 10_000)})
    """Steps of the critics for one of the actor. MQL: 2 to 4; TD3: 2."""
    exploration_noise: float = field(default=0.2, metadata={"range": (0, 100)})
    """Standard deviation of the noise on training actions, of half their range. MQL: 0.2 or 0.3."""
    target_noise: float = field(default=0.4, metadata={"range": (0, 100)})
    """Standard deviation of the noise on target actions, of half their range. MQL: 0.2 to 0.4."""
    noise_clip: float = field(default=0.5, metadata={"range": (0, 100)})
    """Largest noise on target actions. MQL, TD3: 0.5."""


@dataclass(frozen=True)
class AdaptConfig:
    """Adaptation to a test task."""

    num_snap_steps: int = field(default=5, metadata={"range": (0, 1_000_000)})
    """TD3 steps on all of the task's own transitions. MQL: 5 or 10."""
    num_main_steps: int = field(default=400, metadata={"range": (0, 1_000_000)})
    """TD3 steps on the weighted replay of the meta-training. MQL: 15 to 400."""
    batch_factor: int = field(default=5, metadata={"range": (1, 10_000)})
    """Transitions of such a step, in batches of the meta-training. MQL: 5; 10 and 1 for some environments."""
    learning_rate: float = field(default=1e-3, metadata={"range": (0, 1)})
    """Of Adam, which begins anew. MQL's release: 1e-3, whatever the meta-training's."""
    inverse_penalty: float = field(default=0.05, metadata={"range": (1e-9, 1e9)})
    """C of the logistic regression: weight of the data's loss beside |w|^2 / 2. MQL: 0.05 to 0.5."""
    has_obs: bool = False
    """Whether the regression sees the observation beside the context. MQL: by environment."""
    max_log_weight: float = field(default=1.2, metadata={"range": (0, 100)})
    """Largest log beta. MQL: 1 to 2."""
    min_weight: float = field(default=0.1, metadata={"range": (0, 1)})
    """Smaller beta become 0. MQL's release: 0.1."""
    num_snapshot: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Newest transitions of each training task that the regression draws from. MQL: 1000 to 4000."""
    proximity: Literal["ess", "constant"] = "ess"
    """lambda of the proximal penalty: 1 - ESS of the weights (the paper), or a constant (as released)."""
    constant_proximity: float = field(default=0.1, metadata={"range": (0, 1e6)})
    """lambda, where it is constant. MQL's release: 0.1."""


@dataclass(frozen=True)
class MqlConfig:
    """Meta-training of MQL, and its test protocol."""

    num_tasks: int = field(default=150, metadata={"range": (1, 100_000)})
    """Training tasks: the first of the published ones, or uniform in the box where there are none. As PEARL: 150."""
    num_test_tasks: int = field(default=20, metadata={"range": (1, 10_000)})
    """Tasks of the learning curve, drawn likewise, or the first of the published ones. [ours]"""
    num_iterations: int = field(default=5000, metadata={"range": (1, 1_000_000)})
    """Iterations of sampling and training. MQL: 5e6 real samples in all."""
    tasks_per_iteration: int = field(default=5, metadata={"range": (1, 10_000)})
    """Tasks that are sampled in an iteration, an episode each, with replacement. MQL: 1 or 5."""
    num_initial_steps: int = field(default=1500, metadata={"range": (1, 10_000_000)})
    """Real steps of every training task before the first iteration, with uniform actions. MQL: 500 to 2000."""
    num_updates: int = field(default=1000, metadata={"range": (1, 10_000_000)})
    """Steps of the critics in an iteration. MQL: 200 to 1000."""
    replay_size: int = field(default=1_000_000, metadata={"range": (1, 1_000_000_000)})
    """Newest transitions, of all tasks, that steps draw from. MQL: 1e6; 5e5 for the humanoid."""
    num_test_samples: int = field(default=200, metadata={"range": (1, 10_000_000)})
    """Learning curve: real samples of a test task before it is scored. MQL: one episode."""
    test_every: int = field(default=50, metadata={"range": (1, 1_000_000)})
    """Iterations between two points of the learning curve. [ours]"""
    td3: Td3Config = Td3Config()
    adapt: AdaptConfig = AdaptConfig()


PAPER: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # of the training, of TD3, of the adaptation
    "ant_fwd_back": ({"num_tasks": 2}, {}, {}),
    "ant_dir": ({"num_tasks": 45}, {}, {}),
    "humanoid_direc_2d": (
        {"num_iterations": 25_000, "tasks_per_iteration": 1, "num_updates": 500, "num_initial_steps": 1000}
        | {"replay_size": 500_000, "num_tasks": 100, "test_every": 250},
        {"policy_delay": 3, "target_noise": 0.3, "history_length": 15, "context_size": 20},
        {"num_main_steps": 15, "max_log_weight": 2.0, "inverse_penalty": 0.1, "has_obs": True},
    ),
    "half_cheetah_vel": (
        {"num_iterations": 25_000, "tasks_per_iteration": 1, "num_updates": 200, "num_initial_steps": 500}
        | {"num_tasks": 100, "test_every": 250},
        {"policy_delay": 2, "exploration_noise": 0.3, "target_noise": 0.3, "history_length": 20}
        | {"context_size": 15, "learning_rate": 1e-3},
        {"num_snap_steps": 10, "num_main_steps": 100, "max_log_weight": 1.0, "inverse_penalty": 0.1},
    ),
    "half_cheetah_fwd_back": (
        {"num_iterations": 25_000, "tasks_per_iteration": 1, "num_updates": 500, "num_initial_steps": 1000}
        | {"num_tasks": 2, "test_every": 250},
        {"policy_delay": 2, "exploration_noise": 0.3, "target_noise": 0.3, "history_length": 20}
        | {"context_size": 20},
        {"num_snap_steps": 10, "num_main_steps": 50, "batch_factor": 10, "max_log_weight": 1.5}
        | {"inverse_penalty": 0.5},
    ),
    "ant_goal": (
        {"num_updates": 200},
        {"exploration_noise": 0.3, "target_noise": 0.3, "history_length": 40, "context_size": 40}
        | {"learning_rate": 4e-4},
        {"num_snap_steps": 10, "num_main_steps": 150, "batch_factor": 1, "max_log_weight": 2.0}
        | {"inverse_penalty": 0.1, "has_obs": True, "num_snapshot": 1000},
    ),
    "walker2d_params": (
        {"num_updates": 200, "num_initial_steps": 2000, "num_tasks": 40},
        {"policy_delay": 3, "target_noise": 0.2, "history_length": 10, "learning_rate": 8e-4},
        {"num_snap_steps": 10, "max_log_weight": 1.1, "inverse_penalty": 0.06, "has_obs": True}
        | {"num_snapshot": 4000},
    ),
}
"""The released table of hyper-parameters, as differences from the fields' defaults, which are those of Ant-Dir."""


def paper_config(family: str) -> MqlConfig:
    """The released sizes; families that the paper does not have get those of Ant-Goal."""
    if family == "hopper2d_params":
        training, td3, adapt = PAPER["walker2d_params"]
    else:
        training, td3, adapt = PAPER.get(family, PAPER["ant_goal"])
    return replace(
        MqlConfig(), **training, td3=replace(Td3Config(), **td3), adapt=replace(AdaptConfig(), **adapt)
    )


def preset_config(preset: str, family: str, algorithm: str = "mql") -> MqlConfig:
    """The settings that a user then changes.

    laptop [ours]: networks of 128, batches of 128, 400 iterations of 5 episodes and 50 steps, an adaptation of 50
    steps; the point robots have their own. smoke: seconds.
    """
    config = paper_config(family)
    if "point_robot" in family:
        config = _paper_point(config)
    if preset != "paper":
        config = _laptop_point(config) if "point_robot" in family else _laptop(config)
    if preset == "smoke":
        config = replace(
            config,
            num_iterations=2,
            num_updates=8,
            num_tasks=3,
            num_test_tasks=2,
            test_every=1,
            tasks_per_iteration=2,
            num_initial_steps=200,
            td3=replace(config.td3, hidden_sizes=(16, 16), context_size=4, history_length=4, batch_size=16),
            adapt=replace(config.adapt, num_snap_steps=4, num_main_steps=4, batch_factor=1),
        )
    if family in PUBLISHED:
        train, test = PUBLISHED[family]
        config = replace(
            config, num_tasks=min(config.num_tasks, train), num_test_tasks=min(config.num_test_tasks, test)
        )
    return config


def _paper_point(config: MqlConfig) -> MqlConfig:
    """MQL has no point robot; [ours]: as many episodes of 20 steps as PEARL's 80 tasks x 200 first steps."""
    return replace(config, num_initial_steps=200, num_test_samples=20)


def _laptop(config: MqlConfig) -> MqlConfig:
    return replace(
        config,
        num_iterations=400,
        tasks_per_iteration=5,
        num_updates=50,
        num_tasks=min(config.num_tasks, 40),
        num_test_tasks=5,
        num_initial_steps=400,
        test_every=50,
        td3=replace(
            config.td3,
            hidden_sizes=(128, 128),
            batch_size=128,
            history_length=min(config.td3.history_length, 10),
        ),
        adapt=replace(config.adapt, num_main_steps=min(config.adapt.num_main_steps, 50), batch_factor=1),
    )


def _laptop_point(config: MqlConfig) -> MqlConfig:
    """Episodes of 20 steps: many of them, short histories, small networks, a shorter horizon of the critic, a faster
    actor; more steps on the task's own samples, of which there are five episodes, fewer on the replay."""
    return replace(
        config,
        num_iterations=150,
        tasks_per_iteration=40,
        num_updates=100,
        num_initial_steps=100,
        num_tasks=80,
        num_test_tasks=20,
        num_test_samples=100,
        test_every=30,
        td3=replace(
            config.td3,
            hidden_sizes=(64, 64),
            history_length=5,
            context_size=16,
            learning_rate=1e-3,
            gamma=0.9,
            policy_delay=2,
            target_noise=0.2,
        ),
        adapt=replace(config.adapt, num_snap_steps=20, num_main_steps=20, batch_factor=1),
    )


def check_mql(config: MqlConfig, family: Any) -> None:
    """Refuse settings that cannot work, before any work.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    check_config(config)
    check_whole_episodes(config, WHOLE_EPISODES, family)
    check_limits(family)
    check_published(config, family)
