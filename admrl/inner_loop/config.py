"""Settings of the inner-loop methods and their presets. Free of torch, so that the command line can describe them.

`preset_config(preset, family, algorithm)`: `paper` has the sizes of ProMP's released run scripts, for MAML those of
AdMRL's comparison, for MAESN those of its release; `laptop` and `smoke` are ours. [ours] marks a number that no paper
states. AdMRL's MAML visits 150 tasks and counts 80 million samples; `paper` draws new tasks in every iteration
(`num_tasks`) and samples twice as many.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from admrl.config.checks import check_config, check_training_tasks
from admrl.config.methods import METHODS, check_whole_episodes

TITLES = METHODS["inner_loop"]
ALGORITHMS = tuple(TITLES)
WHOLE_EPISODES = ("num_adapt_samples",)
"""Counts that are whole episodes."""
InnerLoss = Literal["log_likelihood", "likelihood_ratio"]
Order = Literal["second", "first"]


@dataclass(frozen=True)
class OuterTrpoConfig:
    """The trust region of MAML-TRPO's outer update."""

    max_kl: float = field(default=0.01, metadata={"range": (1e-8, 10)})
    """Mean KL(old || new) per state of the adapted policies, nats. MAML: 0.01."""
    cg_steps: int = field(default=10, metadata={"range": (1, 1000)})
    """Steps of conjugate gradients. MAML (rllab): 10."""
    cg_damping: float = field(default=1e-5, metadata={"range": (0, 1e3)})
    """Added to the diagonal of the Fisher matrix. MAML (rllab): 1e-5."""
    backtrack_ratio: float = field(default=0.8, metadata={"range": (0.01, 0.99)})
    """Factor of a step that is refused. MAML (rllab): 0.8."""
    num_trials: int = field(default=15, metadata={"range": (1, 1000)})
    """Steps that are tried before theta stays as it is. MAML (rllab): 15."""


@dataclass(frozen=True)
class ClipConfig:
    """The outer update of ProMP and MAML-PPO."""

    learning_rate: float = field(default=1e-3, metadata={"range": (0, 1)})
    """Of Adam. ProMP: 1e-3."""
    num_epochs: int = field(default=5, metadata={"range": (1, 10_000)})
    """Adam steps on the same samples, all of them in each. ProMP: 5."""
    clip: float = field(default=0.3, metadata={"range": (1e-6, 1e6)})
    """epsilon, of the ratio. ProMP: 0.3; MAML-PPO: 0.5."""
    kl_weight: float = field(default=5e-4, metadata={"range": (0, 1e6)})
    """eta, of KL(old || new) before adaptation. ProMP: 5e-4, 1e-3 where the dynamics differ; MAML-PPO: 1e-3."""


@dataclass(frozen=True)
class LatentConfig:
    """MAESN: the latent z of an episode."""

    size: int = field(default=2, metadata={"range": (1, 1000)})
    """Numbers of z. MAESN: 2."""
    num_tasks: int = field(default=100, metadata={"range": (1, 1_000_000)})
    """Training tasks, each with a mean and a deviation of z: the published ones, at most so many, or drawn once.
    MAESN: 100."""
    step_size: float = field(default=1.0, metadata={"range": (0, 1e3)})
    """alpha of means and log deviations at first; it is learned. MAESN: 0.5 or 1."""
    kl_weight: float = field(default=0.1, metadata={"range": (0, 1e6)})
    """Of KL(N(mu_i, sigma_i) || N(0, I)) before adaptation, mean over tasks. MAESN: 0.1 or 0.5."""
    adapt_policy: bool = False
    """Training: the policy's weights take inner steps, too, of `step_size`; in a test they never do. In MAESN's
    equations they do, in its released launcher not (`param_deg` 0)."""
    num_full_steps: int = field(default=2, metadata={"range": (1, 1_000_000)})
    """Test: steps of the learned size; each later one is `later_step_factor` times the one before. MAESN: 2."""


@dataclass(frozen=True)
class InnerLoopConfig:
    """Meta-training of a policy that adapts by policy-gradient steps, and its test protocol."""

    num_iterations: int = field(default=500, metadata={"range": (1, 1_000_000)})
    """Outer updates. AdMRL's MAML: 500; ProMP: 1001; the robustness study's MAML: 300."""
    meta_batch: int = field(default=40, metadata={"range": (1, 10_000)})
    """Tasks of an outer update. ProMP, AdMRL's MAML: 40; the robustness study: 20. maesn: different ones of its
    training tasks; all, where there are fewer."""
    num_tasks: int | None = field(default=None, metadata={"range": (1, 100_000)})
    """Training tasks, drawn once by the run's seed; an iteration draws of them with replacement. None: all, drawn
    anew in every iteration. The robustness study varies it. MAESN has its own."""
    withheld: tuple[float, ...] = ()
    """Tasks that the training never draws: those in this box, given by its lows and then its highs, one of each a
    task parameter. The robustness study: all directions but those from 0 to 90 degrees."""
    num_episodes: int = field(default=20, metadata={"range": (1, 100_000)})
    """Episodes of every task and phase: before each inner step, and after the last. ProMP: 20; the study: 40."""
    num_steps: int = field(default=1, metadata={"range": (1, 100)})
    """Inner steps. ProMP: 1; 2 for Ant-Goal."""
    step_size: float = field(default=0.1, metadata={"range": (0, 1e3)})
    """alpha, of all parameters at first. ProMP: 0.1; 0.05 where the dynamics differ; MAML's 2-D navigation: 0.5."""
    learn_step_sizes: bool = False
    """Whether every parameter's alpha is learned with theta (Meta-SGD); in MAESN those of the latent always are.
    ProMP's default: no."""
    order: Order = "second"
    """first: the outer gradient takes inner gradients for constants. All papers here: second."""
    inner_loss: InnerLoss = "likelihood_ratio"
    """Of the inner steps in training. ProMP, MAML-PPO: likelihood_ratio; MAML-TRPO: log_likelihood."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the policy's tanh layers. ProMP: 64 64; 128 128 for the humanoid."""
    action_scale: float = field(default=10.0, metadata={"range": (1e-3, 1e6)})
    """Half the range of an action in units of the policy, whose standard deviation begins at 1. ProMP: 10."""
    gamma: float | None = field(default=None, metadata={"range": (0, 1)})
    """Discount per step; None: the family's. ProMP: 0.99."""
    gae_lambda: float = field(default=1.0, metadata={"range": (0, 1)})
    """lambda of generalised advantage estimation. ProMP: 1."""
    ridge: float = field(default=1e-5, metadata={"range": (1e-12, 1e6)})
    """Of the linear baseline's fit; times 10 until it succeeds. ProMP (rllab): 1e-5."""
    num_adapt_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Test: real samples of an inner step. AdMRL scores after 2000, 4000 and 6000: 1, 2 and 3 steps."""
    later_step_factor: float = field(default=0.5, metadata={"range": (0, 1e3)})
    """Test: of alpha in every step after the first. MAML: 0.5. In MAESN see `latent.num_full_steps`."""
    num_test_tasks: int = field(default=20, metadata={"range": (1, 10_000)})
    """Tasks of the learning curve: the published test tasks, at most so many, or drawn once. [ours]"""
    test_every: int = field(default=10, metadata={"range": (1, 1_000_000)})
    """Outer updates between two points of the learning curve. [ours]"""
    train_on_dense: bool = False
    """Training has the rewards of the family's variant "dense", tests the true ones. MAESN: for sparse tasks."""
    trpo: OuterTrpoConfig = OuterTrpoConfig()
    clip: ClipConfig = ClipConfig()
    latent: LatentConfig = LatentConfig()


def paper_config(family: str, algorithm: str) -> InnerLoopConfig:
    """The sizes of the papers; see the fields."""
    config = InnerLoopConfig()
    clip = config.clip
    if family in ("walker2d_params", "hopper2d_params"):
        config, clip = replace(config, step_size=0.05), replace(clip, kl_weight=1e-3)
    elif family == "ant_goal":
        config = replace(config, num_steps=2)
    elif family == "sparse_point_robot":
        config = replace(config, train_on_dense=True)
    elif family == "humanoid_direc_2d":
        config = replace(config, hidden_sizes=(128, 128))
    if algorithm == "promp":
        return replace(config, num_iterations=1001, clip=clip)
    if algorithm == "maml-ppo":
        study: dict[str, Any] = {"num_iterations": 300, "meta_batch": 20, "num_episodes": 40}
        return replace(config, **study, clip=replace(clip, clip=0.5, kl_weight=1e-3))
    config = replace(config, inner_loss="log_likelihood")
    if algorithm == "maesn":
        released: dict[str, Any] = {"meta_batch": 20, "num_episodes": 50, "hidden_sizes": (100, 100)}
        return replace(config, **released, step_size=1.0)
    return config


def preset_config(preset: str, family: str, algorithm: str) -> InnerLoopConfig:
    """The settings that a user then changes.

    laptop [ours]: the paper's with 20 tasks x 10 episodes and 100 outer updates; the point robots and the bandit with
    five arms have their own.
    smoke: seconds.
    """
    config = paper_config(family, algorithm)
    if preset != "paper":
        config = replace(config, num_iterations=100, meta_batch=20, num_episodes=10, test_every=5)
        if family in ("point_robot", "sparse_point_robot"):
            config = _laptop_point(config)
            if algorithm == "maesn":  # batches of 50 episodes, as released
                config = replace(config, num_episodes=50, num_adapt_samples=1000)
        if family == "bernoulli_bandit_5":  # logits of which one step can prefer an arm
            config = replace(config, num_iterations=50, step_size=5.0)
    if preset == "smoke":
        config = replace(
            config,
            num_iterations=2,
            meta_batch=3,
            num_episodes=2,
            hidden_sizes=(8, 8),
            num_test_tasks=2,
            test_every=1,
            num_adapt_samples=40 if "point_robot" in family else 400,
        )
    return config


def _laptop_point(config: InnerLoopConfig) -> InnerLoopConfig:
    """Episodes of 20 steps: more of them; actions whose noise crosses the square, and an inner step that does."""
    return replace(
        config,
        num_iterations=60,
        num_episodes=20,
        hidden_sizes=(32, 32),
        action_scale=1.0,
        step_size=1.0,
        num_adapt_samples=400,
    )


def check_inner_loop(config: InnerLoopConfig, family: Any, algorithm: str) -> None:
    """Refuse settings that cannot work, before any work.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    check_config(config)
    if algorithm == "maesn" and (config.num_tasks is not None or config.withheld):
        raise ValueError(
            "config.num_tasks, config.withheld: expected none for maesn, whose training tasks have latents of their "
            "own; their number is `config.latent.num_tasks`"
        )
    check_training_tasks(config, family)
    check_whole_episodes(config, WHOLE_EPISODES, family)
    if config.train_on_dense and "dense" not in family.variants:
        raise ValueError(
            f"config.train_on_dense: expected a family with a variant 'dense', got {family.name}, which has "
            f"{', '.join(family.variants)}; leave it out"
        )


def check_budget(config: InnerLoopConfig, num_stages: int, num_stage_samples: int) -> None:
    """Refuse an evaluation whose stages are no whole inner steps.

    Raises:
        ValueError: names its setting, what was expected and what came.
    """
    if num_stages and num_stage_samples % config.num_adapt_samples:
        raise ValueError(
            f"config.num_stage_samples: expected a multiple of {config.num_adapt_samples}, the samples of one inner "
            f"step of this run (`num_adapt_samples` of its settings), got {num_stage_samples}; a policy cannot be "
            "scored in the middle of a step"
        )
