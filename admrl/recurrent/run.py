"""The run folder of RL2: `"kind": "recurrent"` in config.json.

A checkpoint holds the network (with the unit of its value) and Adam's state; no data outlives an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Adapter
from admrl.jobs.reporter import Reporter
from admrl.methods.run import MethodInfo, MethodRun
from admrl.recurrent.adapter import RecurrentAdapter
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

    @classmethod
    def check_settings(cls, config: RecurrentConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_recurrent(config, family)

    @classmethod
    def new_training(
        cls, family: TaskFamily, algorithm: str, config: RecurrentConfig, seed: int
    ) -> RecurrentState:
        """See `MethodRun`."""
        return new_recurrent(family, algorithm, config, seed)

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        return dump_networks("", self.state.agent, self.state.optimizers), {}

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        load_networks("", tensors, self.state.agent, self.state.optimizers)

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(
        self,
        config: EvaluationConfig | None = None,
        *,
        name: str | None = None,
        reporter: Reporter | None = None,
    ) -> Adapter:
        """The policy's test protocol, which takes any number of episodes and reports nothing of its own."""
        title = name or TITLES[self.info.algorithm]
        return RecurrentAdapter(self.state.agent, name=title, provenance=self.provenance())

    def provenance(self) -> dict[str, Any]:
        """See `MethodRun`; with the length of the trials of the training, and what happens beyond it."""
        config = self.info.config
        return {
            **super().provenance(),
            "trial_samples": config.trial_episodes * self.family.horizon,
            "beyond_trial": config.beyond_trial,
        }

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are episodes."""
        return config.num_stages * config.num_stage_samples // self.family.horizon
