"""A run is a folder, whatever trained in it: making one, opening one, going on with it.

    config.json      kind of run, family, seed, every setting, versions of what computes
    metrics.csv      one row per step (`admrl.runs.log`)
    events.jsonl     what the user should know: fallbacks, restored models, resumptions; one JSON object a line
    tensorboard/     the metrics for TensorBoard, if it is installed
    trackers.json, wandb/, mlflow.db   of `--log` (`admrl.runs.trackers`)
    checkpoints/     everything that the training needs to go on: the newest few (`admrl.runs.checkpoints`)
    replay/          the real transitions, in parts that the checkpoints share
    gaps/            written by `admrl evaluate`: one table per set of tasks
    evaluation/      finished parts of evaluations (`admrl.evaluation.part_store`)
    .lock, lock.json who writes at the moment (`admrl.runs.lock`)

beside what a kind of run writes of its own: tasks.json and gap_map.csv (`admrl train`), curve.json (`admrl
train-baseline`). A kind is a subclass of `RunFolder`. Files are replaced atomically. Loading executes no code:
tensors are safetensors, all else is JSON or CSV. A folder that is no run is never written to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from admrl.config.earlier import OtherVersionError, complete, describe
from admrl.runs.checkpoints import Checkpoint, CheckpointStore
from admrl.runs.config_file import (
    COMMANDS,
    CONFIG,
    CURVE,
    SELECTOR_SOURCE,
    TASKS,
    create_run,
    read_config,
    resume_command,
    write_config,
)
from admrl.runs.families import CODE, NOBODY, NamedFamily, family_of
from admrl.runs.lock import RunLock
from admrl.runs.versions import versions
from admrl.storage.files import DamagedFileError
from admrl.streams import VERSION
from task_families.family import TaskFamily


class RunInfo(Protocol):
    """What a run of any kind was asked to do."""

    @property
    def family(self) -> str:
        """Name of the task family."""

    @property
    def variant(self) -> str:
        """The family's variant."""

    @property
    def selector(self) -> str:
        """The method: how tasks are selected, or a baseline's algorithm; runs of one are seeds of one method."""

    @property
    def seed(self) -> int:
        """Of everything."""

    @property
    def source(self) -> dict[str, str] | None:
        """Where the family's code comes from (`admrl.runs.families`); None for a family of this package."""

    @property
    def versions(self) -> dict[str, str]:
        """Of what computed."""

    @property
    def config(self) -> Any:
        """Every setting."""

    @property
    def extended(self) -> tuple[dict[str, Any], ...]:
        """How its length was changed since, in order: the setting, the old and the new value, the versions."""


Info = TypeVar("Info", bound=RunInfo)
State = TypeVar("State")


@dataclass
class RunFolder(ABC, Generic[Info, State]):
    """A run folder in memory: what was asked for, and the state that was reached."""

    path: Path
    info: Info
    family: TaskFamily
    state: State
    checkpoint: Checkpoint | None = None  # that the state came from
    lock: RunLock | None = None  # for the one who writes
    notes: list[str] = field(default_factory=list)  # what the user should know about the loading
    store: CheckpointStore = field(init=False)

    kind: ClassVar[str | None]
    settings: ClassVar[type[Any]]  # the dataclass of its configuration
    length: ClassVar[str]  # the setting that says how long it trains

    def __post_init__(self) -> None:
        self.store = CheckpointStore(self.path)

    # -- what a kind of run defines ------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def check_info(cls, data: Any) -> Info:
        """What config.json says, every setting checked.

        Raises:
            ValueError, TypeError, KeyError, OverflowError: something does not fit.
        """

    @classmethod
    @abstractmethod
    def new_state(cls, path: Path, family: TaskFamily, info: Info, named: NamedFamily) -> State:
        """The beginning of such a training; named is what the user did."""

    @classmethod
    def check_named(cls, path: Path, info: Info, named: NamedFamily) -> None:
        """Refuse to write into a run of which code is missing that the user did not name.

        Raises:
            ValueError: says which option to add.
        """

    @abstractmethod
    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """Tensors, plain data, and the rows of the data; see `CheckpointStore.save`.

        Raises:
            FloatingPointError: a parameter is not finite, which must never reach a checkpoint.
        """

    @abstractmethod
    def restore(self, checkpoint: Checkpoint) -> None:
        """Fill the state from a checkpoint of the same configuration.

        Raises:
            DamagedFileError: names what does not fit.
        """

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to train."""

    @property
    @abstractmethod
    def progress(self) -> str:
        """How far it is, for messages."""

    @property
    def position(self) -> str:
        """`progress` to the step."""
        return self.progress

    @property
    def ended_by(self) -> str | None:
        """Why the training is over before its length, as a function of its state; None: it is not."""
        return None

    @classmethod
    def check_extension(cls, info: Info) -> None:
        """Refuse to make a run longer whose training so far depends on its length.

        Raises:
            ValueError: names the setting that makes it so.
        """

    # -- what all kinds share ------------------------------------------------------------------------------------

    @property
    def resume_command(self) -> str:
        """The command that goes on with it."""
        return resume_command(
            self.path, self.kind, self.info.source, getattr(self.info, SELECTOR_SOURCE, None)
        )

    @classmethod
    def create(cls, path: Path, info: Info, family: TaskFamily, named: NamedFamily = NOBODY) -> Self:
        """Make the folder of a new run; everything is checked before.

        Raises:
            ValueError: the folder already holds a run (or anything else), or cannot be made.
            StorageError: config.json cannot be written.
        """
        state = cls.new_state(path, family, info, named)
        create_run(path, info)
        return cls(path, info, family, state)

    @classmethod
    def read_info(cls, path: Path) -> Info:
        """The config.json of a run of this kind.

        Raises:
            ValueError: the folder is not a run, or its config.json is damaged, of another kind or of a newer version.
        """
        return cls._read(path)[0]

    @classmethod
    def _read(cls, path: Path) -> tuple[Info, list[str]]:
        """See `read_info`; and what the user should know about it."""
        data = read_config(path, command=COMMANDS[cls.kind])
        kind = data.get("kind")
        if kind != cls.kind:
            of = COMMANDS.get(kind) if isinstance(kind, str | None) else None
            raise DamagedFileError(
                f"{path / CONFIG} is of another kind: expected a run of `admrl {COMMANDS[cls.kind]}`, got "
                + (
                    f"one of `admrl {of}` (to train it on: {resume_command(path, kind)})"
                    if of
                    else f"{kind!r:.40}"
                )
            )
        try:
            config, filled = complete(cls.settings, data.get("config"), data.get("versions"))
            info = cls.check_info({"source": None, "extended": [], **data, "config": config})
        except OtherVersionError as error:
            raise ValueError(f"{path / CONFIG}: {error}") from error
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DamagedFileError(f"{path / CONFIG} is damaged: {error}") from error
        return info, [f"{path}: {describe(filled, info.versions)}"] if filled else []

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        lock: RunLock | None = None,
        named: NamedFamily = NOBODY,
        length: int | None = None,
    ) -> Self:
        """A run at its newest sound checkpoint, or at its beginning if it has none.

        Args:
            lock: of the folder, to write there; damaged checkpoints are then set aside.
            named: its family, where it is not one of this package.
            length: to train on to, with the lock: more tasks or iterations than it was asked for.

        Raises:
            ValueError: not a run folder, damaged files, a checkpoint of another run, a length that is smaller than
                the present one, or see `family_of`.
        """
        info, notes = cls._read(path)
        before = info
        if length is not None:
            info = cls._longer(path, info, length)
        family = family_of(path, info, named)
        if lock is not None:
            cls.check_named(path, info, named)
        run = cls(path, info, family, cls.new_state(path, family, info, named), lock=lock)
        checkpoint, damage = run.store.load(set_aside=lock is not None)
        if checkpoint is not None:
            run._check_identity(checkpoint)
            try:
                run.restore(checkpoint)
            except DamagedFileError as error:
                raise error if not notes else DamagedFileError(f"{error} ({notes[0]})") from error
            run.checkpoint = checkpoint
        elif (path / "checkpoint.safetensors").exists():
            raise ValueError(
                f"{path}: its checkpoint was written by an earlier version; use that one, or train again"
            )
        elif (told := _told_of(path)) is not None:
            raise ValueError(
                f"{path}: its checkpoints are gone, while {told} tells of what was trained; nothing was changed. Put "
                "the folder checkpoints back, or train again into another folder"
            )
        run.notes = [*([lock.note] if lock is not None and lock.note is not None else []), *notes, *damage]
        if info is not before and run.ended_by is not None:
            raise ValueError(f"{cls.length}: the run {path} cannot be made longer: {run.ended_by}")
        if info is not before:  # now that it is known to go on
            write_config(path, info)
            run.notes.append(f"{cls.length} is now {length}; it was {getattr(before.config, cls.length)}")
        return run

    @classmethod
    def _longer(cls, path: Path, info: Info, length: int) -> Info:
        """What config.json says of a run that goes on to that length; the same if it has that length already."""
        present = getattr(info.config, cls.length)
        if length == present:
            return info
        if length < present:
            raise ValueError(
                f"{cls.length}: expected {present} or more, which the run {path} was asked for, got {length}; a run "
                "can be made longer, not shorter"
            )
        cls.check_extension(info)
        change = {"setting": cls.length, "old": present, "new": length, "versions": versions()}
        config = replace(info.config, **{cls.length: length})
        longer: Info = replace(info, config=config, extended=(*info.extended, change))  # type: ignore[type-var]
        return cls.check_info(asdict(longer))  # type: ignore[call-overload]

    @classmethod
    def resume(cls, path: Path, named: NamedFamily = NOBODY, *, length: int | None = None) -> Self:
        """A run folder to write into, see `open`; the caller releases its lock.

        Raises:
            ValueError: not a run folder, damaged files, random streams of another version, or another process writes
                there; or see `open`.
        """
        info = cls.read_info(path)  # before a lock is left in a folder that is not ours
        if (streams := info.versions.get("streams")) != str(VERSION):
            raise ValueError(
                f"{path}: expected a run whose random streams are of version {VERSION}, got {streams or 1}: this "
                "version of admrl would go on with other random numbers; go on with the version that began it "
                f"(admrl {info.versions.get('admrl')}, commit {info.versions.get('commit', 'unknown')}), or train "
                "again; what it has learned can be evaluated as it is"
            )
        lock = RunLock(path)
        try:
            return cls.open(path, lock=lock, named=named, length=length)
        except BaseException:
            lock.release()
            raise

    def save(self, **plain: Any) -> None:
        """Write a checkpoint; plain data is kept with it.

        Raises:
            StorageError: see `CheckpointStore.save`.
            FloatingPointError: see `dump`.
        """
        tensors, meta, rows = self.dump()
        self.store.save(tensors, {"run": self._identity(), **meta, **plain}, rows)

    def release(self) -> None:
        """Let others write into the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _identity(self) -> dict[str, str | int]:
        """What a checkpoint says about the run that it is of."""
        info = self.info
        method = "selector" if self.kind is None else "algorithm"
        own: dict[str, str | int] = {} if self.kind is None else {"kind": self.kind}
        return {
            **own,
            "family": info.family,
            "variant": info.variant,
            method: info.selector,
            "seed": info.seed,
            **({} if info.source is None else {CODE: info.source["sha256"]}),
        }

    def _check_identity(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that was copied here from another run."""
        whose = checkpoint.meta.get("run")
        for name, asked in self._identity().items():
            found = whose.get(name) if isinstance(whose, dict) else None
            if found != asked:
                raise DamagedFileError(
                    f"{self.path}: checkpoint {checkpoint.number} is of another run: {name} is {found!r:.40}, "
                    f"config.json says {asked!r}; put the right one back, or train again"
                )


def _told_of(path: Path) -> str | None:
    """The file of a run that tells of what a checkpoint held: all of them are written after one."""
    for name in (TASKS, CURVE):
        if (path / name).is_file() and (path / name).read_bytes().strip() not in (b"", b"[]"):
            return name
    return None
