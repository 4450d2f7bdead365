"""`admrl train`"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from admrl.config import check_saving
from admrl.display import Display, JobReporter
from admrl.interruption import Interrupted, deferred_signals
from admrl.parallel import num_cores
from admrl.run_store import Run, versions
from admrl.train_run import prepare_run, resume_run, steps_left, train_run

if TYPE_CHECKING:
    from admrl.commands.options import Train


ALLOWED_WITH_RESUME = ("resume", "num_threads", "checkpoint_seconds", "keep_checkpoints")


def prepare(command: Train) -> Run:
    """The run to train, checked; its folder exists afterwards.

    Raises:
        ValueError, ImportError: see `prepare_run` and `resume_run`.
    """
    if command.num_threads < 1:
        raise ValueError(f"--num-threads: expected 1 or more, got {command.num_threads}")
    check_saving(command.checkpoint_seconds, command.keep_checkpoints)
    if command.resume is not None:
        allowed = {name: getattr(command, name) for name in ALLOWED_WITH_RESUME}
        if command != replace(type(command)(), **allowed):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in ALLOWED_WITH_RESUME[1:])
            raise ValueError(
                f"--resume continues a run with its own settings; leave out all options but {options}"
            )
        run = resume_run(command.resume)
        if run.finished:
            if run.lock is not None:
                run.lock.release()
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


def thread_warning(num_threads: int) -> str | None:
    """Why so many threads may be slower than one on this machine at this moment, or None."""
    cores, load = num_cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if num_threads == 1 or num_threads + load <= cores + 0.5:
        return None
    return (
        f"--num-threads {num_threads} on {cores} cores with a load of {load:.1f}: threads that wait for each "
        "other on busy cores can be slower than one; 1 is safe"
    )


def set_up(num_threads: int, started_with: dict[str, str]) -> Console:
    """Threads, and warnings about them and about versions that differ from those that the run was started with."""
    torch.set_num_threads(num_threads)
    console = Console(markup=False)
    if warning := thread_warning(num_threads):
        console.print(f"warning: {warning}", style="yellow")
    now = versions()
    if changed := [p for p in ("mujoco", "torch") if started_with.get(p) != now[p]]:
        console.print(
            "warning: this run was started with "
            + ", ".join(f"{p} {started_with.get(p)} (now {now[p]})" for p in changed),
            style="yellow",
        )
    return console


def execute(command: Train, run: Run) -> None:
    """Train, with a progress display; Ctrl-C and SIGTERM save and say how to go on."""
    console = set_up(command.num_threads, run.info.versions)
    name = run.info.selector
    try:
        with (
            deferred_signals(),
            Display(console, {name: steps_left(run)}) as display,
        ):
            train_run(
                run,
                JobReporter(name, display.handle),
                num_threads=command.num_threads,
                checkpoint_seconds=command.checkpoint_seconds,
                keep_checkpoints=command.keep_checkpoints,
            )
    except Interrupted as interrupt:
        raise Interrupted(
            f"{len(run.state.records)} of {run.info.config.num_tasks} tasks are done, the one in progress is saved; "
            f"continue with: admrl train --resume {run.path}",
            interrupt.signum,
        ) from None
    size = run.family.box.size
    hint = f"\nnext: admrl evaluate {run.path} --grid {' '.join('6' * size)}" if size <= 3 else ""
    console.print(
        f"{len(run.state.records)} tasks, {run.state.real_samples} real and {run.state.virtual_samples} "
        f"virtual samples -> {run.path}{hint}",
        highlight=False,
    )
