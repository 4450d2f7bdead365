"""Comparing methods from saved gap tables: one table per training run, runs of one selector are one method.

Every number here comes from the tables alone. S training seeds, M tasks, J sample counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from admrl.evaluation.gap_table import GapTable
from admrl.number_text import counted
from admrl.reports.statistics import (
    STATISTICS,
    interval,
)


@dataclass(frozen=True, eq=False)
class Method:
    """The runs of one selector, in the order of their seeds."""

    name: str
    tables: tuple[GapTable, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds (S,)."""
        return tuple(t.provenance.seed or 0 for t in self.tables)

    def gaps(self, j: int) -> np.ndarray:
        """(S, M) mean gap over policy seeds; nan where a simulation broke down."""
        return np.stack([t.mean_gap(j) for t in self.tables])

    def gaps_by_seed(self, j: int) -> np.ndarray:
        """(S, R, M) gap of every policy seed."""
        return np.stack([t.gap[:, :, j] for t in self.tables])

    def returns(self, j: int) -> np.ndarray:
        """(S, R, M) mean return over episodes."""
        return np.stack([t.adapted_return[:, :, j] for t in self.tables])

    def errors(self, j: int) -> np.ndarray:
        """(M,) standard error of the mean gap, over training and policy seeds; nan where a gap is missing."""
        if len(self.tables) == 1:
            return self.tables[0].standard_error(j)
        gaps, mean = self.gaps_by_seed(j), STATISTICS["mean"]
        return np.array(
            [
                interval(gaps[..., [m]], mean).standard_error if np.isfinite(gaps[..., m]).all() else math.nan
                for m in range(gaps.shape[-1])
            ]
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods on one set of tasks with one A*."""

    methods: tuple[Method, ...]

    @property
    def first(self) -> GapTable:
        """A table, for what all have in common."""
        return self.methods[0].tables[0]

    def complete(self, j: int) -> np.ndarray:
        """(M,) bool: tasks whose gap is known in every run of every method; only these are aggregated."""
        return np.isfinite(np.concatenate([m.gaps(j) for m in self.methods])).all(0)

    @property
    def is_decomposed(self) -> bool:
        """Whether the gaps of all methods have parts (`GapTable.part`)."""
        return all(t.oracle_return is not None for m in self.methods for t in m.tables)

    def part(self, name: str) -> Comparison:
        """The comparison of a part of the gaps.

        Raises:
            ValueError: see `GapTable.part`.
        """
        methods = (replace(m, tables=tuple(t.part(name) for t in m.tables)) for m in self.methods)
        return Comparison(tuple(methods))

    @property
    def paired_seeds(self) -> bool:
        """Whether all methods were trained with the same seeds."""
        return len({m.seeds for m in self.methods}) == 1

    def notes(self) -> list[str]:
        """What a reader should know before comparing."""
        notes = []
        budgets = {
            (t.provenance.training_real_samples, t.provenance.training_virtual_samples)
            for m in self.methods
            for t in m.tables
        }
        if len(budgets) > 1:
            notes.append(f"Training budgets differ (real, virtual samples): {sorted(budgets, key=str)}.")
        if unfinished := [
            f"{m.name}, seed {seed}: {t.provenance.training_progress}"
            for m in self.methods
            for seed, t in zip(m.seeds, m.tables, strict=True)
            if t.provenance.training_progress
        ]:
            notes.append(f"Evaluated before the training was finished: {'; '.join(unfinished)}.")
        if not self.paired_seeds:
            notes.append(
                "The methods were trained with different seeds, so no paired comparison is made: "
                + "; ".join(f"{m.name} {list(m.seeds)}" for m in self.methods)
                + "."
            )
        for j, n in enumerate(self.first.num_samples):
            if num := int((~self.complete(j)).sum()):
                notes.append(
                    f"n = {n}: {num} of {counted(len(self.first.psi), 'task')} missing in some run, drawn as "
                    "missing and left out of every aggregate."
                )
        negative = sum(
            int((m.gaps(j) < 0).sum()) for m in self.methods for j in range(len(self.first.num_samples))
        )
        if negative:
            notes.append(
                f"{counted(negative, 'mean gap')} below 0: A* is too weak there; more of `admrl reference` (methods, "
                "seeds, stages) mends that. Negative gaps are not clamped."
            )
        if min(len(m.tables) for m in self.methods) < 2:
            notes.append("A method with one training seed has no interval.")
        elif len(self.first.episode_return) < 2:
            notes.append(
                "With one policy seed, the intervals leave out the noise that all trainings have in common: of "
                "policies, start states and A*."
            )
        if left_out := {t.not_covered for m in self.methods for t in m.tables} - {""}:
            notes.append(f"Standard errors and intervals leave out {left_out.pop()}.")
        if self.first.gap_name != "sub-optimality gap":
            notes.append(f"There is no reference A*: every gap here is the {self.first.gap_name}.")
        if (
            len({json.dumps(t.provenance.versions, sort_keys=True) for m in self.methods for t in m.tables})
            > 1
        ):
            notes.append("The tables were made with different versions; see the provenance.")
        return notes


def compare_tables(tables: Sequence[GapTable], names: Sequence[str] = ()) -> Comparison:
    """Group tables by method and check that they can be compared.

    Args:
        names: of the methods of the first tables, one for each; the others are named after their selectors.

    Raises:
        ValueError: no table, different families, tasks, sample counts, settings or A*, or a run given twice.
    """
    if not tables:
        raise ValueError("tables: expected at least one gap table, got none")
    first = tables[0]
    groups: dict[str, list[GapTable]] = {}
    for i, t in enumerate(tables):
        check_comparable(first, t)
        name = names[i] if i < len(names) else t.provenance.selector or t.method
        groups.setdefault(name, []).append(t)
    methods = []
    for name, members in groups.items():
        ordered = tuple(sorted(members, key=lambda t: t.provenance.seed or 0))
        method = Method(name, ordered)
        if len(set(method.seeds)) < len(method.seeds):
            raise ValueError(
                f"{name}: two runs with the same training seed ({list(method.seeds)}); give one run per seed"
            )
        methods.append(method)
    return Comparison(tuple(methods))


def check_gaps(comparison: Comparison) -> None:
    """Refuse methods that cannot be drawn.

    Raises:
        ValueError: a method without any task that has a gap in every run; names it.
    """
    for method in comparison.methods:
        for j in range(len(comparison.first.num_samples)):
            if not np.isfinite(method.gaps(j)).all(0).any():
                unknown = np.isnan(comparison.first.optimal_return).all()
                raise ValueError(
                    f"{method.name}: no task has a gap in every run"
                    + ("; A* is unknown, evaluate with a `reference`" if unknown else "")
                )


def check_comparable(first: GapTable, other: GapTable) -> None:
    """Refuse tables that cannot stand side by side.

    Raises:
        ValueError: says what differs and what to do.
    """
    if (other.family, other.variant) != (first.family, first.variant):
        raise ValueError(
            f"tables of different families: {first.family} ({first.variant}) and "
            f"{other.family} ({other.variant}); compare runs of one family"
        )
    if other.provenance.family_sha256 != first.provenance.family_sha256:
        raise ValueError(
            f"tables of different code: the file of {first.family} changed between the two evaluations, so that "
            "their tasks may be others; evaluate all runs with the same file"
        )
    if (
        other.grid_shape != first.grid_shape
        or other.psi.shape != first.psi.shape
        or not np.allclose(other.psi, first.psi)
    ):
        raise ValueError("tables of different grids or lists of tasks; evaluate all runs on the same tasks")
    if len(other.episode_return) != len(first.episode_return):
        raise ValueError(
            f"tables with different numbers of policy seeds: {len(first.episode_return)} and "
            f"{len(other.episode_return)}; evaluate all runs with the same num_policy_seeds"
        )
    if not np.array_equal(other.num_samples, first.num_samples):
        raise ValueError(
            f"tables with different sample counts n: {first.num_samples.tolist()} and {other.num_samples.tolist()}; "
            "evaluate all runs with the same num_stages"
        )
    if not np.allclose(other.optimal_return, first.optimal_return, equal_nan=True):
        raise ValueError(
            "tables with different reference returns A*; evaluate the runs together (admrl evaluate RUN RUN), "
            "or all with the same reference file"
        )
    settings = [dict(t.provenance.evaluation or {}) for t in (first, other)]
    for s, t in zip(settings, (first, other), strict=True):
        s.pop("tasks_per_batch", None)
        s["seed"] = t.provenance.evaluation_seed
    if settings[0] != settings[1]:
        name = next(k for k in settings[0] | settings[1] if settings[0].get(k) != settings[1].get(k))
        raise ValueError(
            f"tables of different evaluations: {name} is {settings[0].get(name)} and {settings[1].get(name)}; "
            "evaluate all runs with the same settings"
        )
