"""Settings of the baselines and their presets. Free of torch, so that the command line can describe them at once.

`paper_config` is PEARL's table of hyper-parameters by environment (the released configurations of PEARL; CRL "adopts
the same"). `laptop` and `smoke` are ours. [ours] marks a number that no paper states.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from admrl.config.checks import check_config
from admrl.config.methods import METHODS, PUBLISHED, check_limits, check_published, check_whole_episodes
from admrl.config.sac import SacConfig

PRESETS = ("smoke", "laptop", "paper")
TITLES = METHODS["baselines"]
ALGORITHMS = tuple(TITLES)


@dataclass(frozen=True)
class ContextConfig:
    """PEARL's encoder q(z|c) and its test protocol."""

    hidden_sizes: tuple[int, ...] = (200, 200, 200)
    """Widths of the encoder's ReLU layers. PEARL: 200 200 200."""
    latent_size: int = field(default=5, metadata={"range": (1, 1000)})
    """Dimension of z. PEARL: 5."""
    num_transitions: int = field(default=256, metadata={"range": (1, 100_000)})
    """Transitions of a training context. PEARL: 64 to 1024 by environment."""
    num_episodes: int | None = field(default=None, metadata={"range": (1, 10_000)})
    """Training: a context is drawn from so many consecutive episodes of any time, as a test sees them; None: from all
    since the task was sampled last. PEARL: none. [ours]: a number, as few fresh contexts are soon known by heart."""
    kl_weight: float = field(default=0.1, metadata={"range": (0, 1e6)})
    """lambda of the KL, which is summed over tasks while the critic's loss is a mean. PEARL: 0.1 or 1."""
    has_next_obs: bool = False
    """Whether the encoder sees s'. PEARL: only where the dynamics differ; CRL: always."""
    num_prior_episodes: int = field(default=2, metadata={"range": (0, 10_000)})
    """Test: episodes with z from the prior before the posterior is used. PEARL: 2; 5 sparse; 1 dense point robot."""
    test_exploration: Literal["deterministic", "stochastic"] = "deterministic"
    """Test: actions of the exploration episodes; scoring is deterministic. PEARL's release: deterministic. [ours]:
    stochastic, as in training, where straight paths say too little."""
    test_latent: Literal["sample", "mean"] = "sample"
    """Scoring: a fresh z for every episode, or the posterior's mean. PEARL: sample."""
    max_test_transitions: int | None = field(default=None, metadata={"range": (1, 10_000_000)})
    """Test: at most so many, evenly spread over all that were seen, because the posterior of a product sharpens with
    every factor; None: as many as in training. [ours]"""


@dataclass(frozen=True)
class CrlConfig:
    """CRL's adapter network: transitions (s, a, r, s') -> output layer of the policy. All sizes are [ours]."""

    hidden_sizes: tuple[int, ...] = (300, 300, 300)
    """Widths of its layers before the mean over transitions; one more as wide as the last follows the mean."""
    num_transitions: int = field(default=64, metadata={"range": (1, 100_000)})
    """Transitions of each task in a step of the adapter."""
    own_rate: float = field(default=0.03, metadata={"range": (0, 1)})
    """How fast a task's own part of its output layer learns, relative to the part that all tasks share."""
    test_head: Literal["adapter", "mean"] = "adapter"
    """Test: the adapter's prediction, or the mean of the training tasks' heads, for comparison."""


@dataclass(frozen=True)
class BaselineConfig:
    """Meta-training of a baseline: PEARL's loop of sampling and gradient steps, for every algorithm."""

    num_tasks: int = field(default=150, metadata={"range": (1, 100_000)})
    """Training tasks: the first of the published ones, or uniform in the box where there are none. AdMRL's PEARL:
    150."""
    num_test_tasks: int = field(default=20, metadata={"range": (1, 10_000)})
    """Tasks of the learning curve, drawn likewise, or the first of the published ones. [ours]"""
    num_iterations: int = field(default=500, metadata={"range": (1, 1_000_000)})
    """Iterations of sampling and training. PEARL: 500."""
    tasks_per_iteration: int = field(default=5, metadata={"range": (1, 10_000)})
    """Tasks that are sampled in an iteration, with replacement. PEARL: 5."""
    num_initial_steps: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Real steps of every training task before the first iteration. PEARL: 2000."""
    initial_actions: Literal["policy", "constant"] = "policy"
    """Actions of these first steps: the untrained policy's, or one random action held for a whole episode, which goes
    somewhere. PEARL: policy. [ours]"""
    clear_context: bool = True
    """Whether a task's context is cleared before the task is sampled anew. PEARL: yes. [ours] no: where goals are
    hard to find, contexts that hold one stay."""
    num_prior_steps: int = field(default=400, metadata={"range": (0, 10_000_000)})
    """Real steps with z from the prior, for context and replay. PEARL: 400."""
    num_posterior_steps: int = field(default=0, metadata={"range": (0, 10_000_000)})
    """Real steps with z from the posterior, for context and replay. PEARL: 0; 900 for the sparse point robot."""
    num_extra_steps: int = field(default=600, metadata={"range": (0, 10_000_000)})
    """Real steps with z from the posterior, for the replay alone. PEARL: 600."""
    num_updates: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """Gradient steps of an iteration. PEARL: 1000 to 4000."""
    meta_batch: int = field(default=10, metadata={"range": (1, 10_000)})
    """Tasks of a gradient step, with replacement. PEARL: 4 to 16."""
    train_on_dense: bool = False
    """Critics learn from the family's variant "dense", contexts show the true reward. PEARL: for sparse tasks."""
    test_every: int = field(default=10, metadata={"range": (1, 1_000_000)})
    """Iterations between two points of the learning curve. [ours]"""
    task_input: Literal["none", "onehot", "psi"] = "none"
    """What multi-task SAC is told of the task. CRL's SAC: none."""
    sac: SacConfig = SacConfig()
    context: ContextConfig = ContextConfig()
    crl: CrlConfig = CrlConfig()


def paper_config(family: str) -> BaselineConfig:
    """The sizes of the papers; families that no paper has get those of Ant-Goal, as in AdMRL's PEARL."""
    base, context = BaselineConfig(), ContextConfig()
    both: dict[str, Any] = {
        "num_prior_steps": 1000,
        "num_extra_steps": 1000,
        "num_updates": 2000,
        "meta_batch": 4,
    }
    points: dict[str, Any] = {"num_updates": 1000, "meta_batch": 16, "num_initial_steps": 200}
    match family:
        case "half_cheetah_fwd_back":
            return replace(base, num_tasks=2, **both)
        case "half_cheetah_vel":
            return replace(
                base, num_updates=2000, meta_batch=16, context=replace(context, num_transitions=100)
            )
        case "ant_fwd_back" | "ant_dir":
            return replace(base, meta_batch=4)
        case "humanoid_direc_2d":
            return replace(base, meta_batch=16)
        case "walker2d_params" | "hopper2d_params":
            return replace(base, context=replace(context, num_transitions=100, has_next_obs=True))
        case "point_robot":
            return replace(
                base,
                num_prior_steps=200,
                num_extra_steps=200,
                sac=SacConfig(reward_scale=100.0),
                context=replace(context, num_transitions=64, num_prior_episodes=1),
                **points,
            )
        case "sparse_point_robot":
            return replace(
                base,
                num_prior_steps=100,
                num_posterior_steps=900,
                num_extra_steps=0,
                tasks_per_iteration=10,
                train_on_dense=True,
                sac=SacConfig(reward_scale=100.0, gamma=0.9),
                context=replace(context, num_transitions=1024, num_prior_episodes=5, kl_weight=1.0),
                **points,
            )
        case _:
            return replace(base, context=replace(context, kl_weight=1.0))


def _laptop(config: BaselineConfig) -> BaselineConfig:
    return replace(
        config,
        num_iterations=40,
        num_updates=400,
        meta_batch=min(config.meta_batch, 4),
        num_tasks=min(config.num_tasks, 40),
        num_test_tasks=10,
        test_every=4,
        sac=replace(config.sac, hidden_sizes=(128, 128, 128), batch_size=128),
        context=replace(
            config.context,
            hidden_sizes=(64, 64, 64),
            num_transitions=min(config.context.num_transitions, 100),
        ),
        crl=replace(config.crl, hidden_sizes=(128, 128, 128)),
    )


def _laptop_point(config: BaselineConfig) -> BaselineConfig:
    """Both point robots: small batches of many tasks, and a few episodes that are explored stochastically."""
    config = _laptop(config)
    return replace(
        config,
        test_every=5,
        num_prior_steps=20,
        meta_batch=32,
        sac=replace(
            config.sac,
            hidden_sizes=(128, 128),
            batch_size=16,
            learning_rate=1e-3,
            learning_rate_decay="linear",
            gamma=0.9,
            reward_scale=10.0,
        ),
        context=replace(
            config.context,
            hidden_sizes=(64, 64),
            has_next_obs=True,
            test_exploration="stochastic",
            num_prior_episodes=1,
        ),
    )


def _laptop_dense_point(config: BaselineConfig) -> BaselineConfig:
    """Contexts like those of a test (one prior, one posterior episode), from all of the training, and a latent that
    can hold what they say: with PEARL's five dimensions a goal in the plane is hardly learned from distances."""
    config = _laptop_point(config)
    return replace(
        config,
        num_iterations=120,
        num_tasks=80,
        num_test_tasks=20,
        tasks_per_iteration=40,
        num_initial_steps=100,
        num_posterior_steps=20,
        num_extra_steps=40,
        context=replace(config.context, latent_size=16, num_transitions=64, num_episodes=2, kl_weight=3e-4),
        crl=replace(config.crl, hidden_sizes=(64, 64)),
    )


def _laptop_sparse_point(config: BaselineConfig) -> BaselineConfig:
    """Straight first episodes, some of which find the goal, in contexts that stay and are large enough to show it;
    one latent dimension for the one parameter, so that a z from the prior is a place on the arc, too."""
    config = _laptop_point(config)
    return replace(
        config,
        num_updates=500,
        tasks_per_iteration=10,
        initial_actions="constant",
        num_initial_steps=1000,
        clear_context=False,
        num_posterior_steps=80,
        num_extra_steps=0,
        context=replace(config.context, latent_size=1, num_transitions=400, kl_weight=0.01),
    )


def preset_config(preset: str, family: str, algorithm: str) -> BaselineConfig:
    """The settings that a user then changes.

    laptop: the paper's, with networks of 128 (64 in the encoder), batches of 128, meta-batches of 4, contexts of 100
    at most, and 40 iterations of 400 gradient steps; the point robots have their own. smoke: seconds.
    """
    config = paper_config(family)
    if preset != "paper":
        laptop = {"point_robot": _laptop_dense_point, "sparse_point_robot": _laptop_sparse_point}
        config = laptop.get(family, _laptop)(config)
    if preset == "smoke":
        config = replace(
            config,
            num_iterations=2,
            num_updates=10,
            meta_batch=2,
            num_tasks=3,
            num_test_tasks=2,
            test_every=1,
            tasks_per_iteration=2,
            num_initial_steps=200,
            num_prior_steps=200,
            num_extra_steps=200 if config.num_extra_steps else 0,
            num_posterior_steps=200 if config.num_posterior_steps else 0,
            sac=replace(config.sac, hidden_sizes=(16, 16), batch_size=16),
            context=replace(config.context, hidden_sizes=(16,), num_transitions=16),
            crl=replace(config.crl, hidden_sizes=(16,), num_transitions=8),
        )
    if family in PUBLISHED:
        train, test = PUBLISHED[family]
        config = replace(
            config, num_tasks=min(config.num_tasks, train), num_test_tasks=min(config.num_test_tasks, test)
        )
    if algorithm == "crl":  # its context is always (s, a, r, s')
        config = replace(config, context=replace(config.context, has_next_obs=True))
    if algorithm in ("sac", "mt-joint"):  # CRL's SAC is the second version: automatic temperature, no V
        sac = replace(
            config.sac,
            temperature=None,
            use_value=False,
            reward_scale=1.0,
            mean_penalty=0.0,
            log_std_penalty=0.0,
        )
        config = replace(config, sac=sac, task_input="psi" if algorithm == "mt-joint" else "none")
    return config


WHOLE_EPISODES = (
    "num_initial_steps",
    "num_prior_steps",
    "num_posterior_steps",
    "num_extra_steps",
)  # whole episodes each


def check_baseline(config: BaselineConfig, algorithm: str, family: Any) -> None:
    """Refuse settings that cannot work, before any work.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    check_config(config)
    check_whole_episodes(config, WHOLE_EPISODES, family)
    if config.num_prior_steps == 0:
        raise ValueError(
            "config.num_prior_steps: expected at least one episode, since the context of a task is cleared before"
        )
    check_limits(family)
    check_published(config, family)
    if config.train_on_dense and "dense" not in family.variants:
        raise ValueError(
            f"config.train_on_dense: {family.name} has no variant 'dense', only {family.variants}"
        )
    if algorithm == "crl" and not config.context.has_next_obs:
        raise ValueError("config.context.has_next_obs: CRL's context is (s, a, r, s'), expected True")
    if algorithm == "crl" and not config.crl.hidden_sizes:
        raise ValueError("config.crl.hidden_sizes: expected one width or more, got none")
    if algorithm == "mt-joint" and config.task_input != "psi":
        raise ValueError(f"config.task_input: MT-joint is told psi, got {config.task_input!r}")
