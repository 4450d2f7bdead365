"""Finished parts of an evaluation, kept in the run folder so that an interrupted one goes on where it stopped.

    RUN/evaluation/KEY/settings.json                     what was computed; KEY is its digest
    RUN/evaluation/KEY/SEED-DIGEST.part                  one policy seed on one batch of tasks (`admrl.sealed_file`)

A part is found again by its tasks and its policy seed, however the tasks are batched. The key covers the model, every
setting that changes a number, and the versions of torch and MuJoCo. A damaged part is set aside and computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.any_run import AnyRun
from admrl.baselines.baseline_run import BaselineRun
from admrl.config import EvaluationConfig
from admrl.files import DamagedFileError, make_folder, write_text
from admrl.protocol import COUNTS, PROBE_LANES, Adapted
from admrl.run_store import versions
from admrl.sealed_file import check_tensor, read_sealed, write_sealed
from admrl.test_sets import digest

FOLDER, SUFFIX, DAMAGED = "evaluation", ".part", ".damaged"
NOT_IN_KEY = (  # settings that no part's numbers depend on
    "num_policy_seeds",
    "tasks_per_batch",
    "num_reference_stages",
    "num_reference_samples",
    "num_reference_updates",
)
STAGES = ("num_stage_samples", "num_stage_iterations", "num_stage_updates", "num_stage_model_steps")

Key = tuple[int, ...]


class PartStore:
    """The parts of one run under one evaluation's settings; for the holder of the run's lock and its workers."""

    def __init__(self, run: AnyRun, config: EvaluationConfig, seed: int) -> None:
        settings = part_settings(run, config, seed)
        self.folder = run.path / FOLDER / digest(settings)
        self.notes: list[str] = []
        """What was damaged, for the user."""
        self._settings = settings
        self._size = run.family.box.size
        number = torch.float32
        if not isinstance(run, BaselineRun):
            number = run.state.learner.model.weights[0].dtype
        self._dtypes = {"episode_return": torch.float64, "counts": torch.int64, "probe": number}
        self._shapes = {  # of a task in a part
            "episode_return": (config.num_stages + 1, config.num_episodes),
            "counts": (config.num_stages + 1, len(COUNTS)),
            "probe": (PROBE_LANES * run.family.horizon, 2 * run.family.obs_size + run.family.act_size),
        }

    def save(self, keys: Sequence[Key], policy_seed: int, adapted: Adapted) -> None:
        """Write one policy seed (R = 1) on the tasks of these keys.

        Raises:
            StorageError: see `write_bytes`.
        """
        make_folder(self.folder)
        if not (self.folder / "settings.json").exists():
            write_text(self.folder / "settings.json", json.dumps(self._settings, indent=1))
        tensors = {
            "keys": torch.tensor(keys, dtype=torch.int64),
            "policy_seed": torch.tensor([policy_seed]),
            "episode_return": torch.from_numpy(adapted.episode_return[0]).double(),
            "counts": torch.from_numpy(adapted.counts[0]).long(),
            "probe": torch.from_numpy(adapted.probe),
        }
        write_sealed(
            self.folder / f"{policy_seed:03d}-{digest([list(k) for k in keys])}{SUFFIX}", tensors, {}
        )

    def load(self) -> dict[tuple[Key, int], dict[str, np.ndarray]]:
        """All finished parts by (task, policy seed): episode_return (J, N), counts (J, 4), probe (P, .).

        Damaged files are renamed, and `notes` says so.
        """
        found: dict[tuple[Key, int], dict[str, np.ndarray]] = {}
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                part = self._checked(read_sealed(file)[0])
            except ValueError as error:
                file.rename(file.with_suffix(DAMAGED))
                where = "" if isinstance(error, DamagedFileError) else f"{file}: "
                self.notes.append(f"{where}{error}; this part of the evaluation is computed again")
                continue
            (policy_seed,) = part["policy_seed"].tolist()
            for m, key in enumerate(part["keys"].tolist()):
                found[tuple(key), policy_seed] = {name: part[name][m].numpy() for name in self._shapes}
        return found

    def _checked(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a part, if they are what `save` writes."""
        keys = check_tensor(tensors, "keys", (None, self._size), torch.int64)
        checked = {"keys": keys, "policy_seed": check_tensor(tensors, "policy_seed", (1,), torch.int64)}
        for name, shape in self._shapes.items():
            checked[name] = check_tensor(tensors, name, (len(keys), *shape), self._dtypes[name])
        return checked

    def collect(self, keys: Sequence[Key], num_policy_seeds: int) -> Adapted:
        """All policy seeds of all tasks.

        Raises:
            ValueError: some are not there yet; says how many.
        """
        found = self.load()
        missing = self.missing(keys, num_policy_seeds)
        if missing:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(keys) * num_policy_seeds} cells are not evaluated yet"
            )

        def stack(name: str) -> np.ndarray:
            return np.array([[found[k, r][name] for k in keys] for r in range(num_policy_seeds)])

        probe = np.array([found[k, 0]["probe"] for k in keys])
        return Adapted(stack("episode_return"), stack("counts"), probe)

    def missing(self, keys: Sequence[Key], num_policy_seeds: int) -> list[tuple[Key, int]]:
        """(task, policy seed) that are not there yet, seed-major."""
        found = self.load()
        return [(k, r) for r in range(num_policy_seeds) for k in keys if (k, r) not in found]


def part_settings(run: AnyRun, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """Everything that a part's numbers depend on."""
    if isinstance(run, BaselineRun):
        return _baseline_settings(run, config, seed)
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_KEY}
    if config.num_stages == 0:
        settings = {k: v for k, v in settings.items() if k not in STAGES}
    now = versions()
    return {
        "family": run.info.family,
        "variant": run.info.variant,
        "model": _weights_digest(run.state.learner.model),
        "num_data": len(run.state.learner.data[0]),
        "seed": seed,
        "policy_hidden_sizes": list(run.info.config.policy_hidden_sizes),
        "fixed_log_std": run.info.config.fixed_log_std,
        "virtual": asdict(run.info.config.virtual),
        "fit": asdict(run.info.config.fit),
        "evaluation": settings,
        "versions": {p: now[p] for p in ("torch", "mujoco")},
    }


def _baseline_settings(run: BaselineRun, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    now = versions()
    names = ("num_episodes", "num_stages", *(("num_stage_samples",) if config.num_stages else ()))
    return {
        "family": run.info.family,
        "variant": run.info.variant,
        "algorithm": run.info.algorithm,
        "model": _weights_digest(run.state.agent),
        "seed": seed,
        "config": asdict(run.info.config),
        "evaluation": {name: getattr(config, name) for name in names},
        "versions": {p: now[p] for p in ("torch", "mujoco")},
    }


def _weights_digest(model: torch.nn.Module) -> str:
    """Identifies the numbers of a model."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
