"""A run of `admrl train-baseline`, whatever the method: a folder like any other, its learning curve in curve.json.

A kind of method is a subclass of `MethodState` (what changes while it trains) and one of `MethodRun` (its folder). A
checkpoint holds what `MethodRun.learned` gives, the generator, the counts and the learning curve. Loading executes no
code.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from admrl.config.checks import check_saving, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.plain_data import from_dict
from admrl.devices.names import CPU, begin_on, described
from admrl.devices.transfer import on_host
from admrl.evaluation.adapter import Adapter
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.jobs.reporter import Reporter
from admrl.methods.state import CurvePoint, S, train
from admrl.runs.checkpoints import Checkpoint
from admrl.runs.config_file import CURVE
from admrl.runs.families import NOBODY, NamedFamily, code_key, new_family, source_of
from admrl.runs.saver import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from admrl.runs.versions import versions, weights_digest
from admrl.solving.solution_file import AGENT, dump_generators, load_generators
from admrl.storage.files import DamagedFileError, expect, legible, plain_count, write_json
from task_families.choices import check_name
from task_families.family import TaskFamily
from task_families.registry import make


@dataclass(frozen=True)
class MethodInfo:
    """What a run was asked to do; a subclass says the type of its config."""

    kind: str
    family: str
    variant: str
    algorithm: str
    preset: str
    seed: int
    config: Any
    versions: dict[str, str]
    source: dict[str, str] | None = None
    """Of a family from outside this package; see `admrl.runs.families`."""
    extended: tuple[dict[str, Any], ...] = ()
    """See `admrl.runs.folder.RunInfo`."""

    @property
    def selector(self) -> str:
        """Runs of one algorithm are one method, as runs of one selector are."""
        return self.algorithm


class MethodRun(EvaluableRun[MethodInfo, S]):
    """A run folder of `admrl train-baseline` in memory."""

    length = "num_iterations"
    info_type: ClassVar[type[MethodInfo]]
    titles: ClassVar[Mapping[str, str]]
    """Name of every algorithm of this kind, as in tables."""
    columns: ClassVar[tuple[str, ...]]
    """Of metrics.csv."""

    # -- what a kind of method defines -----------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def check_settings(cls, config: Any, algorithm: str, family: TaskFamily) -> None:
        """Refuse settings that cannot work, before any work.

        Raises:
            ValueError: names the setting, what was expected and what came.
        """

    @staticmethod
    @abstractmethod
    def new_training(family: TaskFamily, algorithm: str, config: Any, seed: int) -> S:
        """The beginning of such a training.

        Raises:
            ValueError: see `check_settings`.
        """

    @classmethod
    def complete_settings(cls, config: Any, family: TaskFamily) -> Any:
        """The settings of a new run, with what they do not say themselves."""
        return config

    @abstractmethod
    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors of a checkpoint, and the rows of the data; see `CheckpointStore.save`. Names of parameters begin
        with `AGENT`, and those that are not finite reach no checkpoint.
        """

    @abstractmethod
    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """What `learned` gave, into a new state of the same configuration.

        Raises:
            LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError: something does not fit.
        """

    @property
    def stage_samples(self) -> int:
        """Real samples of a first stage of adaptation that a user may want to see."""
        return 2 * self.family.horizon

    # -- as every kind of run (`admrl.runs.folder`) ------------------------------------------------------------------

    @classmethod
    def check_info(cls, data: Any) -> MethodInfo:
        """See `RunFolder`."""
        info: MethodInfo = from_dict(cls.info_type, data)
        check_name("algorithm", info.algorithm, tuple(cls.titles))
        check_seed(info.seed)
        if info.source is None:  # else `new_state` checks it, once the family is named
            cls.check_settings(info.config, info.algorithm, make(info.family, variant=info.variant))
        return info

    @classmethod
    def new_state(cls, path: Path, family: TaskFamily, info: MethodInfo, named: NamedFamily) -> S:
        """See `RunFolder`."""
        return cls.new_training(family, info.algorithm, info.config, info.seed)

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """See `RunFolder`."""
        state = self.state
        tensors, rows = self.learned()
        tensors = on_host(tensors)
        for name, tensor in tensors.items():
            if name.startswith(AGENT) and not bool(tensor.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite; the run stops at its last good checkpoint")
        tensors |= dump_generators("generator", [state.generator])
        counts = {name: getattr(state, name) for name in ("step", "real_samples", "num_updates")}
        curve = [asdict(point) for point in state.curve]
        return tensors, {**counts, "curve": curve, "devices": state.devices}, rows

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder`."""
        state, meta = self.state, checkpoint.meta
        try:
            self.set_learned(checkpoint.tensors, checkpoint.rows)
            load_generators("generator", checkpoint.tensors, [state.generator])
            for name in ("step", "real_samples", "num_updates"):
                setattr(state, name, plain_count(meta[name], name))
            if state.step > state.num_steps:
                raise ValueError(f"step: {state.step} of {state.num_steps}")
            state.curve = [from_dict(CurvePoint, point) for point in meta["curve"]]
            # earlier versions knew no other device
            devices = expect(meta.get("devices", [CPU]), list, "devices")
            state.devices = [expect(name, str, "devices") for name in devices]
        except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
            raise DamagedFileError(
                f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """For messages."""
        return f"{self.state.iteration} of {self.info.config.num_iterations} iterations are done"

    @property
    def steps_left(self) -> int:
        """Steps that are still to be done, for progress bars."""
        return self.state.num_steps - self.state.step

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(
        self,
        config: EvaluationConfig | None = None,
        *,
        name: str | None = None,
        reporter: Reporter | None = None,
    ) -> Adapter:
        """The test protocol of what was trained, which reports nothing of its own.

        Args:
            name: in tables; None: the method's.
        """
        title = name or self.titles[self.info.algorithm]
        return self.state.adapter(self.state.agent, name=title, provenance=self.provenance())

    def fingerprint(self, config: EvaluationConfig, seed: int) -> dict[str, Any]:
        """See `EvaluableRun`."""
        return {
            **self.common_fingerprint(config, seed),
            "algorithm": self.info.algorithm,
            "model": weights_digest(self.state.agent),
            "config": asdict(self.info.config),
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
            "training_device": ", then ".join(self.state.devices),
            **self.unfinished(),
            **code_key(self.family),
        }

    # -- making, loading, training ----------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls,
        path: Path | str,
        *,
        algorithm: str,
        family: str | TaskFamily,
        variant: str,
        preset: str,
        seed: int,
        config: Any,
    ) -> Self:
        """Check everything, then make the run folder; nothing is written if anything is wrong.

        Args:
            family: see `task_families.make`; or the family itself, made with that variant.

        Raises:
            ValueError: names the argument, what was expected, what came and the remedy.
            ImportError: the family's simulator is not installed.
            StorageError: the folder cannot be written.
        """
        check_name("algorithm", algorithm, tuple(cls.titles))
        check_seed(seed)
        new = new_family(family, variant)
        config = cls.complete_settings(config, new)
        assert cls.kind is not None
        info = cls.info_type(
            cls.kind, new.name, new.variant, algorithm, preset, seed, config, versions(), source_of(new)
        )
        return cls.create(Path(path), info, new)

    @classmethod
    def load(cls, path: Path | str, named: NamedFamily = NOBODY) -> Self:
        """A run that can be used, at its newest sound checkpoint; warns about newer ones that are damaged.

        Raises:
            ValueError: see `RunFolder.open`; or a run that has made no update yet.
        """
        run = cls.open(Path(path), named=named)
        if run.state.num_updates == 0:
            raise ValueError(f"{path}: the run has made no update yet, so there is nothing to use")
        for note in run.notes:
            warnings.warn(note, stacklevel=2)
        return run

    def train(
        self,
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
        if note := begin_on(self.state.devices, described(self.state.device)):
            self.notes.append(note)
        with writing(self, reporter, keep_checkpoints, columns=self.columns, trackers=trackers) as log:
            saver = Saver(self, log, checkpoint_seconds)
            train(self.state, reporter=log, num_threads=num_threads, on_step=saver.after_step)
            saver.save()
            write_json(self.path / CURVE, [asdict(point) for point in self.state.curve])
