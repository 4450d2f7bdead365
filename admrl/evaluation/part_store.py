"""Finished parts of an evaluation, kept in the run folder so that an interrupted one goes on where it stopped.

    RUN/evaluation/KEY/settings.json                     what was computed; KEY is its digest
    RUN/evaluation/KEY/SEED-DIGEST.part                  one policy seed on one batch of tasks, a sealed file

A part is found again by its tasks and its policy seed, however the tasks are batched. The key covers the model, every
setting that changes a number, and the versions of torch and MuJoCo. A damaged part is set aside and computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluable_run import EvaluableRun
from admrl.evaluation.evaluator import COUNTS, PROBE_LANES, Adapted
from admrl.storage.files import DamagedFileError, digest, make_folder, write_json
from admrl.storage.sealed_file import check_tensor, read_sealed, write_sealed

FOLDER, SUFFIX, DAMAGED = "evaluation", ".part", ".damaged"

Key = tuple[int, ...]
Cells = dict[tuple[Key, int], dict[str, np.ndarray]]


class PartStore:
    """The parts of one run under one evaluation's settings; for the holder of the run's lock and its workers."""

    def __init__(
        self, run: EvaluableRun, config: EvaluationConfig, seed: int, *, of_oracle: bool = False
    ) -> None:
        """
        Args:
            of_oracle: the parts are those of the run's oracle (`EvaluableRun.oracle`).
        """
        settings = run.fingerprint(config, seed) | ({"policies": "oracle"} if of_oracle else {})
        self.run, self.of_oracle = run, of_oracle
        self.folder = run.path / FOLDER / digest(settings)
        self.notes: list[str] = []
        """What was damaged, for the user."""
        self._settings = settings
        self._size = run.family.box.size
        self._found: dict[tuple[str, int, int], Cells] = {}  # by name, time and size of the file
        self._dtypes = {"episode_return": torch.float64, "counts": torch.int64, "probe": torch.float32}
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
            write_json(self.folder / "settings.json", self._settings)
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

    def load(self) -> Cells:
        """All finished parts by (task, policy seed): episode_return (J, N), counts (J, 4), probe (P, .).

        A file is read once. Damaged ones are renamed, and `notes` says so.
        """
        known, self._found = self._found, {}
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            stat = file.stat()
            key = (file.name, stat.st_mtime_ns, stat.st_size)
            if key in known:
                self._found[key] = known[key]
                continue
            try:
                part = self._checked(read_sealed(file)[0])
            except ValueError as error:
                file.rename(file.with_suffix(DAMAGED))
                where = "" if isinstance(error, DamagedFileError) else f"{file}: "
                self.notes.append(f"{where}{error}; this part of the evaluation is computed again")
                continue
            (policy_seed,) = part["policy_seed"].tolist()
            self._found[key] = {
                (tuple(task), policy_seed): {name: part[name][m].numpy() for name in self._shapes}
                for m, task in enumerate(part["keys"].tolist())
            }
        return {cell: found for part in self._found.values() for cell, found in part.items()}

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
        missing = [(k, r) for r in range(num_policy_seeds) for k in keys if (k, r) not in found]
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
