"""A run is a folder: what was asked for, what was measured, and a checkpoint that continues it.

    config.json      family, selector, seed, every setting, versions of what computes
    tasks.json       one record per finished task
    metrics.csv      one row per step of every phase
    events.jsonl     what the user should know: fallbacks, restored models, resumptions; one JSON object a line
    tensorboard/     the metrics for TensorBoard, if it is installed
    checkpoints/     model, optimiser, generators, search, the task in progress: the newest few (`admrl.checkpoints`)
    replay/          the real transitions D, in parts that the checkpoints share
    gaps/            written by `admrl evaluate`: one table per set of tasks
    evaluation/      finished parts of evaluations (`admrl.evaluation_store`)
    .lock, lock.json who writes at the moment (`admrl.run_lock`)

Files are replaced atomically. Loading executes no code: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import platform
import subprocess
import warnings
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from admrl.checkpoints import Checkpoint, CheckpointStore
from admrl.config import MetaTrainConfig, check_config, from_dict
from admrl.files import DamagedFileError, parse_json, write_text
from admrl.meta_state import MetaState, make_policy, new_state
from admrl.run_lock import HOLDER, LOCK, RunLock
from admrl.state_file import dump_state, restore_state
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily
from task_families.registry import make

CONFIG, TASKS = "config.json", "tasks.json"
BASELINE_KIND = "baseline"  # of the runs of `admrl train-baseline`; ours have no kind


@dataclass(frozen=True)
class RunInfo:
    """What a run was asked to do."""

    family: str
    variant: str
    selector: str
    preset: str
    seed: int
    config: MetaTrainConfig
    versions: dict[str, str]


@dataclass
class Run:
    """A run folder in memory."""

    path: Path
    info: RunInfo
    family: TaskFamily
    state: MetaState
    checkpoint: Checkpoint | None = None  # that the state came from
    lock: RunLock | None = None  # for the one who writes
    notes: list[str] = field(default_factory=list)  # what the user should know about the loading

    def __post_init__(self) -> None:
        self.store = CheckpointStore(self.path)

    @property
    def policy(self) -> GaussianPolicy:
        """The shape of its policies."""
        return make_policy(self.family, self.info.config)

    @property
    def finished(self) -> bool:
        """Whether all tasks were trained on."""
        return len(self.state.records) >= self.info.config.num_tasks


def versions() -> dict[str, str]:
    """Versions of everything that results depend on; physics differs between MuJoCo versions."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("admrl", "torch", "mujoco", "gymnasium", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5
        )
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found["commit"] = "unknown (git did not answer)"
    return found


def create_run(path: Path, info: Any) -> None:
    """Make the folder and write its config.json, a dataclass as plain data.

    Raises:
        ValueError: the folder already holds a run (or anything else), or cannot be made.
        StorageError: config.json cannot be written.
    """
    _check_empty(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {path}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    lock = RunLock(path)
    try:
        _check_empty(path)  # another process may have been faster
        write_text(path / CONFIG, json.dumps(asdict(info), indent=1))
    finally:
        lock.release()


def _check_empty(path: Path) -> None:
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {LOCK, HOLDER}):
        what = "already holds a run" if (path / CONFIG).exists() else "exists and is not an empty folder"
        raise ValueError(
            f"--out {path} {what}; nothing was changed. Choose another --out"
            + (f", or continue it with: {_resume_command(path)}" if (path / CONFIG).exists() else "")
        )


def _resume_command(path: Path) -> str:
    """The command that goes on with whatever kind of run is there."""
    try:
        data = parse_json((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        data = None
    baseline = isinstance(data, dict) and data.get("kind") == BASELINE_KIND
    return f"admrl train{'-baseline' if baseline else ''} --resume {path}"


def read_info(path: Path) -> RunInfo:
    """The config.json of a run.

    Raises:
        ValueError: the folder is not a run, or its config.json is damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{path} is not a run folder (it has no {CONFIG}); `admrl train --out DIR` makes one"
        )
    try:
        data = parse_json(file.read_bytes())
        if isinstance(data, dict) and data.get("kind") == BASELINE_KIND:
            raise ValueError(
                f"it is a run of `admrl train-baseline` ({data.get('algorithm')!r:.40}); only evaluate, heatmap, "
                "compare and train-baseline --resume take those"
            )
        info = from_dict(RunInfo, data)
        check_config(info.config)
        check_seed(info.seed)
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        kind = "of another kind" if "train-baseline" in str(error) else "damaged"
        raise DamagedFileError(f"{file} is {kind}: {error}") from error
    return info


def check_seed(seed: int) -> None:
    """Refuse a seed that generators cannot take."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"--seed: expected 0 to 2^62 - 1, got {seed}")


def open_run(path: Path, *, lock: RunLock | None = None) -> Run:
    """A run at its newest sound checkpoint, or at its beginning if it has none.

    Args:
        lock: of the folder, to write there; damaged checkpoints are then set aside.

    Raises:
        ValueError: not a run folder, damaged files, or a checkpoint of another run.
    """
    info = read_info(path)
    family = make(info.family, variant=info.variant)
    state = new_state(family, info.selector, info.config, info.seed)
    store = CheckpointStore(path)
    checkpoint, notes = store.load(set_aside=lock is not None)
    if checkpoint is not None:
        _check_identity(path, info, checkpoint)
        restore_state(state, family, info.config, checkpoint)
    elif (path / "checkpoint.safetensors").exists():
        raise ValueError(
            f"{path}: its checkpoint was written by an earlier version; use that one, or train again"
        )
    if lock is not None and lock.note is not None:
        notes = [lock.note, *notes]
    run = Run(path, info, family, state, checkpoint, lock, notes)
    run.store = store  # it knows which data is saved already
    return run


def load_run(path: Path | str) -> Run:
    """A run with its newest sound checkpoint; warns about newer ones that are damaged.

    Raises:
        ValueError: not a run folder, damaged files, or a run that has not finished a task yet.
    """
    run = open_run(Path(path))
    if not run.state.records:
        raise ValueError(f"{path}: the run has not finished its first task, so there is nothing to use yet")
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return run


def _check_identity(path: Path, info: RunInfo, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that was copied here from another run."""
    whose = checkpoint.meta.get("run")
    for name, asked in _identity(info).items():
        found = whose.get(name) if isinstance(whose, dict) else None
        if found != asked:
            raise DamagedFileError(
                f"{path}: checkpoint {checkpoint.number} is of another run: {name} is {found!r:.40}, "
                f"config.json says {asked!r}"
            )


def _identity(info: RunInfo) -> dict[str, str | int]:
    return {
        "family": info.family,
        "variant": info.variant,
        "selector": info.selector,
        "seed": info.seed,
    }


def save_state(run: Run, **plain: Any) -> None:
    """Write a checkpoint; plain data is kept with it.

    Raises:
        StorageError: see `CheckpointStore.save`.
        FloatingPointError: see `dump_state`.
    """
    tensors, meta, rows = dump_state(run.state)
    run.store.save(tensors, {"run": _identity(run.info), **meta, **plain}, rows)


def save_records(run: Run) -> None:
    """Write tasks.json, a readable copy of what the checkpoint says about the finished tasks."""
    write_text(run.path / TASKS, json.dumps([r.to_dict() for r in run.state.records], indent=1))


def provenance(run: Run, **extra: Any) -> dict[str, Any]:
    """Where a table's numbers come from."""
    return {
        "run": str(run.path),
        "selector": run.info.selector,
        "seed": run.info.seed,
        "preset": run.info.preset,
        "training_real_samples": run.state.real_samples,
        "training_virtual_samples": run.state.virtual_samples,
        "versions": versions(),
        "training_versions": run.info.versions,
        **extra,
    }
