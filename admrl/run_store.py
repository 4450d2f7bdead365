"""A run is a folder: what was asked for, what was measured, and a checkpoint that continues it.

    config.json              family, selector, seed, every setting, versions of what computes
    tasks.json               one record per finished task
    metrics.csv              one row per step of every phase
    tensorboard/             the same for TensorBoard, if it is installed
    checkpoint.safetensors   model, optimiser, data, generators, search after the last finished task
    gaps/, evaluation/       written by `admrl evaluate`: one table per set of tasks; finished parts

Files are replaced atomically. Loading executes no code: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from admrl.config import MetaTrainConfig, check_config, from_dict
from admrl.files import write_bytes, write_text
from admrl.meta_training import MetaState, TaskRecord, make_policy, new_state
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily
from task_families.registry import make

CONFIG, TASKS, CHECKPOINT, GAPS = "config.json", "tasks.json", "checkpoint.safetensors", "gaps.json"


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


def create_run(path: Path, info: RunInfo) -> None:
    """Make the folder and write its config.json.

    Raises:
        ValueError: the folder already holds a run (or anything else), or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "already holds a run" if (path / CONFIG).exists() else "exists and is not an empty folder"
        raise ValueError(
            f"--out {path} {what}; nothing was changed. Choose another --out"
            + (f", or continue it with: admrl train --resume {path}" if (path / CONFIG).exists() else "")
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / CONFIG, json.dumps(asdict(info), indent=1))
    except OSError as error:
        raise ValueError(
            f"--out {path}: cannot write there ({error.strerror}); choose another folder"
        ) from error


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
        info = from_dict(RunInfo, json.loads(file.read_text(encoding="utf-8")))
        check_config(info.config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return info


def load_run(path: Path | str) -> Run:
    """A run with its last checkpoint.

    Raises:
        ValueError: not a run folder, a damaged file, or a run that has not finished a task yet.
    """
    path = Path(path)
    info = read_info(path)
    family = make(info.family, variant=info.variant)
    state = new_state(family, info.selector, info.config, info.seed)
    file = path / CHECKPOINT
    if not file.is_file():
        raise ValueError(f"{path}: the run has not finished its first task, so there is no checkpoint yet")
    _restore(state, file)
    return Run(path, info, family, state)


def save_state(path: Path, state: MetaState) -> None:
    """Write the checkpoint and tasks.json of a run folder."""
    tensors = {f"model.{k}": v for k, v in state.learner.model.state_dict().items()}
    tensors |= {f"data.{k}": v for k, v in state.learner.data[0].state_dict().items()}
    for i, moments in state.learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    tensors |= {f"search.{k}": v for k, v in state.search.state_dict().items()}
    tensors |= {f"generator.{k}": g.get_state() for k, g in _generators(state).items()}
    records = [record.to_dict() for record in state.records]
    meta = {
        "records": json.dumps(records),
        "real_samples": str(state.real_samples),
        "virtual_samples": str(state.virtual_samples),
    }
    contiguous = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_bytes(path / CHECKPOINT, save(contiguous, metadata=meta))
    write_text(path / TASKS, json.dumps(records, indent=1))


def _restore(state: MetaState, file: Path) -> None:
    """Fill a new state of the same configuration from a checkpoint."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            meta = opened.metadata()
            groups: dict[str, dict[str, Tensor]] = {}
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                group, _, rest = name.partition(".")
                groups.setdefault(group, {})[rest] = opened.get_tensor(name)
        expected, found = state.learner.data[0].obs.dtype, groups["data"]["obs"].dtype
        if expected != found:
            raise ValueError(f"it holds {found} numbers, expected {expected}")
        state.learner.model.load_state_dict(groups["model"])
        state.learner.data[0].load_state_dict(groups["data"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        optimizer = state.learner.optimizer
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        state.search.load_state_dict(groups["search"])
        for name, generator in _generators(state).items():
            generator.set_state(groups["generator"][name])
        state.records = [from_dict(TaskRecord, r) for r in json.loads(meta["records"])]
        state.real_samples, state.virtual_samples = int(meta["real_samples"]), int(meta["virtual_samples"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} is damaged or belongs to another configuration: {error}") from error


def _generators(state: MetaState) -> dict[str, torch.Generator]:
    return {
        "main": state.generator,
        "search": state.search_generator,
        "learner": state.learner.generators[0],
    }


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
