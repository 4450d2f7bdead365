"""What an evaluation has done so far: its jobs go on from there, step by step, and finished ones are not repeated.

    RUN/evaluation/NAME-KEY.ckpt    a sealed file (`admrl.sealed_file`) for each job

KEY stands for everything that the result depends on (tasks, settings, seed, the runs' checkpoints, versions), so
what belongs to another evaluation is never used.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.files import DamagedFileError, storage_error
from admrl.interruption import check_interruption, interruption
from admrl.learner_file import dump_learner, load_learner, load_rows
from admrl.reporting import Reporter
from admrl.sealed_file import read_sealed, write_sealed
from admrl.solution_file import dump_generators, dump_solution, load_generators, load_solution
from admrl.virtual_training import OnStep, Solution
from dynamics.learner import ModelLearner
from policy_opt.config import ValueConfig
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily

FOLDER = "evaluation"
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Place:
    """Where a job stands."""

    phase: str
    num_done: int
    solution: Solution


class EvaluationStore:
    """One job's file."""

    def __init__(
        self,
        run: Path,
        name: str,
        depends_on: dict[str, Any],
        reporter: Reporter,
        *,
        every: float = SAVE_SECONDS,
    ) -> None:
        """
        Args:
            depends_on: plain data that the result is a function of.
            reporter: is told what is used again, and what is damaged and done again.
            every: seconds between two saves.
        """
        self._reporter = reporter
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:24]
        self._file = run / FOLDER / f"{name}-{key}.ckpt"
        self._every, self._last = every, time.monotonic()

    def finished(self) -> np.ndarray | None:
        """The job's result, if it has one: episodes (R, M, N)."""
        found = self._read()
        if found is None or "episodes" not in found[0]:
            return None
        return found[0]["episodes"].double().numpy()

    def finish(self, episodes: np.ndarray) -> None:
        """Keep the result, and nothing else."""
        self._write({"episodes": torch.from_numpy(np.ascontiguousarray(episodes))}, {"phase": "finished"})

    def restore(
        self,
        family: TaskFamily,
        policy: GaussianPolicy,
        config: ValueConfig,
        num_tasks: int,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        learner: ModelLearner | None = None,
    ) -> Place | None:
        """Where the job stood; generators and, if the job trains it, the learner are put there. None: begin.

        Raises:
            DamagedFileError: a sound file whose contents do not fit.
        """
        found = self._read()
        if found is None:
            return None
        tensors, meta = found
        try:
            phase, num_done = str(meta["phase"]), int(meta["num_done"])
            solution = load_solution("solution", tensors, family, policy, config, num_tasks, dtype)
            load_generators("generators.tasks", tensors, generators)
            if learner is not None:
                load_learner(learner, tensors)
                load_generators("generators.learner", tensors, learner.generators)
                old, new = learner.data[0].state_dict(), _rows(tensors)
                if new:
                    load_rows(learner, {k: torch.cat([old[k], new[k]]) for k in old})
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DamagedFileError(f"{self._file}: delete it to begin this part again ({error})") from error
        self._reporter.event(f"going on from step {num_done} of {phase}")
        return Place(phase, num_done, solution)

    def keep(
        self,
        phase: str,
        generators: Sequence[torch.Generator],
        learner: ModelLearner | None = None,
        num_base_rows: int = 0,
    ) -> OnStep:
        """Called after every step of a phase: saves if it is time or if a signal has come, and then stops.

        Args:
            learner: of a job that trains it; its data beyond the first num_base_rows is saved, too.
        """

        def on_step(num_done: int, solution: Solution) -> None:
            if interruption() is not None or time.monotonic() - self._last >= self._every:
                tensors = dump_solution("solution", solution)
                tensors |= dump_generators("generators.tasks", generators)
                if learner is not None:
                    tensors |= dump_learner(learner) | dump_generators(
                        "generators.learner", learner.generators
                    )
                    data = learner.data[0].state_dict()
                    tensors |= {f"rows.{k}": v[num_base_rows:] for k, v in data.items()}
                self._write(tensors, {"phase": phase, "num_done": num_done})
            check_interruption()

        return on_step

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self._file.is_file():
            return None
        try:
            return read_sealed(self._file)[:2]
        except DamagedFileError as error:
            self._reporter.event(f"{error}; this part of the evaluation is done again")
            return None

    def _write(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            self._file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(self._file, error) from error
        write_sealed(self._file, tensors, meta)
        self._last = time.monotonic()


class NoStore(EvaluationStore):
    """Keeps nothing."""

    def __init__(self) -> None: ...

    def finished(self) -> None:
        """See `EvaluationStore.finished`."""

    def finish(self, episodes: np.ndarray) -> None:
        """See `EvaluationStore.finish`."""

    def restore(self, *_: object) -> None:
        """See `EvaluationStore.restore`."""

    def keep(self, *_: object) -> OnStep:
        """See `EvaluationStore.keep`."""
        return lambda num_done, solution: None


def forget(run: Path) -> None:
    """Delete what is kept of evaluations; for the holder of the run's lock."""
    for file in (run / FOLDER).glob("*.ckpt"):
        file.unlink(missing_ok=True)


def _rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("rows."): v for k, v in tensors.items() if k.startswith("rows.")}
