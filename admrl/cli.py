"""The command line: `admrl quickstart | train | evaluate | heatmap | render | search-worst`.

torch is imported only once a command has something to compute: --help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from admrl.config import PRESETS, SELECTORS, EvaluationConfig, MetaTrainConfig
from admrl.search_config import OBJECTIVES, SCALES, SEARCHES
from task_families.registry import check_name, names

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130
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
    """How the next task is chosen: adversarial (the paper's), uniform, gaussian, screened, default, ...; see
    docs/search.md. Settings: --config.search.*"""
    preset: str = "laptop"
    """Where the settings start from: smoke (seconds), laptop (minutes) or paper (hours). --config.* change them."""
    variant: str = "released"
    """The constants of the released code, or what the paper prints where it differs ("paper")."""
    seed: int = 0
    """Seed of everything."""
    out: Path | None = None
    """Run folder; must not exist or be empty. Default: runs/FAMILY-SELECTOR-SEED."""
    resume: Path | None = None
    """Continue this run folder after its last finished task; its own settings apply."""
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
    objective: str = "worst"
    """worst, cvar, softmax or mean: one number for each method's gaps over the tasks, printed below the table."""
    alpha: float = 0.2
    """Share of tasks of the CVaR."""
    temperature: float = 0.5
    """Of the softmax, in standard deviations of the gaps."""
    scale: str = "absolute"
    """Gaps of that number: absolute (A* - A), or ratio (A* - A) / |A*|."""
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


@dataclass(frozen=True)
class SearchWorst:
    """Search the tasks on which a run fails most, and say with how much certainty.

    Every task is solved zero-shot in the run's frozen model and by a reference run, in batches; the worst distinct
    tasks are evaluated anew with fresh policies, and filmed. Writes worst.json, search.safetensors and the films.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    search: str = "default"
    """How tasks are searched: default, gp, multistart, cem, uniform, grid, ...; see docs/search.md."""
    budget: int = 36
    """Tasks to evaluate, the uniform probes among them."""
    batch: int = 6
    """Tasks solved together."""
    num_probes: int = 12
    """Uniform tasks evaluated first; they bound the mass of the tasks that are worse."""
    top: int = 3
    """Worst distinct tasks to report."""
    min_distance: float = 0.1
    """Between two of them, in unit coordinates per root of the number of task parameters."""
    difference: float = 0.1
    """Half-step of the differences that give the gradient at the worst tasks, in unit coordinates; 0: no gradient."""
    scale: str = "absolute"
    """The gap: absolute (A* - A), or ratio (A* - A) / |A*|."""
    confidence: float = 0.95
    """Of intervals and bounds."""
    seed: int = 0
    """Seed of the search, of its policies and episodes."""
    film: bool = True
    """Film the worst tasks, if the family has a body."""
    out: Path | None = None
    """Folder to write to. Default: RUN/worst."""
    config: EvaluationConfig = EvaluationConfig()


def main() -> None:
    """Entry point of the console script."""
    # before torch is imported: idle OpenMP threads that spin can make a shared machine 50 times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
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
        elif isinstance(command, SearchWorst):
            _search_worst(command)
        else:
            _heatmap(command)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {interrupt or 'nothing was written'}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def parse(arguments: list[str]) -> Quickstart | Train | Evaluate | Heatmap | Render | SearchWorst:
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
        | Annotated[SearchWorst, tyro.conf.subcommand("search-worst")]
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
    train.execute(run, command.num_threads)


def _quickstart(command: Quickstart) -> None:
    with _usage_errors():
        check_name("--preset", command.preset, tuple(PRESETS))
    from admrl.commands import quickstart

    with _usage_errors():
        runs = quickstart.prepare(command)
    quickstart.execute(command, runs)


def _evaluate(command: Evaluate) -> None:
    with _usage_errors():
        check_name("--objective", command.objective, OBJECTIVES)
        check_name("--scale", command.scale, SCALES)
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


def _search_worst(command: SearchWorst) -> None:
    with _usage_errors():
        check_name("--search", command.search, SEARCHES)
        check_name("--scale", command.scale, SCALES)
    from admrl.commands import render, search_worst

    with _usage_errors():
        run, search = search_worst.prepare(command)
    report = search_worst.execute(command, run, search)
    if not command.film or not hasattr(run.family, "model"):
        return
    for number, task in enumerate(report.tasks, start=1):
        film = Render(
            run=command.run,
            psi=task.psi,
            seed=command.seed,
            num_updates=command.config.num_updates,
            out=Path(search_worst.film_file(command, run, number)),
        )
        try:
            render.execute(film, render.prepare(film))
        except RuntimeError as error:  # no OpenGL without a screen; the report is written
            print(f"no film: {error}", file=sys.stderr)
            return


def _heatmap(command: Heatmap) -> None:
    from admrl.commands import heatmap

    with _usage_errors():
        heatmap.execute(command)


if __name__ == "__main__":
    main()
