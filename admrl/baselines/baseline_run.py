"""A run of a baseline is a folder like any other (`admrl.run_store`), with the learning curve in curve.json.

config.json says `"kind": "baseline"`. A checkpoint holds networks, optimisers, generator and the learning curve; the
replay lies in the parts that checkpoints share. Loading executes no code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.baselines.adapter import Adapter
from admrl.baselines.config import ALGORITHMS, BaselineConfig, check_baseline
from admrl.baselines.training import (
    BaselineState,
    TestPoint,
    make_adapter,
    new_baseline,
    num_steps,
    train_baseline,
)
from admrl.checkpoints import Checkpoint, CheckpointStore
from admrl.config import check_saving, from_dict
from admrl.files import DamagedFileError, parse_json, write_text
from admrl.learner_file import like
from admrl.reporting import Reporter
from admrl.run_lock import RunLock
from admrl.run_store import BASELINE_KIND, CONFIG, check_seed, create_run, versions
from admrl.sealed_file import check_tensor
from admrl.solution_file import dump_generators, load_generators
from admrl.state_file import plain_number
from admrl.train_run import CHECKPOINT_SECONDS, KEEP_CHECKPOINTS, Saver, writing
from task_families.family import TaskFamily
from task_families.registry import check_name, make

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
CURVE = "curve.json"
AGENT, OPTIMIZER, REPLAY = "agent.", "optimizer.", "replay."  # beginnings of the names of tensors


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

    @property
    def selector(self) -> str:
        """Runs of one algorithm are one method, as runs of one selector are."""
        return self.algorithm


@dataclass
class BaselineRun:
    """A run folder in memory."""

    path: Path
    info: BaselineInfo
    family: TaskFamily
    state: BaselineState
    checkpoint: Checkpoint | None = None  # that the state came from
    lock: RunLock | None = None  # for the one who writes
    notes: list[str] = field(default_factory=list)
    store: CheckpointStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = CheckpointStore(self.path)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.finished

    @property
    def progress(self) -> str:
        """For messages."""
        return f"{self.state.iteration} of {self.info.config.num_iterations} iterations are done"

    @property
    def resume_command(self) -> str:
        """For messages."""
        return f"admrl train-baseline --resume {self.path}"

    def adapter(self, *, name: str | None = None) -> Adapter:
        """The trained agent's test protocol."""
        return make_adapter(self.state.agent, self.info.algorithm, name=name, provenance=self.provenance())

    def provenance(self) -> dict[str, Any]:
        """Where a table's numbers come from."""
        return {
            "run": str(self.path),
            "selector": self.info.algorithm,
            "seed": self.info.seed,
            "preset": self.info.preset,
            "training_real_samples": self.state.real_samples,
            "training_virtual_samples": 0,
            "training_gradient_steps": self.state.num_updates,
            "training_config": asdict(self.info.config),
            "training_versions": self.info.versions,
        }


def prepare_baseline(
    path: Path, *, algorithm: str, family: str, variant: str, preset: str, seed: int, config: BaselineConfig
) -> BaselineRun:
    """Check everything, then make the run folder; nothing is written if anything is wrong.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the family's simulator is not installed.
        StorageError: the folder cannot be written.
    """
    check_name("algorithm", algorithm, ALGORITHMS)
    check_seed(seed)
    made = make(family, variant=variant)
    state = new_baseline(made, algorithm, config, seed)
    info = BaselineInfo(BASELINE_KIND, made.name, variant, algorithm, preset, seed, config, versions())
    create_run(path, info)
    return BaselineRun(path, info, made, state)


def read_baseline_info(path: Path) -> BaselineInfo:
    """The config.json of a run.

    Raises:
        ValueError: not a run folder, a run of `admrl train`, or a damaged file.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{path} is not a run folder (it has no {CONFIG}); `admrl train-baseline --out DIR` makes one"
        )
    try:
        data = parse_json(file.read_bytes())
        if isinstance(data, dict) and data.get("kind") != BASELINE_KIND:
            raise ValueError("not of a baseline; runs of `admrl train` go on with: admrl train --resume")
        info: BaselineInfo = from_dict(BaselineInfo, data)
        check_name("algorithm", info.algorithm, ALGORITHMS)
        check_seed(info.seed)
        check_baseline(info.config, info.algorithm, make(info.family, variant=info.variant))
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        raise DamagedFileError(f"{file}: {error}") from error
    return info


def open_baseline(path: Path, *, lock: RunLock | None = None) -> BaselineRun:
    """A run at its newest sound checkpoint, or at its beginning if it has none; see `admrl.run_store.open_run`.

    Raises:
        ValueError: not a run folder, damaged files, or a checkpoint of another run.
    """
    info = read_baseline_info(path)
    family = make(info.family, variant=info.variant)
    state = new_baseline(family, info.algorithm, info.config, info.seed)
    store = CheckpointStore(path)
    checkpoint, notes = store.load(set_aside=lock is not None)
    if checkpoint is not None:
        _check_identity(path, info, checkpoint)
        restore_baseline(state, checkpoint)
    if lock is not None and lock.note is not None:
        notes = [lock.note, *notes]
    run = BaselineRun(path, info, family, state, checkpoint, lock, notes)
    run.store = store  # it knows which rows are saved already
    return run


def resume_baseline(path: Path) -> BaselineRun:
    """A run folder to write into.

    Raises:
        ValueError: not a run folder, damaged files, or another process writes there.
    """
    if not path.is_dir():
        return open_baseline(path)  # says what is wrong
    read_baseline_info(path)  # before a lock is left in a folder of another kind
    lock = RunLock(path)
    try:
        return open_baseline(path, lock=lock)
    except BaseException:
        lock.release()
        raise


def _identity(info: BaselineInfo) -> dict[str, str | int]:
    return {
        "kind": info.kind,
        "family": info.family,
        "variant": info.variant,
        "algorithm": info.algorithm,
        "seed": info.seed,
    }


def _check_identity(path: Path, info: BaselineInfo, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that was copied here from another run."""
    whose = checkpoint.meta.get("run")
    for name, asked in _identity(info).items():
        found = whose.get(name) if isinstance(whose, dict) else None
        if found != asked:
            raise DamagedFileError(
                f"{path}: checkpoint {checkpoint.number} is of another run: {name} is {found!r:.40}, config.json "
                f"says {asked!r}; put the right one back, or train again"
            )


# -- state <-> checkpoint -----------------------------------------------------------------------------------------


def save_baseline(run: BaselineRun, **plain: Any) -> None:
    """Write a checkpoint; plain data is kept with it.

    Raises:
        StorageError: see `CheckpointStore.save`.
        FloatingPointError: a parameter is not finite, which must never reach a checkpoint.
    """
    state = run.state
    tensors = {f"{AGENT}{k}": v for k, v in state.agent.state_dict().items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FloatingPointError(f"{name} is not finite; the run stops at its last good checkpoint")
    tensors |= {f"{OPTIMIZER}{k}": v for k, v in state.optimizers.state_dict().items()}
    tensors |= {f"{REPLAY}{k}": v for k, v in state.replay.state_dict().items()}
    tensors |= dump_generators("generator", [state.generator])
    meta = {
        "run": _identity(run.info),
        "step": state.step,
        "real_samples": state.real_samples,
        "num_updates": state.num_updates,
        "curve": [asdict(point) for point in state.curve or []],
    }
    run.store.save(tensors, meta | plain, state.replay.columns())


def restore_baseline(state: BaselineState, checkpoint: Checkpoint) -> None:
    """Fill a new state of the same configuration.

    Raises:
        DamagedFileError: names what does not fit.
    """
    try:
        tensors, meta = checkpoint.tensors, checkpoint.meta
        pattern = state.agent.state_dict()
        state.agent.load_state_dict({k: like(tensors, f"{AGENT}{k}", v) for k, v in pattern.items()})
        state.optimizers.load_state_dict(_moments(state, tensors))
        part = {k.removeprefix(REPLAY): v for k, v in tensors.items() if k.startswith(REPLAY)}
        state.replay.load(checkpoint.rows, part)
        load_generators("generator", tensors, [state.generator])
        for name in ("step", "real_samples", "num_updates"):
            setattr(state, name, _count(meta[name], name))
        if state.step > num_steps(state.config):
            raise ValueError(f"step: {state.step} of {num_steps(state.config)}")
        state.curve = [from_dict(TestPoint, point) for point in meta["curve"]]
    except (LookupError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise DamagedFileError(
            f"checkpoint {checkpoint.number} does not fit the run's configuration: {error}"
        ) from error


def _moments(state: BaselineState, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state, every tensor checked; a group that has made no step has none."""
    found: dict[str, Tensor] = {}
    for group, parameters in state.optimizers.groups.items():
        for i, parameter in enumerate(parameters):
            name = f"{group}.{i}."
            if f"{OPTIMIZER}{name}step" not in tensors:
                continue
            found[f"{name}step"] = check_tensor(tensors, f"{OPTIMIZER}{name}step", (), torch.float32)
            for kind in ("exp_avg", "exp_avg_sq"):
                found[name + kind] = like(tensors, f"{OPTIMIZER}{name}{kind}", parameter)
    return found


def _count(value: Any, name: str) -> int:
    number = plain_number(value, name)
    if number != int(number) or not 0 <= number < 2**53:
        raise ValueError(f"{name}: expected a count, got {value!r:.40}")
    return int(number)


# -- training -----------------------------------------------------------------------------------------------------


def train_baseline_run(
    run: BaselineRun,
    reporter: Reporter,
    *,
    num_threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
) -> None:
    """Train until the run is finished, saving between steps; see `admrl.train_run.train_run`.

    Raises:
        ValueError: another process writes into the folder.
        StorageError: a file cannot be written; says which checkpoint is good.
        FloatingPointError: the training diverged; says what to change.
        Interrupted: a signal came, and the present state is saved.
    """
    check_saving(checkpoint_seconds, keep_checkpoints)
    with writing(run, reporter, keep_checkpoints, columns=METRICS) as log:
        saver = Saver(run, log, checkpoint_seconds, save=save_baseline)
        train_baseline(run.state, reporter=log, num_threads=num_threads, on_step=saver.after_step)
        saver.save()
        curve = [asdict(point) for point in run.state.curve or []]
        write_text(run.path / CURVE, json.dumps(curve, indent=1))
