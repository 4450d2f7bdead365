"""The folder of a run of `admrl train` that is not told psi: RUN-inferred-K beside RUN, and its tables.

config.json says `"kind": "inferred"`. There is nothing to train: the model is that of the run beside it, and psi is
inferred from the rewards of the first K episodes of each test task (`admrl.training.inferring_adapter`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import UntrainedRun
from admrl.jobs.reporter import Reporter
from admrl.runs.config_file import CONFIG, INFERRED, create_run
from admrl.runs.families import NamedFamily
from admrl.runs.versions import versions
from admrl.storage.files import DamagedFileError, legible
from admrl.training.adapter import num_steps
from admrl.training.inferring_adapter import InferringAdapter
from admrl.training.run import Run, load_run
from task_families.family import TaskFamily


@dataclass(frozen=True)
class InferredConfig:
    """What is inferred from what."""

    run: str
    """The run's folder, seen from this one."""
    num_episodes: int


@dataclass(frozen=True)
class InferredInfo:
    """What a folder says."""

    kind: str
    family: str
    variant: str
    selector: str
    seed: int
    config: InferredConfig
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """Always empty."""


class InferredRun(UntrainedRun[InferredInfo, Run]):
    """A run of ours that sees rewards, not psi."""

    kind = INFERRED
    settings, length = InferredConfig, ""

    @classmethod
    def check_info(cls, data: Any) -> InferredInfo:
        """See `RunFolder`."""
        info: InferredInfo = from_dict(InferredInfo, data)
        if info.config.num_episodes < 1:
            raise ValueError(f"num_episodes: expected 1 or more, got {info.config.num_episodes}")
        return info

    @classmethod
    def new_state(cls, path: Path, family: TaskFamily, info: InferredInfo, named: NamedFamily) -> Run:
        """See `RunFolder`: the run whose model it is."""
        there = path / info.config.run
        if not (there / CONFIG).is_file():
            raise ValueError(
                f"{path}: the run whose model it uses is not at {there}; move both folders, or remove this "
                "one and evaluate the run with `infer_psi` again"
            )
        told = load_run(there, family=named.family, accept_changed=named.accept_changed)
        asked = (info.family, info.variant, info.selector, info.seed)
        found = (told.info.family, told.info.variant, _selector(told), told.info.seed)
        if asked != found:
            raise DamagedFileError(f"{path}: expected the run of {asked} at {there}, found that of {found}")
        return told

    @property
    def finished(self) -> bool:
        """See `RunFolder`."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """See `RunFolder`."""
        return self.state.progress

    @property
    def position(self) -> str:
        """See `RunFolder`."""
        return self.state.position

    @property
    def resume_command(self) -> str:
        """Of the run whose model it is."""
        return self.state.resume_command

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    @property
    def model_source(self) -> Run:
        """The run whose model it is."""
        return self.state

    @property
    def visited_psi(self) -> np.ndarray:
        """See `EvaluableRun`."""
        return self.state.visited_psi

    @property
    def can_move(self) -> bool:
        """See `EvaluableRun`: psi is inferred on the CPU, from real episodes; policies may be solved elsewhere."""
        return self.state.can_move

    def move_to(self, device: torch.device) -> None:
        """See `EvaluableRun`."""
        self.state.move_to(device)

    def adapter(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> Adapter:
        """See `EvaluableRun`."""
        return InferringAdapter(self.state, config, self.info.config.num_episodes, reporter=reporter)

    def num_steps(self, config: EvaluationConfig) -> int:
        """See `EvaluableRun`: every episode for psi is followed by a zero-shot training of its own."""
        return num_steps(config) + self.info.config.num_episodes * (1 + config.num_updates)

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        return {**self.state.fingerprint(config, seed), "psi_inferred_from": self.info.config.num_episodes}

    def provenance(self) -> dict[str, Any]:
        """See `EvaluableRun`."""
        own = {"run": legible(str(self.path)), "selector": self.info.selector}
        return {**self.state.provenance(), **own, "psi_inferred_from": self.info.config.num_episodes}


def _selector(run: Run) -> str:
    return f"{run.info.selector}, psi inferred"


def inferred_run(run: Run, num_episodes: int, named: NamedFamily) -> InferredRun:
    """The run without psi in its folder, or in one that `create_inferred` makes.

    Raises:
        ValueError: the folder holds something else.
    """
    path = run.path.parent / f"{run.path.name}-inferred-{num_episodes}"
    if (path / CONFIG).exists():
        return InferredRun.open(path, named=named)
    config = InferredConfig(os.path.relpath(run.path, path), num_episodes)
    info = InferredInfo(
        INFERRED,
        run.info.family,
        run.info.variant,
        _selector(run),
        run.info.seed,
        config,
        versions(),
        run.info.source,
    )
    return InferredRun(path, info, run.family, run)


def create_inferred(run: InferredRun) -> None:
    """Make its folder, if there is none yet.

    Raises:
        ValueError: the folder holds something else.
        StorageError: config.json cannot be written.
    """
    if not (run.path / CONFIG).exists():
        create_run(run.path, run.info)
