"""A run of a baseline is a folder like any other (`admrl.runs.folder`), with the learning curve in curve.json.

config.json says `"kind": "baseline"`. A checkpoint holds networks, optimisers, generator and the learning curve; the
replay lies in the parts that checkpoints share. Loading executes no code.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from admrl.baselines.config import ALGORITHMS, BaselineConfig, check_baseline
from admrl.baselines.training import (
    BaselineState,
    TestPoint,
    make_adapter,
    new_baseline,
    num_steps,
    train_baseline,
)
from admrl.config.checks import check_saving, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.scoring import SCORING
from admrl.jobs.reporter import Reporter
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.families import NOBODY, NamedFamily, code_key, new_family, source_of
from admrl.runs.folder import CURVE
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from admrl.runs.versions import versions, weights_digest
from admrl.solving.solution_file import (
    AGENT,
    OPTIMIZER,
    dump_generators,
    like,
    load_generators,
    load_moments,
)
from admrl.storage.files import DamagedFileError, legible, plain_count, write_json
from admrl.streams import VERSION
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.registry import make

METRICS = (
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
KIND = "baseline"  # in config.json
REPLAY = "replay."  # beginning of the names of tensors, as AGENT and OPTIMIZER are


@dataclass(frozen=True)
class BaselineInfo:
    """What a run was asked to do."""

    kind: str
    family: str
    variant: str
    algorithm: str
    preset: str
    seed: int
    config: BaselineConfig
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """See `admrl.runs.folder.RunInfo`."""

    @property
    def selector(self) -> str:
        """Runs of one algorithm are one method, as runs of one selector are."""
        return self.algorithm


class BaselineRun(EvaluableRun[BaselineInfo, BaselineState]):
    """A run folder of `admrl train-baseline` in memory."""

    kind = KIND
    settings, length = BaselineConfig, "num_iterations"

    @classmethod
    def check_info(cls, data: Any) -> BaselineInfo:
        """See `RunFolder`."""
        info: BaselineInfo = from_dict(BaselineInfo, data)
        check_name("algorithm", info.algorithm, ALGORITHMS)
        check_seed(info.seed)
        if info.source is None:  # else `new_state` checks it, once the family is named
            check_baseline(info.config, info.algorithm, make(info.family, variant=info.variant))
        return info

    @classmethod
    def check_extension(cls, info: BaselineInfo) -> None:
        """See `RunFolder`; all else of a training is the same whatever the number of its iterations."""
        if (decay := info.config.sac.learning_rate_decay) != "none":
            raise ValueError(
                "num_iterations: this run cannot be extended, because its learning rate falls to zero over its "
                f"{info.config.num_iterations} iterations (`config.sac.learning_rate_decay` {decay}); train again "
                "with more of them"
            )

    @classmethod
    def new_state(
        cls, path: Path, family: TaskFamily, info: BaselineInfo, named: NamedFamily
    ) -> BaselineState:
        """See `RunFolder`."""
        return new_baseline(family, info.algorithm, info.config, info.seed)

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`."""
        state = self.state
        tensors = {f"{AGENT}{k}": v for k, v in state.agent.state_dict().items()}
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite; the run stops at its last good checkpoint")
        tensors |= {f"{OPTIMIZER}{k}": v for k, v in state.optimizers.state_dict().items()}
        tensors |= {f"{REPLAY}{k}": v for k, v in state.replay.state_dict().items()}
        tensors |= dump_generators("generator", [state.generator])
        meta = {
            "step": state.step,
            "real_samples": state.real_samples,
            "num_updates": state.num_updates,
            "curve": [asdict(point) for point in state.curve or []],
        }
        return tensors, meta, state.replay.columns()

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`."""
        restore_baseline(self.state, checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """For messages."""
        return f"{self.state.iteration} of {self.info.config.num_iterations} iterations are done"

    @property
    def position(self) -> str:
        """See `RunFolder`."""
        return f"{self.progress}, {self.state.num_updates} gradient steps"

    @property
    def steps_left(self) -> int:
        """Steps that are still to be done, for progress bars."""
        return num_steps(self.info.config) - self.state.step

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(
        self,
        config: EvaluationConfig | None = None,
        *,
        name: str | None = None,
        reporter: Reporter | None = None,
    ) -> Adapter:
        """The trained agent's test protocol, which needs no setting and reports nothing of its own."""
        return make_adapter(self.state.agent, self.info.algorithm, name=name, provenance=self.provenance())

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are episodes."""
        return config.num_stages * config.num_stage_samples // self.family.horizon

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        now = versions()
        names = ("num_episodes", "num_stages", *(("num_stage_samples",) if config.num_stages else ()))
        return {
            "family": self.info.family,
            "variant": self.info.variant,
            **code_key(self.family),
            "algorithm": self.info.algorithm,
            "model": weights_digest(self.state.agent),
            "seed": seed,
            "config": asdict(self.info.config),
            "evaluation": {name: getattr(config, name) for name in names},
            "streams": VERSION,
            "scoring": SCORING,
            "versions": {p: now[p] for p in ("torch", "mujoco")},
        }

    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from; see `Adapter.provenance`."""
        return {
            "run": legible(str(self.path)),
            "selector": self.info.algorithm,
            "seed": self.info.seed,
            "preset": self.info.preset,
            "training_real_samples": self.state.real_samples,
            "training_virtual_samples": 0,  # it has no model
            "training_gradient_steps": self.state.num_updates,
            "training_config": asdict(self.info.config),
            "training_versions": self.info.versions,
            **self.unfinished(),
            **code_key(self.family),
        }


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
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Args:
        family: see `task_families.make`; or the family itself, made with that variant.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
        StorageError: the folder cannot be written.
    """
    check_name("algorithm", algorithm, ALGORITHMS)
    check_seed(seed)
    new = new_family(family, variant)
    info = BaselineInfo(
        KIND, new.name, new.variant, algorithm, preset, seed, config, versions(), source_of(new)
    )
    return BaselineRun.create(Path(path), info, new)


def open_baseline(path: Path | str, named: NamedFamily = NOBODY) -> BaselineRun:
    """A run at its newest sound checkpoint, or at its beginning if it has none; see `RunFolder.open`.

    Raises:
        ValueError: not a run folder, damaged files, or a checkpoint of another run.
    """
    return BaselineRun.open(Path(path), named=named)


def load_baseline(path: Path | str, named: NamedFamily = NOBODY) -> BaselineRun:
    """`open_baseline` of a run that can be used; warns about newer checkpoints that are damaged.

    Raises:
        ValueError: see `open_baseline`; or a run that has made no gradient step yet.
    """
    run = open_baseline(path, named)
    if run.state.num_updates == 0:
        raise ValueError(f"{path}: the run has made no gradient step yet, so there is nothing to use")
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return run


# -- state <-> checkpoint -----------------------------------------------------------------------------------------


def restore_baseline(state: BaselineState, checkpoint: Checkpoint) -> None:
    """Fill a new state of the same configuration.

    Raises:
        DamagedFileError: names what does not fit.
    """
    try:
        tensors, meta = checkpoint.tensors, checkpoint.meta
        pattern = state.agent.state_dict()
        state.agent.load_state_dict({k: like(tensors, f"{AGENT}{k}", v) for k, v in pattern.items()})
        state.optimizers.load_state_dict(load_moments(OPTIMIZER, tensors, state.optimizers))
        part = {k.removeprefix(REPLAY): v for k, v in tensors.items() if k.startswith(REPLAY)}
        state.replay.load(checkpoint.rows, part)
        load_generators("generator", tensors, [state.generator])
        for name in ("step", "real_samples", "num_updates"):
            setattr(state, name, plain_count(meta[name], name))
        if state.step > num_steps(state.config):
            raise ValueError(f"step: {state.step} of {num_steps(state.config)}")
        state.curve = [from_dict(TestPoint, point) for point in meta["curve"]]
    except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise DamagedFileError(
            f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
        ) from error


# -- training -----------------------------------------------------------------------------------------------------
def train_baseline_run(
    run: BaselineRun,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
    trackers: Sequence[str] = (),
) -> None:
    """Train until the run is finished, saving between steps; see `admrl.training.run.train_run`.

    Raises:
        ValueError: another process writes into the folder.
        StorageError: a file cannot be written; says which checkpoint is good.
        FloatingPointError: the training diverged; says what to change.
        Interrupted: a signal came, and the present state is saved.
    """
    check_saving(checkpoint_seconds, keep_checkpoints)
    with writing(run, reporter, keep_checkpoints, columns=METRICS, trackers=trackers) as log:
        saver = Saver(run, log, checkpoint_seconds)
        train_baseline(run.state, reporter=log, num_threads=num_threads, on_step=saver.after_step)
        saver.save()
        curve = [asdict(point) for point in run.state.curve or []]
        write_json(run.path / CURVE, curve)
