"""EvaluableRun: what the evaluation asks of a run folder. It does not ask what kind of run it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from admrl.config.evaluation import EvaluationConfig
from admrl.config.training import VirtualTrainingConfig
from admrl.evaluation.adapter import Adapter
from admrl.jobs.reporter import Reporter
from admrl.runs.folder import RunInfo
from admrl.runs.lock import RunLock
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily


class ModelSource(Protocol):
    """A learned model and how policies are solved in it: what a reference run can start from."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def family(self) -> TaskFamily:
        """Of the tasks."""

    @property
    def learner(self) -> ModelLearner:
        """The model and its data."""

    @property
    def policy(self) -> GaussianPolicy:
        """The shape of policies."""

    @property
    def virtual(self) -> VirtualTrainingConfig:
        """How policies are trained in the model."""


class EvaluableRun(Protocol):
    """A run folder whose method is evaluated; every kind of run satisfies it."""

    path: Path
    family: TaskFamily
    lock: RunLock | None

    @property
    def info(self) -> RunInfo:
        """What it was asked to do."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""

    @property
    def progress(self) -> str:
        """How far it is, for messages."""

    @property
    def resume_command(self) -> str:
        """The command that goes on with it."""

    @property
    def model_source(self) -> ModelSource | None:
        """Its model, if the method has one that other policies can be solved in."""

    @property
    def visited_psi(self) -> np.ndarray | None:
        """Tasks of the training (n, k) in order, if it takes one after the other."""

    def adapter(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> Adapter:
        """The method as it is tested.

        Raises:
            ValueError: the settings are impossible for it; names the setting.
        """

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """Everything that the numbers of its adapter's evaluation depend on, as plain data."""

    def num_steps(self, config: EvaluationConfig) -> int:
        """Calls of `Reporter.advance` in the evaluation of one batch of tasks, for progress bars."""

    def release(self) -> None:
        """Release its lock, if it is held."""
