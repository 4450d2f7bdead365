"""Training into a run folder: metrics while it goes, a checkpoint after every task, and going on from one."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from admrl.config import MetaTrainConfig
from admrl.meta_training import MetaState, meta_train, new_state
from admrl.reporting import Reporter
from admrl.run_store import CHECKPOINT, Run, RunInfo, create_run, load_run, read_info, save_state, versions
from task_families.registry import make

METRICS = (
    "return_model",
    "return_real_noisy",
    "model_loss",
    "held_out_loss",
    "split_half_cosine",
    "real_samples",
    "virtual_samples",
)


class MetricsLog:
    """Passes everything on to a reporter and writes it to metrics.csv and, if installed, TensorBoard."""

    def __init__(self, path: Path, reporter: Reporter, *, first_task: int) -> None:
        self._reporter = reporter
        self._phase, self._step, self._started = "", 0, time.monotonic()
        rows = self._rows_before(path / "metrics.csv", first_task)
        self._step = len(rows)
        self._file = open(path / "metrics.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._csv = csv.writer(self._file)
        self._csv.writerow(("step", "phase", "seconds", *METRICS))
        self._csv.writerows(rows)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            reporter.event(
                'metrics go to metrics.csv alone; for TensorBoard: pip install "admrl[tensorboard]"'
            )
        else:
            self._board = SummaryWriter(str(path / "tensorboard"), purge_step=self._step)

    @staticmethod
    def _rows_before(file: Path, first_task: int) -> list[list[str]]:
        """Rows of the tasks that a checkpoint covers; the rest is computed again."""
        if first_task == 0 or not file.is_file():
            return []
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.reader(opened))[1:]
        done = tuple(f"task {i + 1}/" for i in range(first_task))
        return [row for row in rows if len(row) > 1 and row[1].startswith(done)]

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def phase(self, name: str, num_steps: int) -> None:
        """See `Reporter.phase`."""
        self._phase = name
        self._file.flush()
        self._reporter.phase(name, num_steps)

    def advance(self, **metrics: float) -> None:
        """See `Reporter.advance`."""
        self._step += 1
        seconds = round(time.monotonic() - self._started, 2)
        self._csv.writerow((self._step, self._phase, seconds, *(metrics.get(name, "") for name in METRICS)))
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, self._step)
        self._reporter.advance(**metrics)

    def event(self, message: str) -> None:
        """See `Reporter.event`."""
        self._reporter.event(message)


def check_seed(seed: int) -> None:
    """Refuse a seed that generators cannot take."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"--seed: expected 0 to 2^62 - 1, got {seed}")


def prepare_run(
    path: Path,
    *,
    family: str,
    variant: str,
    selector: str,
    preset: str,
    seed: int,
    config: MetaTrainConfig,
) -> Run:
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
    """
    check_seed(seed)
    made = make(family, variant=variant)
    state = new_state(made, selector, config, seed)
    info = RunInfo(made.name, variant, selector, preset, seed, config, versions())
    create_run(path, info)
    return Run(path, info, made, state)


def resume_run(path: Path) -> Run:
    """A run folder, at its last checkpoint or at the beginning if it has none.

    Raises:
        ValueError: not a run folder, or damaged files.
    """
    info = read_info(path)
    if (path / CHECKPOINT).is_file():
        return load_run(path)
    family = make(info.family, variant=info.variant)
    return Run(path, info, family, new_state(family, info.selector, info.config, info.seed))


def train_run(run: Run, reporter: Reporter, *, num_threads: int = 1) -> None:
    """Train until the run is finished, saving after every task."""

    def save(state: MetaState) -> None:
        save_state(run.path, state)

    with MetricsLog(run.path, reporter, first_task=len(run.state.records)) as log:
        meta_train(
            run.family, run.state, run.info.config, num_threads=num_threads, reporter=log, on_task=save
        )


def num_train_steps(config: MetaTrainConfig, num_done: int = 0) -> int:
    """Calls of `Reporter.advance` that the remaining tasks make; for progress bars."""
    updates = config.virtual.num_policy_updates
    stage = 1 + config.slbo.num_iterations * updates
    first = config.num_first_stages * stage
    other = config.num_zero_shot * updates + config.slbo.num_stages * stage
    return first * (num_done == 0) + other * (config.num_tasks - max(num_done, 1))


def train_job(path: Path, reporter: Reporter) -> None:
    """`train_run` of a run folder, in another process."""
    train_run(resume_run(path), reporter)
