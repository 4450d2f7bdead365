"""Configuration of the method and its presets. Free of torch, so that the command line can describe it at once.

`range` in a field's metadata is what `check_config` allows, both ends included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from admrl.search_config import SEARCHES, SearchConfig
from dynamics.config import DynamicsConfig, FitConfig, RolloutPrecision
from policy_opt.config import TrpoConfig, ValueConfig
from task_families.registry import check_name

SELECTORS = SEARCHES
Estimator = Literal["reinforce", "per_step", "causal", "pathwise", "mixed", "fisher", "resolve"]
ESTIMATOR_NAMES: tuple[str, ...] = get_args(Estimator)
REFERENCE_METHODS = ("slbo", "sac")
MAX_LAYERS, MAX_WIDTH, MAX_PARAMETERS = 20, 100_000, 100_000_000  # of a network


@dataclass(frozen=True)
class VirtualTrainingConfig:
    """Virtual training, Alg. 2: one iteration fits the model, then improves the policy inside it."""

    num_model_steps: int = field(default=100, metadata={"range": (0, 1_000_000)})
    """n_model, optimiser steps of the model per iteration. Paper: 100."""
    num_policy_updates: int = field(default=20, metadata={"range": (1, 100_000)})
    """n_policy, TRPO updates per iteration. Paper: 20."""
    num_samples: int = field(default=10_000, metadata={"range": (1, 10_000_000)})
    """n_trpo, virtual steps per TRPO update and task; a multiple of horizon x ensemble members. Paper: 10000."""
    rollout_precision: RolloutPrecision = "full"
    """Of the model's matrix products in virtual rollouts. bfloat16: twice as fast on CPUs and GPUs that have it, the
    predicted change of state with about three significant digits; see docs/performance.md."""
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
    slbo: SlboConfig = SlboConfig()
    virtual: VirtualTrainingConfig = VirtualTrainingConfig()
    fit: FitConfig = FitConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    gradient: TaskGradientConfig = TaskGradientConfig()
    search: SearchConfig = SearchConfig()


@dataclass(frozen=True)
class EvaluationConfig:
    """Zero-shot evaluation on a grid of tasks and the reference returns that it is compared with."""

    num_policy_seeds: int = field(default=3, metadata={"range": (1, 1000)})
    """R, policies solved per task: one alone is dominated by the noise of its optimisation."""
    num_episodes: int = field(default=40, metadata={"range": (1, 100_000)})
    """Real episodes per policy that its return is averaged over."""
    num_updates: int = field(default=100, metadata={"range": (1, 100_000)})
    """TRPO updates of a zero-shot policy (n_zeroshot x n_policy)."""
    num_samples: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """Virtual steps per update and policy; a multiple of horizon x ensemble members."""
    num_reference_stages: int = field(default=3, metadata={"range": (0, 10_000)})
    """SLBO stages of the reference run, all grid tasks together; 0: only the methods themselves."""
    num_reference_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Real steps per stage and task of the reference run; a multiple of the horizon."""
    num_reference_updates: int = field(default=60, metadata={"range": (1, 1_000_000)})
    """TRPO updates per stage of the reference run."""
    num_stages: int = field(default=0, metadata={"range": (0, 1000)})
    """SLBO stages after zero-shot, each task on its own copy of the model. 0: A_0 alone. Paper: 3."""
    num_stage_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """Real steps per stage and task; a multiple of the horizon. Paper: 2000."""
    num_stage_iterations: int = field(default=6, metadata={"range": (1, 100_000)})
    """n_inner, virtual-training iterations per stage. Paper: 20."""
    num_stage_updates: int = field(default=10, metadata={"range": (1, 100_000)})
    """n_policy, TRPO updates per iteration. Paper: 20."""
    num_stage_model_steps: int = field(default=100, metadata={"range": (0, 1_000_000)})
    """n_model, optimiser steps of each task's model per iteration. Paper: 100."""
    tasks_per_batch: int = field(default=12, metadata={"range": (1, 10_000)})
    """Tasks that adapt in one batch, and that are computed again if an evaluation is interrupted. On a GPU: all."""


@dataclass(frozen=True)
class ReferenceConfig:
    """Long training on the test tasks themselves, for A*: SLBO on all of them together, SAC on each alone."""

    num_stages: int = field(default=10, metadata={"range": (1, 10_000)})
    """SLBO: stages, the first from nothing."""
    num_samples: int = field(default=2000, metadata={"range": (1, 10_000_000)})
    """SLBO: real steps per stage and task; a multiple of the horizon. All tasks share the model and the data."""
    num_iterations: int = field(default=6, metadata={"range": (1, 100_000)})
    """SLBO: virtual-training iterations per stage."""
    num_model_steps: int = field(default=200, metadata={"range": (0, 1_000_000)})
    """SLBO: optimiser steps of the model per iteration."""
    num_updates: int = field(default=10, metadata={"range": (1, 100_000)})
    """SLBO: TRPO updates per iteration."""
    num_virtual_samples: int = field(default=4000, metadata={"range": (1, 10_000_000)})
    """SLBO: virtual steps per update and task; a multiple of horizon x ensemble members."""
    sac_steps: int = field(default=50_000, metadata={"range": (200, 100_000_000)})
    """SAC: real steps per task and seed, with stable-baselines3's own settings."""
    num_episodes: int = field(default=40, metadata={"range": (2, 100_000)})
    """Real episodes that a policy's return is averaged over."""


_PAPER = MetaTrainConfig(
    virtual=VirtualTrainingConfig(trpo=TrpoConfig(fisher_fraction=0.25)),
    dynamics=DynamicsConfig(hidden_sizes=(1000, 1000), num_members=1),
)
_LAPTOP = MetaTrainConfig(
    num_tasks=6,
    num_zero_shot=6,
    num_first_stages=4,
    slbo=SlboConfig(num_stages=2, num_iterations=6, num_samples=4000),
    virtual=VirtualTrainingConfig(
        num_model_steps=100, num_policy_updates=10, num_samples=4000, trpo=TrpoConfig(fisher_fraction=0.25)
    ),
    gradient=TaskGradientConfig(
        num_samples=4000,
        num_extra_episodes=8,
        resolve=ResolveConfig(num_updates=5, num_replicates=2, num_episodes=2),
    ),
)
_SMOKE = MetaTrainConfig(
    num_tasks=3,
    num_zero_shot=1,
    num_first_stages=1,
    slbo=SlboConfig(num_stages=1, num_iterations=1, num_samples=800),
    virtual=VirtualTrainingConfig(num_model_steps=5, num_policy_updates=2, num_samples=800),
    dynamics=DynamicsConfig(hidden_sizes=(32,), num_members=2),
    gradient=TaskGradientConfig(
        num_samples=800,
        num_extra_episodes=0,
        max_steps=3,
        polish_steps=1,
        resolve=ResolveConfig(num_updates=1, num_replicates=2, num_episodes=2, num_virtual_episodes=1),
    ),
)
PRESETS = {"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER}
"""smoke: seconds, proves the installation; laptop: minutes; paper: Table 1 and App. C, hours."""


def check_config(config: Any, where: str = "config.") -> None:
    """Refuse a configuration with a value outside its range, before any work.

    Raises:
        ValueError: names the field, the value and the allowed range.
    """
    hints = get_type_hints(type(config))
    for f in fields(config):
        name, value = f"{where}{f.name}", getattr(config, f.name)
        if is_dataclass(value):
            check_config(value, f"{name}.")
        elif value is None and type(None) in get_args(hints[f.name]):
            continue
        elif "range" in f.metadata:
            kind = int if hints[f.name] in (int, int | None) else float
            _check_number(name, value, kind, *f.metadata["range"])
        elif "choices" in f.metadata:
            check_name(name, str(value), f.metadata["choices"])
        elif get_origin(hints[f.name]) is Literal:
            check_name(name, str(value), get_args(hints[f.name]))
        elif f.name.endswith("hidden_sizes"):
            if not isinstance(value, tuple) or len(value) > MAX_LAYERS:
                raise ValueError(f"{name}: expected at most {MAX_LAYERS} layer widths, got {value!r:.60}")
            for width in value:
                _check_number(name, width, int, 1, MAX_WIDTH)
        elif f.name == "first_psi":
            for x in value:
                _check_number(name, x, float, -1e9, 1e9)
    for f in fields(config):  # now that every number is one
        if f.name.endswith("hidden_sizes"):
            widths = getattr(config, f.name)
            size = getattr(config, "num_members", 1) * sum(a * b for a, b in pairwise(widths))
            if size > MAX_PARAMETERS:
                raise ValueError(
                    f"{where}{f.name}: expected at most {MAX_PARAMETERS:g} parameters in all members, got {size:g}"
                )


def _check_number(name: str, value: Any, kind: type, low: float, high: float) -> None:
    """Refuse what is not a number, or a whole one where kind is int, from low to high."""
    what = "a whole number" if kind is int else "a number"
    allowed = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name}: expected {what} from {low:g} to {high:g}, got {value!r:.60}")
    if not low <= value <= high:  # also false for nan
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")


def check_saving(checkpoint_seconds: float, keep_checkpoints: int) -> None:
    """Refuse nonsense about checkpoints.

    Raises:
        ValueError: names the option, the allowed range and the value.
    """
    if not 0 <= checkpoint_seconds <= 1e6:
        raise ValueError(f"--checkpoint-seconds: expected 0 to 1e6, got {checkpoint_seconds:g}")
    if not 1 <= keep_checkpoints <= 10_000:
        raise ValueError(f"--keep-checkpoints: expected 1 to 10000, got {keep_checkpoints}")


def check_lanes(name: str, num_samples: int, horizon: int, lane_multiple: int = 1) -> int:
    """The number of lanes N that num_samples steps make, episodes of horizon steps each.

    Args:
        lane_multiple: N must be a multiple of it, e.g. the members of the ensemble.

    Raises:
        ValueError: not a multiple of horizon x lane_multiple.
    """
    unit = horizon * lane_multiple
    if num_samples < unit or num_samples % unit:
        nearest = max(1, round(num_samples / unit)) * unit
        of = (
            f"horizon {horizon}"
            if lane_multiple == 1
            else f"horizon {horizon} x {lane_multiple} ensemble members"
        )
        raise ValueError(
            f"{name}: expected a multiple of {unit} ({of}), got {num_samples}; nearest: {nearest}"
        )
    return num_samples // horizon


def check_sample_counts(config: MetaTrainConfig, horizon: int) -> None:
    """Every sample count of the configuration against the family's horizon; see `check_lanes`."""
    members = config.dynamics.num_members
    check_lanes("config.virtual.num_samples", config.virtual.num_samples, horizon, members)
    check_lanes("config.slbo.num_samples", config.slbo.num_samples, horizon)
    if config.fit.num_horizon > horizon:
        raise ValueError(
            f"config.fit.num_horizon: expected 1 to {horizon} (the family's horizon), got {config.fit.num_horizon}"
        )
    name, num_samples = "config.gradient.num_samples", config.gradient.num_samples
    if check_lanes(name, num_samples, horizon, members) < 2 * members:
        raise ValueError(
            f"{name}: expected at least {2 * horizon * members}, so that both halves of the data hold every "
            f"ensemble member; got {num_samples}"
        )


def check_screening(config: MetaTrainConfig, horizon: int) -> None:
    """The sample count of the selector "screened"; see `check_lanes`."""
    name, num_samples = "config.search.num_screen_samples", config.search.num_screen_samples
    check_lanes(name, num_samples, horizon, config.dynamics.num_members)


def num_gradient_episodes(config: TaskGradientConfig, num_parameters: int) -> int:
    """Real episodes that the task gradient draws itself, beyond the rollouts that it is given.

    num_extra_episodes of theta_hat and of theta* each; `resolve` scores num_episodes of two policies for every
    replicate and direction (at most one for each of the num_parameters task parameters).
    """
    resolve = config.resolve
    num_policies = 2 * resolve.num_replicates * min(num_parameters, resolve.num_directions)
    own = num_policies * resolve.num_episodes if config.estimator == "resolve" else 0
    return 2 * config.num_extra_episodes + own


def evaluation_virtual(config: VirtualTrainingConfig, evaluation: EvaluationConfig) -> VirtualTrainingConfig:
    """Zero-shot training as the evaluation runs it: one iteration of its own updates, in a frozen model."""
    return replace(
        config,
        num_model_steps=0,
        num_policy_updates=evaluation.num_updates,
        num_samples=evaluation.num_samples,
    )


def from_dict(cls: type[Any], data: Any) -> Any:
    """The inverse of `dataclasses.asdict` for dataclasses of numbers, strings, lists, tuples and dataclasses.

    Raises:
        ValueError: a missing or unknown field, or a value of another type; names the field.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__}: expected an object, got {data!r}")
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    if unknown := set(data) - names:
        raise ValueError(f"{cls.__name__}: unknown field {sorted(unknown)[0]!r}")
    if missing := names - set(data):
        raise ValueError(f"{cls.__name__}: missing field {sorted(missing)[0]!r}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = from_dict(hint, value)  # type: ignore[arg-type]
            continue
        parts = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if isinstance(value, list) and any(get_origin(part) is tuple for part in parts):  # JSON has no tuples
            value = tuple(value)
        if not _is_instance(value, hint):
            raise ValueError(f"{cls.__name__}.{name}: expected {hint}, got {value!r}")
        values[name] = value
    return cls(**values)


def _is_instance(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a hint; the contents of containers are left to `check_config`."""
    origin = get_origin(hint)
    if origin is UnionType:
        return any(_is_instance(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
