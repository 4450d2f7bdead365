"""`admrl train`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from admrl.display import Display, JobReporter
from admrl.run_store import Run, versions
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
        if command != replace(type(command)(), resume=command.resume, num_threads=command.num_threads):
            raise ValueError(
                "--resume continues a run with its own settings; leave out all options but --num-threads"
            )
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
    console = Console(markup=False)
    now = versions()
    if changed := [p for p in ("mujoco", "torch") if run.info.versions.get(p) != now[p]]:
        console.print(
            "warning: this run was started with "
            + ", ".join(f"{p} {run.info.versions.get(p)} (now {now[p]})" for p in changed),
            style="yellow",
        )
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
    size = run.family.box.size
    hint = f"\nnext: admrl evaluate {run.path} --grid {' '.join('6' * size)}" if size <= 3 else ""
    console.print(
        f"{len(run.state.records)} tasks, {run.state.real_samples} real and {run.state.virtual_samples} "
        f"virtual samples -> {run.path}{hint}",
        highlight=False,
    )
