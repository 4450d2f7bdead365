"""EvaluableRun: a run folder whose method is judged. The evaluation does not ask what kind of run it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.config.training import VirtualTrainingConfig
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.scoring import SCORING
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.families import code_key
from admrl.runs.folder import Info, RunFolder, State
from admrl.runs.versions import versions
from admrl.streams import VERSION
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily


class ModelSource(Protocol):
    """A learned model and how policies are solved in it: what a reference run can start from."""

    path: Any  # where it lies, for messages and for an order among sources
    family: TaskFamily

    @property
    def learner(self) -> ModelLearner:
        """The model and its data."""

    @property
    def policy(self) -> GaussianPolicy:
        """The shape of policies."""

    @property
    def virtual(self) -> VirtualTrainingConfig:
        """How policies are trained in the model."""


class EvaluableRun(RunFolder[Info, State]):
    """What every kind of run tells the evaluation."""

    @property
    def model_source(self) -> ModelSource | None:
        """Its model, if the method has one that other policies can be solved in."""
        return None

    @property
    def visited_psi(self) -> np.ndarray | None:
        """Tasks of the training (n, k) in order, if it takes one after the other."""
        return None

    @property
    def can_move(self) -> bool:
        """Whether its tasks can be solved on another device than the CPU."""
        return False

    def move_to(self, device: torch.device) -> None:
        """Solve tasks on a device from now on, if it can move. The simulator stays on the CPU."""

    @abstractmethod
    def adapter(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> Adapter:
        """The method as it is tested.

        Raises:
            ValueError: the settings are impossible for it; names the setting.
        """

    def oracle(self, config: EvaluationConfig, *, reporter: Reporter | None = None) -> Adapter:
        """The method's optimiser in the true simulator, for the parts of its gaps.

        Raises:
            ValueError: the method has none that could run there, or the settings are impossible for it.
        """
        raise ValueError(
            f"decompose: {self.path}: the policies of {self.info.selector} are not made by updates in a model, so "
            "that there is nothing to repeat in the simulator; evaluate this run without `decompose`"
        )

    @abstractmethod
    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """Everything that the numbers of its adapter's evaluation depend on, as plain data."""

    def common_fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """What the numbers of any method without a model depend on, for `fingerprint`."""
        now = versions()
        names = ("num_episodes", "num_stages", *(("num_stage_samples",) if config.num_stages else ()))
        return {
            "family": self.info.family,
            "variant": self.info.variant,
            **code_key(self.family),
            "seed": seed,
            "evaluation": {name: getattr(config, name) for name in names},
            "streams": VERSION,
            "scoring": SCORING,
            "versions": {p: now[p] for p in ("torch", "mujoco")},
        }

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from; see `Adapter.provenance`."""

    def unfinished(self) -> dict[str, Any]:
        """For `provenance`: where the training of a run stands that is not finished."""
        if self.finished:
            return {}
        number = None if self.checkpoint is None else self.checkpoint.number
        return {"training_progress": self.position, "training_checkpoint": number}

    def num_steps(self, config: EvaluationConfig) -> int:
        """Calls of `Reporter.advance` in the evaluation of one batch of tasks, for progress bars: its episodes."""
        return config.num_stages * config.num_stage_samples // self.family.horizon


class UntrainedRun(EvaluableRun[Info, State]):
    """A folder of tables alone: whatever is judged was trained elsewhere."""

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`; there is nothing to keep."""
        return {}, {}, {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`; there is none."""
