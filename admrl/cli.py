"""The command line: `admrl COMMAND`; its options are in `admrl.commands.options`.

torch is imported only once a command has something to compute: --help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tyro

from admrl.baselines.config import ALGORITHMS, preset_config
from admrl.baselines.config import PRESETS as BASELINE_PRESETS
from admrl.commands.options import (
    Command,
    Compare,
    Evaluate,
    Gradcheck,
    Heatmap,
    Quickstart,
    ReferenceReturns,
    Render,
    SearchWorst,
    Train,
    TrainBaseline,
)
from admrl.config import PRESETS, REFERENCE_METHODS, SELECTORS
from admrl.files import StorageError
from admrl.search_config import OBJECTIVES, SCALES, SEARCHES
from task_families.registry import check_name, names

FAILED, USAGE_ERROR, OUTPUT_CLOSED = 1, 2, 141
DESCRIPTION = (
    "Model-based adversarial task search: find the tasks on which a learned model fails, train on them, "
    "measure the worst-case sub-optimality gap."
)


def main() -> None:
    """Entry point of the console script."""
    # before torch is imported: OpenMP threads that spin while they wait can make a busy machine 50 times slower;
    # spinning shortly costs an idle one nothing (docs/performance.md)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    arguments = sys.argv[1:] or ["--help"]
    try:
        with _usage_errors():
            command = parse(arguments)
        _execute(command)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except (StorageError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except BrokenPipeError:  # `admrl train --help | head`: nobody reads on, which is no error to report
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        sys.exit(OUTPUT_CLOSED)


def _execute(command: Command) -> None:
    if isinstance(command, Train):
        _train(command)
    elif isinstance(command, TrainBaseline):
        _train_baseline(command)
    elif isinstance(command, Quickstart):
        _quickstart(command)
    elif isinstance(command, Evaluate):
        _evaluate(command)
    elif isinstance(command, Render):
        _render(command)
    elif isinstance(command, Gradcheck):
        _gradcheck(command)
    elif isinstance(command, Compare):
        _compare(command)
    elif isinstance(command, ReferenceReturns):
        _reference(command)
    elif isinstance(command, SearchWorst):
        _search_worst(command)
    else:
        _heatmap(command)


def parse(arguments: list[str]) -> Command:
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
    settings: TrainBaseline | None = None
    if arguments[0] == "train-baseline":
        preset = _value_of("--preset", arguments, "laptop")
        check_name("--preset", preset, BASELINE_PRESETS)
        family = _value_of("--family", arguments, "point_robot")
        algorithm = next((word for word in arguments[1:] if word in ALGORITHMS), ALGORITHMS[0])
        settings = TrainBaseline(config=preset_config(preset, family, algorithm))
    baseline = (
        Annotated[TrainBaseline, tyro.conf.subcommand("train-baseline", default=settings)]
        if settings
        else TrainBaseline
    )
    union = (
        Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
        | train
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Heatmap, tyro.conf.subcommand("heatmap")]
        | Annotated[Gradcheck, tyro.conf.subcommand("gradcheck")]
        | Annotated[Render, tyro.conf.subcommand("render")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[ReferenceReturns, tyro.conf.subcommand("reference")]
        | Annotated[SearchWorst, tyro.conf.subcommand("search-worst")]
        | baseline
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


def _train_baseline(command: TrainBaseline) -> None:
    with _usage_errors():
        if command.resume is None:
            check_name("ALGORITHM", command.algorithm or "", ALGORITHMS)
            check_name("--family", command.family, names())
    from admrl.commands import train_baseline

    with _usage_errors():
        run = train_baseline.prepare(command)
    train_baseline.execute(command, run)


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
        prepared = evaluate.prepare(command)
    evaluate.execute(command, *prepared)


def _gradcheck(command: Gradcheck) -> None:
    from admrl.commands import gradcheck

    with _usage_errors():
        run, psi = gradcheck.prepare(command)
    gradcheck.execute(command, run, psi)


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


def _compare(command: Compare) -> None:
    from admrl.commands import compare

    with _usage_errors():
        compare.execute(command)


def _reference(command: ReferenceReturns) -> None:
    with _usage_errors():
        check_name("--family", command.family, names())
        for method in command.methods:
            check_name("--methods", method, REFERENCE_METHODS)
    from admrl.commands import reference

    with _usage_errors():
        job = reference.prepare(command)
    reference.execute(command, job)


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
