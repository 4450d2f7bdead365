"""Independent jobs on a few processes, one thread each, with one progress display.

One thread per process: on a shared machine two torch threads can be far slower than one, and results are then
bit-identical from run to run.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from admrl.jobs.display import Display, JobReporter
from admrl.jobs.interruption import Interruptible, check_interruption, deferred_signals, follow_orders_only
from admrl.jobs.reporter import Reporter

_queue: Any = None


class WorkerDied(RuntimeError):
    """A process of `run_jobs` was killed, or ended without an exception. What finished jobs wrote is there."""


@dataclass(frozen=True)
class Job:
    """function(*arguments, reporter) in another process."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    num_steps: int  # calls of Reporter.advance, for the progress bar
    saves_itself: bool = False  # stops between its steps, once it has saved; others stop at their next report


def run_jobs(jobs: Sequence[Job], num_workers: int, console: Console) -> list[Any]:
    """Results in the order of the jobs; the first exception of a job is raised here, the others are stopped.

    Jobs are stopped by SIGTERM (`admrl.jobs.interruption`): they finish their step, save if they can, and are waited
    for.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a second one ends all processes at once.
        WorkerDied: a process was killed, as the system does where memory runs out.
    """
    totals: dict[str, int] = {}  # jobs of one name share a row
    for job in jobs:
        totals[job.name] = totals.get(job.name, 0) + job.num_steps
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    executor = ProcessPoolExecutor(
        max_workers=min(num_workers, len(jobs)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(messages,),
    )
    try:
        with (
            deferred_signals(),
            Display(console, totals) as display,
            _stopping(executor),
        ):
            futures = [executor.submit(_run, job) for job in jobs]
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                _drain(messages, display)
                check_interruption()
                for future in done:
                    future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise WorkerDied(
            "one of the processes was killed, or ended by itself; if memory ran out, take fewer at a time, or "
            "smaller batches. Jobs that were finished are kept: the same command goes on after them"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _stopping(executor: ProcessPoolExecutor) -> Iterator[None]:
    """If anything goes wrong inside, the workers stop, while a second signal can still end everything."""
    try:
        yield
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)
        raise


def _start_worker(messages: Any) -> None:
    follow_orders_only()  # the parent stops us ...
    threading.Thread(target=_follow_parent, daemon=True).start()  # ... also when it was killed
    import torch

    global _queue
    _queue = messages
    torch.set_num_threads(1)


def _follow_parent() -> None:
    """End this process with its parent, so that no orphan goes on writing into a run folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Job) -> Any:
    check_interruption()
    reporter: Reporter = JobReporter(job.name, _queue.put)
    return job.function(*job.arguments, reporter if job.saves_itself else Interruptible(reporter))


def _drain(messages: Any, display: Display) -> None:
    while True:
        try:
            display.handle(messages.get_nowait())
        except queue.Empty:
            return


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
