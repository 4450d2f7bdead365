"""Finished parts of an evaluation, kept in the run folder so that an interrupted one goes on where it stopped.

    RUN/evaluation/KEY/settings.json                     what was computed; KEY is its digest
    RUN/evaluation/KEY/SEED-DIGEST.safetensors           one policy seed on one batch of tasks

A part is found again by its tasks and its policy seed, however the tasks are batched. The key covers the model, every
setting that changes a number, and the versions of torch and MuJoCo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from admrl.config import EvaluationConfig
from admrl.files import write_bytes, write_text
from admrl.protocol import Adapted
from admrl.run_store import Run, versions
from admrl.test_sets import digest

FOLDER = "evaluation"
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
    """The parts of one run under one evaluation's settings."""

    def __init__(self, run: Run, config: EvaluationConfig, seed: int) -> None:
        settings = part_settings(run, config, seed)
        self.folder = run.path / FOLDER / digest(settings)
        self._settings = settings

    def save(self, keys: Sequence[Key], policy_seed: int, adapted: Adapted) -> None:
        """Write one policy seed (R = 1) on the tasks of these keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "settings.json").exists():
            write_text(self.folder / "settings.json", json.dumps(self._settings, indent=1))
        tensors = {
            "keys": np.array(keys, dtype=np.int64),
            "policy_seed": np.array([policy_seed]),
            "episode_return": adapted.episode_return[0],
            "counts": adapted.counts[0],
            "probe": adapted.probe,
        }
        name = f"{policy_seed:03d}-{digest([list(k) for k in keys])}.safetensors"
        write_bytes(self.folder / name, save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))

    def load(self) -> dict[tuple[Key, int], dict[str, np.ndarray]]:
        """All finished parts by (task, policy seed): episode_return (J, N), counts (J, 4), probe (P, .).

        Raises:
            ValueError: a damaged file; names it.
        """
        found: dict[tuple[Key, int], dict[str, np.ndarray]] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                part = load(file.read_bytes())
                keys, (policy_seed,) = part.pop("keys"), part.pop("policy_seed")
                for m, key in enumerate(keys):
                    row = {name: part[name][m] for name in ("episode_return", "counts", "probe")}
                    found[tuple(int(x) for x in key), int(policy_seed)] = row
            except (SafetensorError, KeyError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{file} is damaged ({error}); delete it, and it is computed again"
                ) from error
        return found

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


def part_settings(run: Run, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """Everything that a part's numbers depend on."""
    model = hashlib.sha256()
    for name, tensor in sorted(run.state.learner.model.state_dict().items()):
        model.update(name.encode())
        model.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_KEY}
    if config.num_stages == 0:
        settings = {k: v for k, v in settings.items() if k not in STAGES}
    now = versions()
    return {
        "family": run.info.family,
        "variant": run.info.variant,
        "model": model.hexdigest(),
        "num_data": len(run.state.learner.data[0]),
        "seed": seed,
        "policy_hidden_sizes": list(run.info.config.policy_hidden_sizes),
        "fixed_log_std": run.info.config.fixed_log_std,
        "virtual": asdict(run.info.config.virtual),
        "fit": asdict(run.info.config.fit),
        "evaluation": settings,
        "versions": {p: now[p] for p in ("torch", "mujoco")},
    }
