"""What trainings from the command line share: threads and warnings, display, interruption."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from torch import Tensor

from admrl.jobs.display import Display, JobReporter, TextConsole
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.pool import num_cores
from admrl.run_kinds import TrainedRun
from admrl.runs.versions import versions
from admrl.solving.adaptation import zero_shot
from admrl.solving.solution import Solution
from admrl.streams import Purpose, stream
from admrl.training.run import Run


def train_in_session(
    run: TrainedRun,
    train: Callable[..., None],
    num_threads: int,
    checkpoint_seconds: float,
    keep_checkpoints: int,
    trackers: Sequence[str] = (),
) -> Console:
    """Train a run with a progress display; Ctrl-C and SIGTERM save and say how to go on.

    Args:
        train: `train_run`, or that of another kind of run.
    """
    console, name = set_up(num_threads, run.info.versions), run.info.selector
    try:
        with deferred_signals(), Display(console, {name: run.steps_left}) as display:
            train(
                run,
                JobReporter(name, display.handle),
                num_threads=num_threads,
                checkpoint_seconds=checkpoint_seconds,
                keep_checkpoints=keep_checkpoints,
                trackers=trackers,
            )
    except Interrupted as interrupt:
        raise Interrupted(
            f"{run.progress}, the one in progress is saved; continue with: {run.resume_command}",
            interrupt.signum,
        ) from None
    return console


def solve_zero_shot(run: Run, psi: Tensor, num_updates: int, seed: int, name: str) -> Solution:
    """The policy that is optimal for a task (1, k) in a run's model, with a progress display.

    Args:
        psi: checked by the caller; it may lie outside the box.
        name: of the display.
    """
    virtual = run.virtual
    num_iterations = math.ceil(num_updates / virtual.num_policy_updates)
    with Display(TextConsole(), {name: num_iterations * virtual.num_policy_updates}) as display:
        return zero_shot(
            run.family,
            run.learner.model,
            psi,
            run.policy,
            num_iterations,
            virtual,
            [stream(seed, Purpose.FILM_POLICY)],
            allow_outside=True,
            reporter=JobReporter(name, display.handle),
        )


def set_up(num_threads: int, started_with: dict[str, str]) -> Console:
    """Threads, and warnings about them and about versions that differ from those that the run was started with."""
    torch.set_num_threads(num_threads)
    console = TextConsole()
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


def thread_warning(num_threads: int) -> str | None:
    """Why so many threads may be slower than one on this machine at this moment, or None."""
    cores, load = num_cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if num_threads == 1 or num_threads + load <= cores + 0.5:
        return None
    return (
        f"--num-threads {num_threads} on {cores} cores with a load of {load:.1f}: threads that wait for each "
        "other on busy cores can be slower than one; 1 is safe"
    )
