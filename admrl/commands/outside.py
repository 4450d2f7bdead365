"""Methods from elsewhere beside runs (``--policy``, ``--method``): where their folders are, opening all together."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import fitted_evaluation

if TYPE_CHECKING:
    from admrl.run_kinds import AnyRun
    from admrl.runs.families import NamedFamily
    from task_families.family import TaskFamily


class Options(Protocol):
    """What a command that takes such methods is asked."""

    @property
    def policy(self) -> tuple[str, ...]:
        """See `admrl.baselines.outside`."""

    @property
    def method(self) -> tuple[str, ...]:
        """See `admrl.baselines.outside`."""

    @property
    def sees_psi(self) -> bool:
        """Whether the policies take psi."""

    @property
    def family(self) -> str | None:
        """The family, where no run says it, or where it is not one of this package."""


def method_folder(runs: Sequence[Path], family: str, name: str) -> Path:
    """Where a method's tables on a family go: beside the first run."""
    return (runs[0].parent if runs else Path("runs")) / f"{family}-{name}"


def named_by(options: Options, accept_changed: bool) -> NamedFamily:
    """What the user named, for whoever opens the folders.

    Raises:
        ValueError: what names no policy.
    """
    from admrl.baselines.outside import parse_methods
    from admrl.runs.families import NamedFamily

    methods = parse_methods(options.policy, options.method, options.sees_psi)
    return NamedFamily(options.family, accept_changed, methods=methods)


def open_together(runs: Sequence[Path], options: Options, accept_changed: bool) -> list[AnyRun]:
    """Runs, then methods from elsewhere, for which no folder is made yet (`create_all`).

    Raises:
        ValueError: see `load_any_run` and `outside_run`.
        ImportError: a policy needs an optional package.
    """
    from admrl.baselines.outside_run import outside_run
    from admrl.run_kinds import load_any_run

    named = named_by(options, accept_changed)
    opened: list[AnyRun] = [load_any_run(path, named) for path in runs]
    if not named.methods:
        return opened
    family = opened[0].family if opened else _family(options)
    for method in named.methods:
        folder = method_folder(runs, family.name, method.name)
        if folder.resolve() not in [run.path.resolve() for run in opened]:
            opened.append(outside_run(folder, method, family, named))
    return opened


def with_inferred(runs: Sequence[AnyRun], num_episodes: int | None, named: NamedFamily) -> list[AnyRun]:
    """Behind the runs, those of `admrl train` once more without being told psi.

    Raises:
        ValueError: none of the runs is one of `admrl train`, or see `inferred_run`.
    """
    from admrl.training.inferred_run import inferred_run
    from admrl.training.run import Run

    if num_episodes is None:
        return list(runs)
    ours = [run for run in runs if isinstance(run, Run)]
    if not ours:
        raise ValueError("infer_psi: expected at least one run of `admrl train`, got none")
    there = [run.path.resolve() for run in runs]
    new = [inferred_run(run, num_episodes, named) for run in ours]
    return [*runs, *(run for run in new if run.path.resolve() not in there)]


def create_all(runs: Sequence[AnyRun]) -> None:
    """Make the folders of methods from elsewhere, and of runs that are not told psi, that have none yet.

    Raises:
        ValueError: a folder holds something else.
        StorageError: see `create_outside`.
    """
    from admrl.baselines.outside_run import OutsideRun, create_outside
    from admrl.training.inferred_run import InferredRun, create_inferred

    for run in runs:
        if isinstance(run, InferredRun):
            create_inferred(run)
        if isinstance(run, OutsideRun):
            create_outside(run)


def fitted_to(
    config: EvaluationConfig, runs: Sequence[AnyRun], default: EvaluationConfig | None = None
) -> tuple[EvaluationConfig, list[str]]:
    """The configuration with those of its counts that are the default's rounded to whole episodes of the family; and
    what was changed, for the user."""
    sources = [source for run in runs if (source := run.model_source) is not None]
    members = math.lcm(*(source.learner.model.num_members for source in sources))
    return fitted_evaluation(config, runs[0].family.horizon, members, default)


def with_folders(runs: tuple[Path, ...], options: Options) -> tuple[Path, ...]:
    """Runs, and the folders of the methods that are named; runs none of their code.

    Raises:
        ValueError: a method was not evaluated yet, or as another one.
    """
    from admrl.baselines.outside import parse_methods
    from admrl.runs.config_file import CONFIG, read_config

    methods, found = parse_methods(options.policy, options.method, options.sees_psi), list(runs)
    name = _family_name(runs, options) if methods else ""
    for method in methods:
        folder = method_folder(runs, name, method.name)
        words = ["admrl", "evaluate", *map(str, runs), f"--{method.option}", f"{method.name}={method.word}"]
        words += ["--sees-psi"] * method.sees_psi
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"{method.option}: {method.name} has no tables in {folder}; run: {shlex.join(words)}"
            )
        config = read_config(folder).get("config", {})
        if (config.get("option"), config.get("sees_psi")) != (method.option, method.sees_psi):
            raise ValueError(
                f"{method.option}: {folder} is of a {config.get('option')} that "
                f"{'sees' if config.get('sees_psi') else 'does not see'} psi"
            )
        if folder.resolve() not in [path.resolve() for path in found]:
            found.append(folder)
    return tuple(found)


def _family(options: Options) -> TaskFamily:
    from task_families.registry import make

    if options.family is None:
        raise ValueError("family: name the family of the policies, or give runs beside them")
    return make(options.family)


def _family_name(runs: Sequence[Path], options: Options) -> str:
    """Without making it, where that is possible."""
    from admrl.evaluation.gap_table import GapTable
    from admrl.runs.config_file import read_config
    from task_families.registry import names

    if runs:
        return GapTable.load(runs[0]).family if runs[0].is_file() else str(read_config(runs[0]).get("family"))
    if options.family in names():
        return str(options.family)
    return _family(options).name
