"""A*(psi) with its provenance: the best return that long training on the test tasks themselves reached.

A reference file (JSON, versioned) holds an entry for every task and candidate policy: method, seed, samples, the
episodes' returns, settings and versions. A* of a task is the best of its candidates, chosen on other
episodes than it is reported from (`best_known`). Nothing is thrown away, so A* can only be extended.
`admrl reference` makes and extends such files; `admrl evaluate --reference FILE` uses them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.config.plain_data import from_dict
from admrl.evaluation.scoring import BestKnown, best_known
from admrl.runs.families import CODE, code_key
from admrl.storage.files import DamagedFileError, digest, parse_json, plain_number, write_json
from admrl.streams import unit_keys
from task_families.family import TaskFamily

MAX_PSI = 1e9  # as of `config.first_psi`
FORMAT = "admrl reference 1"


@dataclass(frozen=True)
class Candidate:
    """One policy for one task, scored in the simulator."""

    psi: tuple[float, ...]
    method: str
    """slbo, trpo or sac"""
    seed: int
    stage: int
    """Stages that it was trained for; 1 for sac."""
    real_samples: int
    """What the policy was trained on; for slbo, of all tasks that trained together."""
    virtual_samples: int
    episode_return: tuple[float | None, ...]
    """Undiscounted, one per episode; None where the simulation broke down."""
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """For tables: method, seed, samples."""
        return f"{self.method} seed {self.seed}, {self.real_samples} real samples"


@dataclass(frozen=True)
class Reference:
    """The candidates of a family's tasks; saved as one file."""

    family: str
    variant: str
    candidates: tuple[Candidate, ...] = ()
    revision: int = 0
    """Counts the extensions of the file."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return digest(asdict(self))

    def extended(self, candidates: Sequence[Candidate]) -> Reference:
        """The reference with more candidates; those of the same task, method, seed and samples are replaced."""
        merged = {_identity(c): c for c in self.candidates} | {_identity(c): c for c in candidates}
        if list(merged.values()) == list(self.candidates):
            return self
        return replace(self, candidates=tuple(merged.values()), revision=self.revision + 1)

    def optimal_returns(self, family: TaskFamily, psi: Tensor) -> tuple[np.ndarray, tuple[str, ...]]:
        """A* (M,) of tasks psi (M, k), and which candidate gave each.

        Raises:
            ValueError: see `best_known`.
        """
        known = self.best_known(family, psi)
        return known.returns, known.source

    def _candidates_of(self, family: TaskFamily, psi: Tensor) -> list[list[Candidate]]:
        """Those of every task.

        Raises:
            ValueError: see `best_known`.
        """
        if (self.family, self.variant) != (family.name, family.variant):
            raise ValueError(
                f"reference: the file is of {self.family} ({self.variant}), the runs are of {family.name} "
                f"({family.variant})"
            )
        self.check_code(family)
        by_task: dict[tuple[int, ...], list[Candidate]] = {}
        own = [c.psi for c in self.candidates]
        if own:
            for key, c in zip(
                unit_keys(family.box.to_unit(torch.tensor(own).to(psi))), self.candidates, strict=True
            ):
                by_task.setdefault(key, []).append(c)
        keys = unit_keys(family.box.to_unit(psi))
        if absent := [psi[m].tolist() for m, key in enumerate(keys) if key not in by_task]:
            raise ValueError(
                f"reference: {len(absent)} of {len(keys)} tasks have no reference return, the first is "
                f"{[round(x, 4) for x in absent[0]]}; add them with `admrl reference` on the same tasks and file"
            )
        return [by_task[key] for key in keys]

    def check_code(self, family: TaskFamily) -> None:
        """Refuse a family from outside this package whose code is not that of the file.

        Raises:
            ValueError: says that it has changed.
        """
        now = code_key(family).get(CODE)
        if other := [c.settings.get(CODE) for c in self.candidates if c.settings.get(CODE) != now]:
            raise ValueError(
                f"reference: the code of {family.name} has changed since the file was made (sha256 {other[0]!s:.12} "
                f"then, {now!s:.12} now), so its tasks may be others; make another file with `admrl reference`"
            )

    def best_known(self, family: TaskFamily, psi: Tensor, num_policy_seeds: int = 1) -> BestKnown:
        """A* of tasks psi (M, k) with its origin; R policy seeds share the file's episodes (`BestKnown.by_seed`).

        Raises:
            ValueError: a file of another family, or tasks without a candidate; says how to add them.
        """
        best = []
        for candidates in self._candidates_of(family, psi):
            num = min(
                len(c.episode_return) for c in candidates
            )  # a file may be extended with more episodes each
            episodes = [_episodes(c)[..., :num] for c in candidates]
            named = dict(zip(_names(candidates), episodes, strict=True))
            best.append(best_known(named, None, num_policy_seeds))
        origin = {
            "kind": "file",
            "digest": self.digest,
            "revision": self.revision,
            "methods": sorted({c.method for c in self.candidates}),
            "num_candidates": len(self.candidates),
            **self.notes,
        }
        return BestKnown(
            returns=np.concatenate([b.returns for b in best]),
            by_seed=np.concatenate([b.by_seed for b in best], axis=1),
            source=tuple(b.source[0] for b in best),
            origin=origin,
            real_samples=self.real_samples,
        )

    @property
    def real_samples(self) -> int:
        """Behind the file: the largest count of every training. The tasks of slbo train together, and each is charged
        with the samples of all: they count once."""
        trainings: dict[tuple[Any, ...], int] = {}
        for c in self.candidates:
            num = _num_together(c)
            key = (c.method, c.seed, digest(c.settings), num, c.psi if num else None)
            trainings[key] = max(trainings.get(key, 0), c.real_samples // (num or 1))
        return sum(trainings.values())

    def save(self, path: Path | str) -> None:
        """Write the file atomically."""
        write_json(Path(path), {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path | str) -> Reference:
        """Read a file.

        Raises:
            ValueError: no such file.
            DamagedFileError: not a reference file.
        """
        path = Path(path)
        if not path.is_file():
            command = shlex.join(["admrl", "reference", "--out", str(path)])
            raise ValueError(f"reference: no such file: {path}; this makes one: {command}")
        try:
            data = parse_json(path.read_bytes())
            if (found := data.pop("format")) != FORMAT:
                raise ValueError(f"unknown format {found!r:.40}")
            candidates = tuple(read_candidate(c) for c in data.pop("candidates"))
            if len({len(c.psi) for c in candidates}) > 1:
                raise ValueError("candidates: their tasks have different numbers of parameters")
            return from_dict(cls, {**data, "candidates": candidates})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:
            raise DamagedFileError(
                f"{path}: not a reference file ({error!s:.200}); `admrl reference` makes them"
            ) from error


def read_candidate(data: Any) -> Candidate:
    """A candidate from plain data.

    Raises:
        ValueError: something is missing or of another kind; names it.
    """
    candidate: Candidate = from_dict(Candidate, data)
    numbers = (*candidate.psi, *(x for x in candidate.episode_return if x is not None))
    if not candidate.psi or len(candidate.episode_return) < 2:
        raise ValueError("candidate: expected a task and the returns of at least two episodes")
    for x in numbers:
        plain_number(x, "candidate: psi, episode_return")
    if (largest := max(map(abs, candidate.psi))) > MAX_PSI:
        raise ValueError(
            f"candidate: psi: expected numbers from -{MAX_PSI:g} to {MAX_PSI:g}, got {largest:g}"
        )
    return candidate


def _identity(c: Candidate) -> tuple[Any, ...]:
    return c.psi, c.method, c.seed, c.real_samples, digest(c.settings)


def _num_together(c: Candidate) -> int | None:
    """Tasks that trained together with this one, itself included; None where the settings do not say it.

    slbo counts stages x tasks x samples; a file that was extended with tasks has several such trainings.
    """
    if c.method != "slbo":
        return 1
    samples = c.settings.get("num_samples")
    alone = c.stage * samples if isinstance(samples, int) else 0
    return c.real_samples // alone if 0 < alone <= c.real_samples else None


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Of a task's candidates, each its own: those that differ in their settings alone are numbered."""
    names = [c.name for c in candidates]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _episodes(c: Candidate) -> np.ndarray:
    """(1, 1, N)"""
    return np.array([[[math.nan if x is None else x for x in c.episode_return]]], dtype=float)


def training_folder(work: Path, method: str, seed: int, settings: dict[str, Any], psi: Sequence[Any]) -> Path:
    """The folder of one training, named after everything that it depends on."""
    return work / f"{method}-{seed}-{digest([settings, list(psi)])}"


def read_candidates(work: Path) -> list[Candidate]:
    """All candidates that jobs have left in their folders.

    Raises:
        ValueError: a damaged file; names it.
    """
    found = []
    for file in sorted(work.glob("*/*.json")):
        try:
            found += [read_candidate(c) for c in parse_json(file.read_bytes())]
        except (ValueError, TypeError, OSError) as error:
            raise DamagedFileError(
                f"{file} is damaged ({error}); delete it, and it is computed again"
            ) from error
    return found


def plain_returns(episodes: np.ndarray) -> tuple[float | None, ...]:
    """Returns (N,) for a file; None where the simulation broke down."""
    return tuple(x if math.isfinite(x) else None for x in episodes.tolist())
