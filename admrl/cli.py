"""The command line: `admrl COMMAND`. Parses, dispatches, and turns what went wrong into a message and an exit code.

Commands are in a table; the page of a command (`admrl.commands`) is imported when it is named. torch is imported only
once a command has something to compute: --help and mistakes are answered at once.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from admrl.commands.command import Command

FAILED, USAGE_ERROR, OUTPUT_CLOSED = 1, 2, 141
DESCRIPTION = (
    "Model-based adversarial task search: find the tasks on which a learned model fails, train on them, "
    "measure the worst-case sub-optimality gap."
)
COMMANDS = {  # name: (page, class, what `admrl --help` says)
    "quickstart": (
        "quickstart",
        "Quickstart",
        "Two trainings, by default on Hopper2D, and one figure with the gaps of both.",
    ),
    "train": ("train", "Train", "Meta-train on a family of tasks (Alg. 1)."),
    "train-baseline": ("train_baseline", "TrainBaseline", "Meta-train PEARL, MAML, RL2 or another baseline."),
    "evaluate": ("evaluate", "Evaluate", "Sub-optimality gaps of runs on a set of tasks."),
    "heatmap": ("heatmap", "Heatmap", "Draw the gap heat maps of evaluated runs side by side."),
    "compare": ("compare", "Compare", "Compare evaluated runs: intervals, all figures, one HTML report."),
    "reference": ("reference", "ReferenceReturns", "Compute or extend a file of reference returns A*."),
    "study": (
        "study",
        "RunStudy",
        "Train, evaluate and compare all that a file names; go on where it stopped.",
    ),
    "search-worst": ("search_worst", "SearchWorst", "Search the tasks on which a run fails most."),
    "gradcheck": (
        "gradcheck",
        "Gradcheck",
        "Compare the estimators of the task gradient at a task of a run.",
    ),
    "render": ("render", "Render", "Film one episode, without a screen."),
    "export": ("export", "Export", "Write a policy of a run as an ONNX or TorchScript file."),
    "export-data": ("datasets", "ExportData", "Write the real transitions of a run as a Minari data set."),
    "fit-dynamics": (
        "datasets",
        "FitDynamics",
        "Fit a dynamics model to logged transitions; say how good it is.",
    ),
}


def main() -> None:
    """Entry point of the console script."""
    # before torch is imported: OpenMP threads that spin while they wait can make a busy machine 50 times slower;
    # spinning shortly costs an idle one nothing (docs/performance.md)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    _say_anything()
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except BrokenPipeError:  # `admrl train --help | head`: nobody reads on, which is no error to report
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        sys.exit(OUTPUT_CLOSED)


def _say_anything() -> None:
    """No text ends a command, whatever the encoding of the terminal."""
    from admrl.storage.files import SPELT

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELT)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"admrl {version('admrl')}")
        return
    from admrl.commands.command import CommandFailed
    from admrl.commands.flags import in_flags
    from admrl.config.environment import check_environment
    from admrl.jobs.pool import WorkerDied
    from admrl.storage.files import StorageError

    kind: type[Command] | None = None
    try:
        try:  # only what prepares work: what the user got wrong is one message and exit code 2
            kind = command_class(arguments[0])
            command = parse(arguments)
            kind = type(command)
            check_environment()
            command.check()
            prepared = command.prepare()
        except (ValueError, ImportError) as error:
            _fail(in_flags(str(error), kind), USAGE_ERROR)
        except OSError as error:
            _fail_at_path(error, USAGE_ERROR)
        command.execute(prepared)
    except (StorageError, FloatingPointError, CommandFailed, WorkerDied) as error:
        _fail(in_flags(str(error), kind), FAILED)
    except OSError as error:
        _fail_at_path(error, FAILED)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _fail_at_path(error: OSError, exit_code: int) -> NoReturn:
    """What the system says of a path that it refuses: a name that is too long, a folder that is somebody else's."""
    if error.filename is None:
        raise error
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    _fail(f"{path}: {error.strerror}; choose another path", exit_code)


def overview() -> str:
    """What `admrl --help` prints."""
    width = max(map(len, COMMANDS)) + 4
    rows = [f"  {name:<{width - 2}}{sentence}" for name, (_, _, sentence) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: admrl COMMAND [OPTIONS]",
            "",
            *textwrap.wrap(DESCRIPTION, 79),
            "",
            "commands:",
            *rows,
            "",
            "admrl COMMAND --help explains the options of each; admrl --version.",
        ]
    )


def command_class(name: str) -> type[Command]:
    """The class of a command.

    Raises:
        ValueError: there is none of that name; says which is nearest.
    """
    from task_families.choices import check_name

    check_name("COMMAND", name, tuple(COMMANDS))
    page, cls, _ = COMMANDS[name]
    return getattr(import_module(f"admrl.commands.{page}"), cls)


def parse(arguments: list[str]) -> Command:
    """The command of an argument list; --help shows the settings of the preset that is named.

    Raises:
        ValueError: an unknown command or preset, with the nearest name.
        SystemExit: --help, or options that do not parse (exit code 2).
    """
    import tyro

    from admrl.commands.flags import describe

    kind, rest = command_class(arguments[0]), arguments[1:]
    default = kind.defaults(rest)
    if default is not None:
        kind = type(default)
    options: dict[str, object] = {} if default is None else {"default": default}
    if {"-h", "--help"} & set(rest):
        options["description"] = describe(kind)
    return tyro.cli(kind, args=rest, prog=f"admrl {arguments[0]}", **options)  # type: ignore[call-overload]
