"""`admrl train`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from admrl.display import Display, JobReporter
from admrl.run_store import Run
from admrl.train_run import num_train_steps, prepare_run, resume_run, train_run

if TYPE_CHECKING:
    from admrl.cli import Train


def prepare(command: Train) -> Run:
    """The run to train, checked; its folder exists afterwards.

    Raises:
        ValueError, ImportError: see `prepare_run` and `resume_run`.
    """
    if command.num_threads < 1:
        raise ValueError(f"--num-threads: expected 1 or more, got {command.num_threads}")
    if command.resume is not None:
        run = resume_run(command.resume)
        if run.finished:
            raise ValueError(f"{command.resume}: all {len(run.state.records)} tasks are done already")
        return run
    out = command.out or Path("runs") / f"{command.family}-{command.selector}-{command.seed}"
    return prepare_run(
        out,
        family=command.family,
        variant=command.variant,
        selector=command.selector,
        preset=command.preset,
        seed=command.seed,
        config=command.config,
    )


def execute(run: Run, num_threads: int) -> None:
    """Train, with a progress display; Ctrl-C says how to go on."""
    torch.set_num_threads(num_threads)
    console = Console()
    name = run.info.selector
    done = len(run.state.records)
    try:
        with Display(console, {name: num_train_steps(run.info.config, done)}) as display:
            train_run(run, JobReporter(name, display.handle), num_threads=num_threads)
    except KeyboardInterrupt:
        done = len(run.state.records)
        raise KeyboardInterrupt(
            f"{done} tasks are saved; continue with: admrl train --resume {run.path}"
        ) from None
    grid = " ".join("6" * run.family.box.size)
    console.print(
        f"{len(run.state.records)} tasks, {run.state.real_samples} real and {run.state.virtual_samples} "
        f"virtual samples -> {run.path}\nnext: admrl evaluate {run.path} --grid {grid}",
        highlight=False,
    )
