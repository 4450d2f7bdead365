"""`admrl train-baseline`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from admrl.baselines.baseline_run import BaselineRun, prepare_baseline, resume_baseline, train_baseline_run
from admrl.baselines.config import TITLES
from admrl.baselines.training import num_steps
from admrl.commands.train import set_up
from admrl.config import check_saving
from admrl.display import Display, JobReporter
from admrl.interruption import Interrupted, deferred_signals

if TYPE_CHECKING:
    from admrl.commands.options import TrainBaseline

ALLOWED_WITH_RESUME = ("algorithm", "resume", "num_threads", "checkpoint_seconds", "keep_checkpoints")


def prepare(command: TrainBaseline) -> BaselineRun:
    """The run to train, checked; its folder exists afterwards.

    Raises:
        ValueError, ImportError: see `prepare_baseline` and `resume_baseline`.
    """
    if command.num_threads < 1:
        raise ValueError(f"--num-threads: expected 1 or more, got {command.num_threads}")
    check_saving(command.checkpoint_seconds, command.keep_checkpoints)
    if command.resume is not None:
        return _resume(command)
    assert command.algorithm is not None
    out = command.out or Path("runs") / f"{command.family}-{command.algorithm}-{command.seed}"
    return prepare_baseline(
        out,
        algorithm=command.algorithm,
        family=command.family,
        variant=command.variant,
        preset=command.preset,
        seed=command.seed,
        config=command.config,
    )


def _resume(command: TrainBaseline) -> BaselineRun:
    assert command.resume is not None
    allowed = {name: getattr(command, name) for name in ALLOWED_WITH_RESUME}
    # the settings that a command line without any would have
    default = replace(type(command)(), config=command.default_config())
    if command != replace(default, **allowed):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ALLOWED_WITH_RESUME[2:])
        raise ValueError(
            f"--resume continues a run with its own settings; leave out all options but {options}"
        )
    run = resume_baseline(command.resume)
    if command.algorithm not in (None, run.info.algorithm):
        _release(run)
        raise ValueError(
            f"{command.resume} holds a run of {run.info.algorithm}, not of {command.algorithm}; continue it with: "
            f"{run.resume_command}"
        )
    if run.finished:
        _release(run)
        raise ValueError(f"{command.resume}: {run.progress} already")
    return run


def _release(run: BaselineRun) -> None:
    if run.lock is not None:
        run.lock.release()


def execute(command: TrainBaseline, run: BaselineRun) -> None:
    """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
    console = set_up(command.num_threads, run.info.versions)
    name = run.info.algorithm
    try:
        with (
            deferred_signals(),
            Display(console, {name: num_steps(run.info.config) - run.state.step}) as display,
        ):
            train_baseline_run(
                run,
                JobReporter(name, display.handle),
                num_threads=command.num_threads,
                checkpoint_seconds=command.checkpoint_seconds,
                keep_checkpoints=command.keep_checkpoints,
            )
    except Interrupted as interrupt:
        raise Interrupted(
            f"{run.progress}, the one in progress is saved; continue with: {run.resume_command}",
            interrupt.signum,
        ) from None
    last = ""
    if run.state.curve:
        point = run.state.curve[-1]
        last = f"; test tasks: A_0 {point.first_return:.4g}, after adaptation {point.adapted_return:.4g}"
    console.print(
        f"{TITLES[name]}: {run.state.num_updates} gradient steps, {run.state.real_samples} real samples{last} -> "
        f"{run.path}\nnext: admrl evaluate {run.path} --reference FILE --config.num-stages 1 "
        f"--config.num-stage-samples {2 * run.family.horizon}",
        highlight=False,
    )
