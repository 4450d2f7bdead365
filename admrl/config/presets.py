"""The presets of meta-training: they only fill values in; and how they are rounded to the horizon of a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from admrl.config.checks import nearest_divisor
from admrl.config.evaluation import EvaluationConfig
from admrl.config.search import SearchConfig
from admrl.config.training import (
    MetaTrainConfig,
    ResolveConfig,
    SlboConfig,
    TaskGradientConfig,
    VirtualTrainingConfig,
)
from dynamics.config import DynamicsConfig
from policy_opt.config import TrpoConfig

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
    search=SearchConfig(population_size=4, num_probe_iterations=1, num_probe_samples=800),
)
PRESETS = {"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER}
"""One task after another. smoke: seconds, proves the installation; laptop: minutes; paper: Table 1, App. C, hours."""


class Rounds(NamedTuple):
    """The sizes of a preset in rounds of several tasks, at its real budget (task families of two parameters)."""

    tasks_per_round: int
    num_tasks: int
    num_stage_samples: int
    num_gradient_samples: int


_ROUNDS = {
    "smoke": Rounds(2, 4, 800, 1600),
    "laptop": Rounds(4, 16, 4000, 6400),
    "paper": Rounds(4, 28, 9600, 12_800),
}


def preset_config(preset: str, selector: str) -> MetaTrainConfig:
    """A preset as it is for a selector: population trains on several tasks at once, all others on one."""
    config = PRESETS[preset]
    if selector != "population":
        return config
    rounds = _ROUNDS[preset]
    return replace(
        config,
        num_tasks=rounds.num_tasks,
        tasks_per_round=rounds.tasks_per_round,
        slbo=replace(config.slbo, num_samples=rounds.num_stage_samples),
        gradient=replace(config.gradient, num_samples=rounds.num_gradient_samples),
    )


class Whole(NamedTuple):
    """What a count must be: a multiple of a unit, and so many of them at least."""

    unit: int
    least: int = 1


def fitted(
    config: MetaTrainConfig, default: MetaTrainConfig, horizon: int, preset: str
) -> tuple[MetaTrainConfig, list[str]]:
    """The configuration with those sample counts that are the default's rounded to whole episodes of the horizon; and
    what was changed, for the user. Counts of the user's own stay, fit or not.

    Args:
        default: what the user began with.
        preset: its name, for the user.
    """
    members, num_tasks = config.dynamics.num_members, config.tasks_per_round
    units = {
        "virtual.num_samples": Whole(horizon * members),
        "slbo.num_samples": Whole(horizon * num_tasks),
        "gradient.num_samples": Whole(horizon * members * num_tasks, 2),
        "search.num_screen_samples": Whole(horizon * members),
        "search.num_probe_samples": Whole(horizon * members),
    }
    config, notes = round_counts(config, default, units, f"preset {preset}, horizon {horizon}")
    virtual, steps = config.virtual, default.virtual.steps_per_lane
    if steps is not None and virtual.steps_per_lane == steps and horizon % steps:
        fits = nearest_divisor(steps, horizon)
        config = replace(config, virtual=replace(virtual, steps_per_lane=fits))
        notes.append(f"preset {preset}, horizon {horizon}: `config.virtual.steps_per_lane` {steps} -> {fits}")
    longest = default.fit.num_horizon
    if config.fit.num_horizon == longest > horizon:
        config = replace(config, fit=replace(config.fit, num_horizon=horizon))
        notes.append(f"preset {preset}, horizon {horizon}: `config.fit.num_horizon` {longest} -> {horizon}")
    return config, notes


def fitted_evaluation(
    config: EvaluationConfig, horizon: int, members: int, default: EvaluationConfig | None = None
) -> tuple[EvaluationConfig, list[str]]:
    """The same for the counts of an evaluation that are the defaults.

    Args:
        members: of the models in which policies are trained; where they differ, a common multiple.
        default: what the user began with.
    """
    units = {
        "num_samples": Whole(horizon * members),
        "num_reference_samples": Whole(horizon),
        "num_stage_samples": Whole(horizon),
    }
    return round_counts(config, default or EvaluationConfig(), units, f"horizon {horizon}")


def round_counts(config: Any, default: Any, units: Mapping[str, Whole], why: str) -> tuple[Any, list[str]]:
    """A configuration whose counts are rounded to the nearest multiple, where they are the default's; 0 stays 0.

    Args:
        units: by setting, parts of the configuration separated by dots.
        why: for the note, of which there is one or none.
    """
    changed = []
    for setting, whole in units.items():
        value = _value(config, setting)
        if value != _value(default, setting) or not value:
            continue
        new = max(whole.least, round(value / whole.unit)) * whole.unit
        if new != value:
            config = _with(config, setting, new)
            changed.append(f"`config.{setting}` {value} -> {new}")
    return config, [f"{why}: {', '.join(changed)}"] if changed else []


def _value(config: Any, setting: str) -> Any:
    for name in setting.split("."):
        config = getattr(config, name)
    return config


def _with(config: Any, setting: str, value: Any) -> Any:
    name, _, rest = setting.partition(".")
    return replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})
