"""The run folder of PEARL, CRL and the multi-task methods: `"kind": "baseline"` in config.json.

A checkpoint holds networks and optimisers; the replay lies in the parts that checkpoints share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from admrl.baselines.config import TITLES, BaselineConfig, check_baseline
from admrl.baselines.training import BaselineState, new_baseline
from admrl.jobs.reporter import Reporter
from admrl.methods.run import MethodInfo, MethodRun
from admrl.runs.families import NOBODY, NamedFamily
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS
from admrl.solving.solution_file import dump_networks, load_networks
from task_families.family import TaskFamily

REPLAY = "replay."  # beginning of the names of tensors, as those of `dump_networks`


@dataclass(frozen=True)
class BaselineInfo(MethodInfo):
    """What a run was asked to do."""

    config: BaselineConfig


class BaselineRun(MethodRun[BaselineState]):
    """A run folder of `admrl train-baseline` in memory."""

    kind, settings, info_type, titles = "baseline", BaselineConfig, BaselineInfo, TITLES
    columns = (
        "test_return",
        "test_return_0",
        "return_real_noisy",
        "critic_loss",
        "actor_loss",
        "kl",
        "log_prob",
        "alpha",
        "adapter_loss",
        "head_variance",
        "real_samples",
    )
    new_training = staticmethod(new_baseline)

    @classmethod
    def check_settings(cls, config: BaselineConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_baseline(config, algorithm, family)

    @classmethod
    def check_extension(cls, info: MethodInfo) -> None:
        """See `RunFolder`; all else of a training is the same whatever the number of its iterations."""
        if (decay := info.config.sac.learning_rate_decay) != "none":
            raise ValueError(
                "num_iterations: this run cannot be extended, because its learning rate falls to zero over its "
                f"{info.config.num_iterations} iterations (`config.sac.learning_rate_decay` {decay}); train again "
                "with more of them"
            )

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        state = self.state
        tensors = dump_networks("", state.agent, state.optimizers)
        tensors |= {f"{REPLAY}{k}": v for k, v in state.replay.state_dict().items()}
        return tensors, state.replay.columns()

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        state = self.state
        load_networks("", tensors, state.agent, state.optimizers)
        part = {k.removeprefix(REPLAY): v for k, v in tensors.items() if k.startswith(REPLAY)}
        state.replay.load(rows, part)

    @property
    def position(self) -> str:
        """See `RunFolder`."""
        return f"{self.progress}, {self.state.num_updates} gradient steps"


def prepare_baseline(
    path: Path | str,
    *,
    algorithm: str,
    family: str | TaskFamily,
    variant: str,
    preset: str,
    seed: int,
    config: BaselineConfig,
) -> BaselineRun:
    """Check everything, then make the run folder; see `MethodRun.prepare`."""
    return BaselineRun.prepare(
        path, algorithm=algorithm, family=family, variant=variant, preset=preset, seed=seed, config=config
    )


def open_baseline(path: Path | str, named: NamedFamily = NOBODY) -> BaselineRun:
    """A run at its newest sound checkpoint, or at its beginning if it has none; see `RunFolder.open`.

    Raises:
        ValueError: not a run folder, damaged files, or a checkpoint of another run.
    """
    return BaselineRun.open(Path(path), named=named)


def train_baseline_run(
    run: BaselineRun,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
    trackers: Sequence[str] = (),
) -> None:
    """Train until the run is finished, saving between steps; see `MethodRun.train`."""
    run.train(
        reporter,
        num_threads=num_threads,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
        trackers=trackers,
    )
