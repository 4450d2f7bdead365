"""The run folder of MQL: `"kind": "mql"` in config.json.

A checkpoint holds networks and optimisers; the replay, which adaptation needs, too, lies in the parts that
checkpoints share.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.methods.run import MethodInfo, MethodRun
from admrl.mql.config import TITLES, MqlConfig, check_mql
from admrl.mql.training import MqlState, new_mql
from admrl.solving.solution_file import dump_networks, load_networks
from task_families.family import TaskFamily


@dataclass(frozen=True)
class MqlInfo(MethodInfo):
    """What a run was asked to do."""

    config: MqlConfig


class MqlRun(MethodRun[MqlState]):
    """A run folder of `admrl train-baseline mql` in memory."""

    kind, settings, info_type, titles = "mql", MqlConfig, MqlInfo, TITLES
    columns = (
        "test_return",
        "test_return_0",
        "return_real_noisy",
        "critic_loss",
        "actor_loss",
        "real_samples",
    )
    new_training = staticmethod(new_mql)

    @classmethod
    def check_settings(cls, config: MqlConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_mql(config, family)

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        state = self.state
        return dump_networks("", state.agent, state.optimizers), state.replay.columns()

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        state = self.state
        load_networks("", tensors, state.agent, state.optimizers)
        state.replay.load(rows)

    @property
    def position(self) -> str:
        """See `RunFolder`."""
        return f"{self.progress}, {self.state.num_updates} TD3 steps"

    @property
    def stage_samples(self) -> int:
        """Those of the learning curve."""
        return self.info.config.num_test_samples

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are explorations, one for each stage."""
        return config.num_stages
