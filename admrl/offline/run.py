"""The run folder of MACAW: `"kind": "offline"` in config.json.

A checkpoint holds parameters and Adam's moments. The buffers lie in the parts that checkpoints share, whether they
were recorded or read from files, whose names and checksums stand in the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.methods.run import MethodInfo, MethodRun
from admrl.offline.buffers import OfflineData
from admrl.offline.config import TITLES, MacawConfig, check_macaw, check_size
from admrl.offline.data_files import read_all, with_checksums
from admrl.offline.training import MacawState, new_macaw
from admrl.runs.config_file import OFFLINE
from admrl.solving.solution_file import OPTIMIZER, dump_moments, dump_weights, load_moments, load_weights
from task_families.family import TaskFamily


@dataclass(frozen=True)
class MacawInfo(MethodInfo):
    """What a run was asked to do."""

    config: MacawConfig


class MacawRun(MethodRun[MacawState]):
    """A run folder of `admrl train-baseline macaw` in memory."""

    kind, settings, info_type, titles = OFFLINE, MacawConfig, MacawInfo, TITLES
    columns = (
        "test_return",
        "test_return_0",
        "value_loss",
        "policy_loss",
        "reward_real_noisy",
        "real_samples",
    )
    new_training = staticmethod(new_macaw)

    @classmethod
    def check_settings(cls, config: MacawConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_macaw(config, family)

    @classmethod
    def complete_settings(cls, config: MacawConfig, family: TaskFamily) -> MacawConfig:
        """See `MethodRun`: with the checksums of the data that they name, which is read before."""
        if config.data:
            config = with_checksums(config, family)
            check_size("config.data", config, int(read_all(config, family).task_sizes().min()))
        return config

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        state = self.state
        tensors = dump_weights("", state.agent) | dump_moments(state.optimizer, _trained(state))
        return tensors, {} if state.data is None else state.data.columns()

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        state, family = self.state, self.family
        load_weights("", tensors, state.agent)
        load_moments(tensors, state.optimizer, _trained(state))
        if rows:
            state.set_data(OfflineData.from_columns(rows, family.obs_size, family.act_size))

    @property
    def stage_samples(self) -> int:
        """As many as for the learning curve."""
        return self.info.config.num_adapt_samples

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are a learner's episodes, or the policy's stages."""
        if self.info.config.test_data == "online":
            return config.num_stages
        return super().num_steps(config)


def _trained(state: MacawState) -> dict[str, Tensor]:
    """Parameters by what the names of their moments begin with."""
    return {f"{OPTIMIZER}{name}": p for name, p in state.agent.named_parameters()}
