"""The run folder of RL2: `"kind": "recurrent"` in config.json.

A checkpoint holds the network (with the unit of its value) and Adam's state; no data outlives an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from admrl.methods.run import MethodInfo, MethodRun
from admrl.recurrent.config import TITLES, RecurrentConfig, check_recurrent
from admrl.recurrent.training import RecurrentState, new_recurrent
from admrl.runs.config_file import RECURRENT
from admrl.solving.solution_file import dump_networks, load_networks
from task_families.family import TaskFamily


@dataclass(frozen=True)
class RecurrentInfo(MethodInfo):
    """What a run was asked to do."""

    config: RecurrentConfig


class RecurrentRun(MethodRun[RecurrentState]):
    """A run folder of `admrl train-baseline rl2` in memory."""

    kind, settings, info_type, titles = RECURRENT, RecurrentConfig, RecurrentInfo, TITLES
    columns = (
        "test_return",
        "test_return_0",
        "return_first_noisy",
        "return_real_noisy",
        "objective",
        "kl",
        "entropy",
        "value_error",
        "real_samples",
    )
    new_training = staticmethod(new_recurrent)

    @classmethod
    def check_settings(cls, config: RecurrentConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_recurrent(config, family)

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        return dump_networks("", self.state.agent, self.state.optimizers), {}

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        load_networks("", tensors, self.state.agent, self.state.optimizers)

    def provenance(self) -> dict[str, Any]:
        """See `MethodRun`; with the length of the trials of the training, and what happens beyond it."""
        config = self.info.config
        return {
            **super().provenance(),
            "trial_samples": config.trial_episodes * self.family.horizon,
            "beyond_trial": config.beyond_trial,
        }
