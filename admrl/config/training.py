"""Configuration of the method: virtual training, SLBO, the task gradient, meta-training. Free of torch.

`range` in a field's metadata is what `check_config` allows, both ends included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from admrl.config.checks import check_all, check_lanes, check_steps_per_lane
from admrl.config.search import SEARCHES, SearchConfig
from dynamics.config import DynamicsConfig, FitConfig, RolloutPrecision, check_horizon
from policy_opt.config import TrpoConfig, ValueConfig

SELECTORS = SEARCHES
Estimator = Literal["reinforce", "per_step", "causal", "pathwise", "mixed", "fisher", "resolve"]
Learner = Literal["slbo", "mbpo"]
ESTIMATOR_NAMES: tuple[str, ...] = get_args(Estimator)


@dataclass(frozen=True)
class VirtualTrainingConfig:
    """Virtual training, Alg. 2: one iteration fits the model, then improves the policy inside it."""

    num_model_steps: int = field(default=100, metadata={"range": (0, 1_000_000)})
    """n_model, optimiser steps of the model per iteration. Paper: 100."""
    num_policy_updates: int = field(default=20, metadata={"range": (1, 100_000)})
    """n_policy, TRPO updates per iteration. Paper: 20."""
    num_samples: int = field(default=10_000, metadata={"range": (1, 10_000_000)})
    """n_trpo, virtual steps per TRPO update and task; a multiple of horizon x ensemble members. Paper: 10000."""
    steps_per_lane: int | None = field(default=None, metadata={"range": (1, 1_000_000)})
    """Steps of each lane that an update sees; lanes go on from update to update. A divisor of the horizon; None:
    whole episodes, all from the start."""
    rollout_precision: RolloutPrecision = "full"
    """Of the model's matrix products in virtual rollouts. bfloat16: twice as fast on CPUs and GPUs that have it, the
    predicted change of state with about three significant digits; see docs/performance.md."""
    patience: int | None = field(default=None, metadata={"range": (1, 1_000_000)})
    """Of the training: a task's virtual training ends after so many updates in a row before which its return in the
    model was not above the best so far; None: all updates are done. Solves that have a number of updates of their own
    (probes, screening, `resolve`, evaluations) do them all."""
    trpo: TrpoConfig = TrpoConfig()
    value: ValueConfig = ValueConfig()


@dataclass(frozen=True)
class SlboConfig:
    """SLBO (Luo et al. 2018): stages of real sampling, each followed by virtual training."""

    num_stages: int = field(default=3, metadata={"range": (1, 10_000)})
    """n_slbo, stages per task. Paper: 3."""
    num_iterations: int = field(default=20, metadata={"range": (1, 100_000)})
    """n_inner, virtual-training iterations per stage. Paper: 20."""
    num_samples: int = field(default=10_000, metadata={"range": (1, 10_000_000)})
    """n_collect, real steps per stage and task; a multiple of the horizon. Released code: 10000."""
    noise_scale: float = field(default=0.3, metadata={"range": (0, 10)})
    """Ornstein-Uhlenbeck exploration noise added to the policy's actions, per step. Released code: 0.3."""
    noise_decay: float = field(default=0.15, metadata={"range": (0, 1)})
    """Share of the noise that is forgotten per step. Released code: 0.15."""


@dataclass(frozen=True)
class MbpoConfig:
    """MBPO (Janner et al. 2019) as the inner method; see `admrl.solving.mbpo`. [ours]: a number no paper states."""

    rollout_length: int = field(default=5, metadata={"range": (1, 1000)})
    """k, steps of a branch in the model. Paper: 1 (HalfCheetah, Walker2d), or rising to 15 (Hopper) or 25 (Ant) while
    the model improves. [ours]: constant."""
    real_share: float = field(default=0.05, metadata={"range": (0, 1)})
    """Of the transitions of a gradient step, those that are real. Released code: 0.05."""
    num_gradient_steps: int = field(default=20, metadata={"range": (1, 10_000)})
    """G, SAC's steps per policy update, each time after new branches. Paper: 20 (HalfCheetah: 40) per real step; we
    count updates, not real steps, [ours]."""
    batch_size: int = field(default=256, metadata={"range": (1, 100_000)})
    """Transitions of each task in a gradient step. Released code: 256."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the ReLU layers of policy and Q. Released code: 256 256. [ours]"""
    learning_rate: float = field(default=3e-4, metadata={"range": (1e-8, 1)})
    """Of Adam, for policy, Q and temperature. Released code: 3e-4."""


@dataclass(frozen=True)
class ResolveConfig:
    """Policies that are solved again at psi +- radius; see `admrl.gradient.resolve`."""

    solver: Literal["trpo", "pathwise"] = "trpo"
    """How a policy is solved again: by the training's own updates, or by ascent on the return of the model at fixed
    noise, which is deterministic and may be run to the optimum of that return."""
    num_updates: int = field(default=15, metadata={"range": (1, 100_000)})
    """Updates from theta_hat."""
    radius: float = field(default=0.5, metadata={"range": (1e-6, 2)})
    """delta, distance of the two tasks from psi in unit-box coordinates (the box is 2 wide)."""
    num_replicates: int = field(default=12, metadata={"range": (2, 1000)})
    """R, repetitions with other noise; half of them make each half of the data."""
    num_directions: int = field(default=2, metadata={"range": (1, 1000)})
    """Directions per replicate: the axes if k is not larger, else random ones."""
    num_episodes: int = field(default=1, metadata={"range": (1, 100_000)})
    """Real episodes of each of the R x directions x 2 policies. One is enough: replicates tell more than episodes."""
    num_virtual_episodes: int = field(default=20, metadata={"range": (1, 100_000)})
    """Episodes of each policy in each member of the updated model, for the control variate."""


@dataclass(frozen=True)
class TaskGradientConfig:
    """The gradient of the sub-optimality gap, AdMRL Eq. 2."""

    estimator: Estimator = "resolve"
    """How the implicit part is estimated; see docs/task_gradient.md."""
    num_samples: int = field(default=10_000, metadata={"range": (1, 10_000_000)})
    """Steps of each of the three rollouts (two real, one virtual); at least two episodes for each ensemble member."""
    num_extra_episodes: int = field(default=16, metadata={"range": (0, 100_000)})
    """Further real episodes of theta_hat and of theta* each, for the parts of the gradient that need no solve."""
    max_steps: int = field(default=50, metadata={"range": (1, 10_000)})
    """Krylov steps of the solve with the Hessian."""
    damping: float = field(default=0.01, metadata={"range": (0, 1e6)})
    """Added to A'A, relative to |A|^2, so that it depends neither on the reward's scale nor on p."""
    smoothing: float = field(default=0.2, metadata={"range": (0, 10)})
    """pathwise, mixed: width of the rounding of |x|, relative to the root mean square of x; 0: none."""
    horizon: int | None = field(default=None, metadata={"range": (1, 1_000_000)})
    """pathwise, mixed: steps that are differentiated through, then the value function; None: all."""
    polish_steps: int = field(default=5, metadata={"range": (0, 10_000)})
    """pathwise, mixed: natural-gradient steps at fixed noise that bring theta_hat closer to a stationary point."""
    resolve: ResolveConfig = ResolveConfig()


@dataclass(frozen=True)
class MetaTrainConfig:
    """Adversarial meta-training, Alg. 1."""

    num_tasks: int = field(default=10, metadata={"range": (1, 100_000)})
    """n_tasks, tasks visited. Paper: 10 (Hopper2D, Walker2D) or 20."""
    tasks_per_round: int = field(default=1, metadata={"range": (1, 1000)})
    """B, tasks that are trained on at once, with one model and one set of data. The real samples of a stage, the
    samples of the three rollouts and the further episodes are a round's, divided by its tasks; the virtual samples
    of an update and the policies that `resolve` scores are a task's. Paper: 1."""
    num_zero_shot: int = field(default=40, metadata={"range": (1, 100_000)})
    """n_zeroshot, virtual-training iterations before the first real sample of a task. Paper: 40."""
    num_first_stages: int = field(default=10, metadata={"range": (1, 10_000)})
    """n_slbo of the first task, which starts from an untrained model. Paper: 10 or 20."""
    step_size: float = field(default=2.0, metadata={"range": (0, 1e6)})
    """alpha of the projected ascent: unit-box coordinates per (discounted return / horizon). Paper: 2."""
    first_psi: tuple[float, ...] | None = None
    """The task that training starts from; None: the family's own (released code: 0.3 in unit coordinates)."""
    policy_hidden_sizes: tuple[int, ...] = (32, 32)
    """Widths of the policy's tanh layers. Released code: 32 32."""
    fixed_log_std: float | None = field(default=None, metadata={"range": (-20, 5)})
    """Logarithm of the policy's standard deviation, if it is not to be learned."""
    learner: Learner = "slbo"
    """How a task is solved in the model: slbo, TRPO on episodes in it (Alg. 2); or mbpo, SAC on short branches from
    real states. mbpo goes with searches that use no task gradient and solve no candidates."""
    slbo: SlboConfig = SlboConfig()
    mbpo: MbpoConfig = MbpoConfig()
    virtual: VirtualTrainingConfig = VirtualTrainingConfig()
    fit: FitConfig = FitConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    gradient: TaskGradientConfig = TaskGradientConfig()
    search: SearchConfig = SearchConfig()


def per_task(config: MetaTrainConfig) -> MetaTrainConfig:
    """The configuration with the share of one task in place of a round's numbers of samples.

    Raises:
        ValueError: a number that a round's tasks cannot share, or tasks that make no whole rounds.
    """
    num = config.tasks_per_round

    def share(name: str, number: int) -> int:
        if number % num:
            nearest = max(1, round(number / num)) * num
            raise ValueError(
                f"{name}: expected a multiple of `config.tasks_per_round` ({num}), got {number}; nearest: {nearest}"
            )
        return number // num

    share("config.num_tasks", config.num_tasks)
    slbo, gradient = config.slbo, config.gradient
    return replace(
        config,
        tasks_per_round=1,
        slbo=replace(slbo, num_samples=share("config.slbo.num_samples", slbo.num_samples)),
        gradient=replace(
            gradient,
            num_samples=share("config.gradient.num_samples", gradient.num_samples),
            num_extra_episodes=share("config.gradient.num_extra_episodes", gradient.num_extra_episodes),
        ),
    )


def check_sample_counts(config: MetaTrainConfig, horizon: int) -> None:
    """Every sample count of the configuration against the family's horizon; see `check_lanes` and `per_task`.

    Raises:
        ValueError: names all that do not fit.
    """
    members, num_tasks = config.dynamics.num_members, config.tasks_per_round
    slbo, name = config.slbo, "config.gradient.num_samples"

    def gradient() -> None:
        num_samples = config.gradient.num_samples
        if check_lanes(name, num_samples, horizon, members, num_tasks) < 2 * members * num_tasks:
            raise ValueError(
                f"{name}: expected at least {2 * horizon * members * num_tasks}, so that both halves of a task's "
                f"data hold every ensemble member; got {num_samples}"
            )

    def lanes() -> None:
        num_steps = check_steps_per_lane(config.virtual.steps_per_lane, horizon)
        patience, unknown = config.virtual.patience, horizon // num_steps
        if patience is not None and patience <= unknown and config.virtual.steps_per_lane is not None:
            raise ValueError(
                f"config.virtual.patience: expected more than {unknown}, because with `steps_per_lane` {num_steps} "
                f"so many updates pass before the first episodes of {horizon} steps end; got {patience}"
            )

    def model() -> None:
        check_horizon(config.dynamics, config.fit)
        if config.fit.num_horizon > horizon:
            raise ValueError(
                f"config.fit.num_horizon: expected 1 to {horizon} (the family's horizon), got "
                f"{config.fit.num_horizon}"
            )

    per_task(config)
    check_all(
        [
            lambda: check_lanes("config.virtual.num_samples", config.virtual.num_samples, horizon, members),
            lambda: check_lanes("config.slbo.num_samples", slbo.num_samples, horizon, tasks=num_tasks),
            lanes,
            model,
            gradient,
        ]
    )


def check_mbpo(config: MetaTrainConfig, *, bounded_actions: bool) -> None:
    """What cannot be combined with the learner "mbpo".

    Raises:
        ValueError: names every such setting and the remedy.
    """
    virtual, length = config.virtual, config.mbpo.rollout_length

    def unlike(name: str, value: object) -> None:
        if value is not None:
            raise ValueError(
                f"config.virtual.{name}: expected None with `config.learner` mbpo, got {value}: it is of updates on "
                "episodes in the model"
            )

    def actions() -> None:
        if not bounded_actions:
            raise ValueError(
                "config.learner: mbpo has tanh policies, which need a family whose actions have finite limits; set "
                "act_limit (or act_low and act_high) of the family, or choose slbo"
            )

    check_all(
        [
            actions,
            lambda: check_branches("config.virtual.num_samples", virtual.num_samples, length, config),
            lambda: unlike("patience", virtual.patience),
            lambda: unlike("steps_per_lane", virtual.steps_per_lane),
        ]
    )


def check_branches(name: str, num_samples: int, length: int, config: MetaTrainConfig) -> int:
    """Branches of so many steps that make num_samples; the same number in every member.

    Raises:
        ValueError: it is no such number; names the setting and the nearest one that fits.
    """
    unit = length * config.dynamics.num_members
    if num_samples % unit:
        raise ValueError(
            f"{name}: expected a multiple of {unit} (`config.mbpo.rollout_length` {length} x "
            f"{config.dynamics.num_members} members), got {num_samples}; nearest: "
            f"{max(1, round(num_samples / unit)) * unit}"
        )
    return num_samples // length


def check_screening(config: MetaTrainConfig, horizon: int) -> None:
    """The sample count of the selector "screened", see `check_lanes`, and its number of candidates."""
    if config.search.num_candidates < config.tasks_per_round:
        raise ValueError(
            f"config.search.num_candidates: expected at least `config.tasks_per_round` ({config.tasks_per_round}), "
            f"got {config.search.num_candidates}"
        )
    name, num_samples = "config.search.num_screen_samples", config.search.num_screen_samples
    check_lanes(name, num_samples, horizon, config.dynamics.num_members)


def check_population(config: MetaTrainConfig, horizon: int) -> None:
    """The settings of the selector "population" against each other and the family's horizon."""
    search, num = config.search, config.tasks_per_round
    if search.population_size < num:
        raise ValueError(
            f"config.search.population_size: expected at least `config.tasks_per_round` ({num}), because a round's "
            f"tasks are chosen among the candidates; got {search.population_size}"
        )
    if not search.num_probe_episodes and search.population_signal != "random":
        raise ValueError(
            f"config.search.num_probe_episodes: expected 1 or more, got 0: {search.population_signal} compares with "
            "real returns; only `config.search.population_signal` random needs none"
        )
    if search.min_gain is not None and search.population_signal == "random":
        raise ValueError(
            "config.search.min_gain: expected a signal that estimates gaps, got `config.search.population_signal` "
            "random: with it nothing is known of a candidate's gap"
        )
    if search.min_gain is not None and search.num_probe_episodes < 2:
        raise ValueError(
            f"config.search.num_probe_episodes: expected 2 or more, got {search.num_probe_episodes}: "
            "`config.search.min_gain` compares gaps with their noise, which a single episode does not show"
        )
    name = "config.search.num_probe_samples"
    check_lanes(name, search.num_probe_samples, horizon, config.dynamics.num_members)


def num_gradient_episodes(config: TaskGradientConfig, num_parameters: int) -> int:
    """Real episodes that the task gradient draws itself, beyond the rollouts that it is given.

    num_extra_episodes of theta_hat and of theta* each; `resolve` scores num_episodes of two policies for every
    replicate and direction (at most one for each of the num_parameters task parameters).
    """
    resolve = config.resolve
    num_policies = 2 * resolve.num_replicates * min(num_parameters, resolve.num_directions)
    own = num_policies * resolve.num_episodes if config.estimator == "resolve" else 0
    return 2 * config.num_extra_episodes + own
