"""A*(psi) with its provenance: the best return that long training on the test tasks themselves reached.

A reference file (JSON, versioned) holds an entry for every task and candidate policy: method, seed, samples, the
episodes' returns, settings and versions. A* of a task is the best of its candidates, chosen on other
episodes than it is reported from (`best_known_returns`). Nothing is thrown away, so A* can only be extended.
`admrl reference` makes and extends such files; `admrl evaluate --reference FILE` uses them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admrl.adaptation import slbo_adapt, zero_shot
from admrl.config import EvaluationConfig, SlboConfig, VirtualTrainingConfig, evaluation_virtual, from_dict
from admrl.evaluation import best_known_returns, score, task_generators
from admrl.files import DamagedFileError, parse_json, write_text
from admrl.health import fit_or_restore
from admrl.reporting import Reporter, Silent
from admrl.test_sets import digest, unit_keys
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily

FORMAT = "admrl reference 1"


@dataclass(frozen=True)
class Candidate:
    """One policy for one task, scored in the simulator."""

    psi: tuple[float, ...]
    method: str
    """slbo or sac"""
    seed: int
    stage: int
    """SLBO stages that it was trained for; 1 for sac."""
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
            ValueError: a file of another family, or tasks without a candidate; says how to add them.
        """
        if (self.family, self.variant) != (family.name, family.variant):
            raise ValueError(
                f"--reference: the file is of {self.family} ({self.variant}), the runs are of {family.name} "
                f"({family.variant})"
            )
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
                f"--reference: {len(absent)} of {len(keys)} tasks have no reference return, the first is "
                f"{[round(x, 4) for x in absent[0]]}; add them with `admrl reference` on the same tasks and file"
            )
        best = [best_known_returns({c.name: _episodes(c) for c in by_task[key]}) for key in keys]
        return np.array([value[0] for value, _ in best]), tuple(source[0] for _, source in best)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a file.

        Raises:
            ValueError: no such file.
            DamagedFileError: not a reference file.
        """
        if not path.is_file():
            raise ValueError(f"--reference {path}: no such file; `admrl reference --out {path}` makes one")
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
    if not all(type(x) in (int, float) and abs(x) < 1e15 for x in numbers):  # false for nan, too
        raise ValueError("candidate: psi, episode_return: expected numbers of sensible size")
    return candidate


def _identity(c: Candidate) -> tuple[Any, ...]:
    return c.psi, c.method, c.seed, c.real_samples, digest(c.settings)


def _episodes(c: Candidate) -> np.ndarray:
    """(1, 1, N)"""
    return np.array([[[math.nan if x is None else x for x in c.episode_return]]])


def reference_returns(
    family: TaskFamily,
    learners: Sequence[ModelLearner],
    policy: GaussianPolicy,
    psi: Tensor,
    virtual: VirtualTrainingConfig,
    config: EvaluationConfig,
    seed: int,
    *,
    allow_outside: bool = False,
    num_threads: int = 1,
    reporter: Reporter | None = None,
) -> np.ndarray:
    """Returns of a reference run on M tasks: episodes (1, M, N).

    One model is fine-tuned on the data of all learners; then SLBO runs on all tasks together, pooling their
    real samples. It sees far more real data of the tasks than any method that is evaluated.
    """
    reporter = reporter or Silent()
    generators = task_generators(seed + 1, 1, family.box.to_unit(psi))
    learner = learners[0].fork([torch.Generator().manual_seed(seed + 1)])
    for other in learners[1:]:
        learner.data[0].extend(other.data[0])
        fit = ~other.data[0].is_held_out
        learner.model.update_normalizers(other.data[0].obs[fit], other.data[0].next_obs[fit])
    fit_or_restore(learner, 10 * virtual.num_model_steps, reporter)
    reporter.phase(f"reference, zero-shot, {len(psi)} tasks", config.num_updates)
    solution = zero_shot(
        family,
        learner.model,
        psi,
        policy,
        1,
        evaluation_virtual(virtual, config),
        generators,
        reporter=reporter,
        allow_outside=allow_outside,
    )
    slbo = SlboConfig(
        num_stages=config.num_reference_stages,
        num_iterations=math.ceil(config.num_reference_updates / virtual.num_policy_updates),
        num_samples=config.num_reference_samples,
    )
    reporter.phase(f"reference, SLBO, {len(psi)} tasks together", slbo.num_stages)
    solution = slbo_adapt(
        family,
        learner,
        solution,
        slbo,
        replace(virtual, num_samples=config.num_samples),
        generators,
        num_threads=num_threads,
        reporter=reporter,
    )
    returns = score(family, solution, config.num_episodes, seed, num_threads=num_threads).returns
    return returns.reshape(1, len(psi), config.num_episodes)
