"""The command line: `admrl quickstart | train | evaluate | heatmap | render`.

torch is imported only once a command has something to compute: --help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from admrl.config import PRESETS, SELECTORS, EvaluationConfig, MetaTrainConfig
from admrl.files import StorageError
from task_families.registry import check_name, names

FAILED, USAGE_ERROR = 1, 2
DESCRIPTION = (
    "Model-based adversarial task search: find the tasks on which a learned model fails, train on them, "
    "measure the worst-case sub-optimality gap."
)


@dataclass(frozen=True)
class Quickstart:
    """Adversarial and uniform meta-training on Hopper2D, and one figure with the gaps of both.

    Trains twice with equal budgets, the same seed and the same initial policies, evaluates both on a common
    grid of tasks, prints a table and draws quickstart.png. Real MuJoCo; about 10 minutes on two cores.
    """

    out: Path = Path("quickstart")
    """Folder for the two runs, the tables and the figure; must not exist or be empty."""
    seed: int = 0
    """Seed of both trainings and of the evaluation."""
    grid: tuple[int, int] = (4, 4)
    """Tasks per task parameter on the evaluation grid."""
    preset: str = "laptop"
    """smoke (seconds, proves the installation), laptop or paper (hours)."""
    num_workers: int = 2
    """Processes, one thread each."""


@dataclass(frozen=True)
class Train:
    """Meta-train on a family of tasks (Alg. 1): adversarially chosen tasks, or random ones for comparison."""

    family: str = "hopper2d"
    """Task family."""
    selector: str = "adversarial"
    """How the next task is chosen: adversarial, uniform or gaussian."""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes) or paper (hours). --config.* change them."""
    variant: str = "released"
    """The constants of the released code, or what the paper prints where it differs ("paper")."""
    seed: int = 0
    """Seed of everything."""
    out: Path | None = None
    """Run folder; must not exist or be empty. Default: runs/FAMILY-SELECTOR-SEED."""
    resume: Path | None = None
    """Continue this run folder where it stopped, bit-identically on one thread; its own settings apply."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints within a phase (the end of every phase has its own); 0: after every step."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; if the newest is damaged, the one before is used."""
    num_threads: int = 1
    """Threads of torch and of the simulator. More than 1 pays only on idle cores and costs bit-identity."""
    config: MetaTrainConfig = field(default_factory=lambda: PRESETS["laptop"])


@dataclass(frozen=True)
class Evaluate:
    """Zero-shot sub-optimality gaps of runs over a grid of tasks, against the best known returns.

    All policies are solved in the frozen models in batches, then scored in the simulator. Writes gaps.json into
    each run folder.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of one family; evaluated together they share one reference A*."""
    grid: tuple[int, ...] = (6, 6)
    """Tasks per task parameter, corners included."""
    seed: int = 0
    """Seed of the evaluation, the same for all runs."""
    num_workers: int = 2
    """Processes, one thread each."""
    config: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class Heatmap:
    """Draw the gap heat maps of evaluated runs side by side on one colour scale."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (or gaps.json files) that `admrl evaluate` has been given together."""
    out: Path = Path("gap.png")
    """Figure to write: .png, .pdf or .svg."""


@dataclass(frozen=True)
class Render:
    """Film one episode, without a screen: a moving picture and a strip of stills beside it.

    With --run, the policy is the one that is optimal for psi in the run's model (zero-shot); without, actions are
    random. Needs EGL or OSMesa; says which Debian package to install if neither works.
    """

    family: str | None = None
    """Task family with a MuJoCo body. Default: the run's, or hopper2d."""
    psi: tuple[float, ...] | None = None
    """The task, one number per task parameter. Default: the family's first task."""
    run: Path | None = None
    """Run folder whose model the policy is solved in."""
    out: Path | None = None
    """File to write, .gif or .mp4 (needs admrl[video]), beside FILE-strip.png. Default: FAMILY.gif, or film.gif."""
    variant: str = "released"
    """The family's variant; a run has its own."""
    allow_outside: bool = False
    """Accept a task outside the box."""
    num_pictures: int = 6
    """Stills on the strip, evenly spaced over the episode."""
    num_updates: int = 100
    """TRPO updates of the zero-shot policy."""
    seed: int = 0
    """Seed of the start state, the random actions and the policy."""


def main() -> None:
    """Entry point of the console script."""
    # before torch is imported: idle OpenMP threads that spin can make a shared machine 50 times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    arguments = sys.argv[1:] or ["--help"]
    with _usage_errors():
        command = parse(arguments)
    try:
        if isinstance(command, Train):
            _train(command)
        elif isinstance(command, Quickstart):
            _quickstart(command)
        elif isinstance(command, Evaluate):
            _evaluate(command)
        elif isinstance(command, Render):
            _render(command)
        else:
            _heatmap(command)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except (StorageError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)


def parse(arguments: list[str]) -> Quickstart | Train | Evaluate | Heatmap | Render:
    """The command of an argument list.

    --help shows the settings of the preset that is named, and --config.* change single ones.

    Raises:
        ValueError: an unknown preset, with the nearest name.
        SystemExit: --help, or options that do not parse (exit code 2).
    """
    default: Train | None = None
    if arguments[0] == "train":
        preset = _value_of("--preset", arguments, "laptop")
        check_name("--preset", preset, tuple(PRESETS))
        default = Train(preset=preset, config=PRESETS[preset])
    train = Annotated[Train, tyro.conf.subcommand("train", default=default)] if default else Train
    union = (
        Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
        | train
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Heatmap, tyro.conf.subcommand("heatmap")]
        | Annotated[Render, tyro.conf.subcommand("render")]
    )
    return tyro.cli(union, args=arguments, prog="admrl", description=DESCRIPTION)  # type: ignore


def _value_of(option: str, arguments: list[str], default: str) -> str:
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return default


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turns what the user got wrong into one message and exit code 2. Only for code that prepares work."""
    try:
        yield
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _train(command: Train) -> None:
    with _usage_errors():
        if command.resume is None:
            check_name("--family", command.family, names())
            check_name("--selector", command.selector, SELECTORS)
    from admrl.commands import train

    with _usage_errors():
        run = train.prepare(command)
    train.execute(command, run)


def _quickstart(command: Quickstart) -> None:
    with _usage_errors():
        check_name("--preset", command.preset, tuple(PRESETS))
    from admrl.commands import quickstart

    with _usage_errors():
        runs = quickstart.prepare(command)
    quickstart.execute(command, runs)


def _evaluate(command: Evaluate) -> None:
    from admrl.commands import evaluate

    with _usage_errors():
        runs, psi = evaluate.prepare(command)
    evaluate.execute(command, runs, psi)


def _render(command: Render) -> None:
    with _usage_errors():
        if command.family is not None:
            check_name("--family", command.family, names())
    from admrl.commands import render

    try:
        with _usage_errors():
            job = render.prepare(command)
    except RuntimeError as error:  # no OpenGL without a screen: the message says what to install
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    render.execute(command, job)


def _heatmap(command: Heatmap) -> None:
    from admrl.commands import heatmap

    with _usage_errors():
        heatmap.execute(command)


if __name__ == "__main__":
    main()
