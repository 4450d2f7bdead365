"""find_worst: the worst tasks of any gap function, and how much is known about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from admrl.config.checks import check_reported
from admrl.number_text import counted, number, to_error, with_error
from admrl.search.base import Search, project_unit, unit_scale
from admrl.storage.files import write_json
from task_families.choices import whole_number
from task_families.task_space import TaskSpace, unwrapped

POOLED_DEGREES = 6  # see _Record._standard_error
Gap = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""psi (n, k) -> gaps (n,) or replicates (n, R), e.g. policy seeds; or with the gradient (n, k) of their mean.
nan: the evaluation failed."""


@dataclass(frozen=True)
class WorstTask:
    """One of the worst tasks. Intervals are None where there is a single replicate."""

    psi: tuple[float, ...]
    search_gap: float
    """Mean of the replicates that the search saw: it was chosen for being large, so it is too large."""
    gap: float
    """Mean of fresh replicates, if there are any; else search_gap."""
    low: float | None
    high: float | None
    """Interval of `gap` (Student's t over the replicates)."""
    num_replicates: int
    gradient_norm: float | None
    """Of the projected gradient, gap per unit coordinate: 0 at a local maximum within the space."""
    gradient_error: float | None
    """Its standard error, where it comes from differences of replicates."""


@dataclass(frozen=True)
class MassBound:
    """With `confidence`, the tasks whose measured gap is larger than `largest` have at most the share `mass`."""

    num_probes: int  # uniform tasks, independent of the search
    largest: float
    mass: float
    confidence: float


@dataclass(frozen=True)
class WorstReport:
    """What was found, and with how much certainty."""

    tasks: tuple[WorstTask, ...]  # the worst first
    names: tuple[str, ...]
    units: tuple[str, ...]
    num_evaluations: int  # tasks that the search was told, probes included; not those that confirm
    num_failed: int
    num_starts: int
    """Tasks that were chosen independently of what was found: uniform probes, Sobol points."""
    bound: MassBound | None
    confidence: float  # of the intervals
    budget: int | None = None  # tasks that might have been evaluated; None: as many as were
    min_gain: float | None = None  # that an evaluation had to promise; None: none was asked for
    expected_improvement: float | None = None
    """At the end of a search with a `min_gain`, in the unit of the gap; None: not asked for, or not known yet."""

    @property
    def stopped(self) -> bool:
        """Whether the search ended because too little was still expected, before its budget."""
        return self.budget is not None and self.num_evaluations < self.budget

    def save(self, path: Path | str) -> None:
        """Write it as JSON, atomically."""
        write_json(Path(path), asdict(self))

    def lines(self) -> list[str]:
        """The report in sentences."""
        out = [
            f"{len(self.tasks)} worst distinct tasks of {self.num_evaluations} evaluated "
            f"(worst of {self.num_starts} starts, {self.num_failed} failed):"
        ]
        for i, task in enumerate(self.tasks, start=1):
            where = ", ".join(
                f"{name} {number(x)}" + ("" if unit == "1" else f" {unit}")
                for name, x, unit in zip(self.names, task.psi, self.units, strict=True)
            )
            gap, replicates = number(task.gap), counted(task.num_replicates, "replicate")
            interval = f" (interval unknown, {replicates})"
            if task.low is not None and task.high is not None:
                gap, low, high = to_error([task.gap, task.low, task.high], (task.high - task.low) / 4)
                interval = f" [{low}, {high}] ({self.confidence:.0%}, {replicates})"
            slope = ""
            if task.gradient_norm is not None:
                norm, error = task.gradient_norm, task.gradient_error
                shown = number(norm, 3) if error is None else with_error(norm, error)
                slope = f"; projected gradient {shown} per unit coordinate"
            out.append(
                f"  {i}. ({where}): gap {gap}{interval}; in the search {number(task.search_gap)}{slope}"
            )
        if self.min_gain is not None:
            out.append(self._why_it_ended())
        if self.bound is not None:
            largest = number(self.bound.largest)
            out.append(
                f"With {self.bound.confidence:.0%} confidence, at most {self.bound.mass:.2%} of uniform tasks have a "
                f"measured gap above {largest}, the largest of {self.bound.num_probes} uniform probes."
            )
        return out

    def _why_it_ended(self) -> str:
        """Of a search with a `min_gain`."""
        asked, expected = number(self.min_gain or 0.0), self.expected_improvement
        if self.stopped:
            return (
                f"Stopped after {self.num_evaluations} of {self.budget} evaluations: the search's model expects an "
                f"improvement of {number(expected or 0.0, 2)}, less than the gain of {asked} that was asked for."
            )
        still = "not known" if expected is None else number(expected, 2)
        return (
            f"Ended with its budget of {self.num_evaluations} evaluations; the expected improvement is {still} "
            f"(gain asked for: {asked})."
        )


def mass_bound(gaps: Tensor, confidence: float = 0.95) -> MassBound:
    """From the gaps (N,) of N independent uniform tasks; a failed one (nan) counts as larger than every number.

    The set {gap > largest} has mass at most eps with confidence 1 - (1 - eps)^N: were its mass larger, all N probes
    would have missed it with probability below (1 - eps)^N.

    Raises:
        ValueError: no probe, or a confidence outside (0, 1).
    """
    gaps = torch.as_tensor(gaps).double().flatten()
    if not len(gaps):
        raise ValueError("mass_bound: expected the gaps of at least one uniform task, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    largest = math.inf if bool(gaps.isnan().any()) else float(gaps.max())
    return MassBound(len(gaps), largest, 1 - (1 - confidence) ** (1 / len(gaps)), confidence)


def find_worst(
    gap: Gap,
    space: TaskSpace,
    search: Search,
    *,
    budget: int,
    batch: int = 1,
    num_probes: int = 0,
    top: int = 3,
    min_distance: float = 0.1,
    confirm: Gap | None = None,
    difference: float | None = None,
    confidence: float = 0.95,
    min_gain: float | None = None,
    generator: torch.Generator,
    on_batch: Callable[[Search], None] | None = None,
) -> WorstReport:
    """Search, then say what was found.

    Args:
        gap: see `Gap`.
        search: told of everything; anything that it already knows takes part.
        budget: tasks to evaluate, the uniform probes among them.
        batch: tasks evaluated at a time.
        num_probes: uniform tasks evaluated first, for the bound; the search is told of them.
        top: number of tasks to report.
        min_distance: between them, in unit coordinates per sqrt(k).
        confirm: evaluates the reported tasks anew, in one call, with fresh noise; None: they keep the gaps of the
            search.
        difference: half-step, in unit coordinates, of the central differences of `confirm` (or `gap`) that give the
            gradient: 2 k further evaluations a task, in one call. None or 0: the gradient that `gap` returns, if it
            does.
        confidence: of intervals and bound.
        min_gain: stop before the budget, after the probes or any batch, once the largest expected improvement
            (`Search.expected_improvement`) is less than this, in the unit of the gap. It is a model's word, not a
            bound: a summit narrower than the distance of the tasks so far may be overlooked. None: the budget alone.
        generator: of the probes.
        on_batch: called after every batch, e.g. to save the search.

    Raises:
        ValueError: a budget below 1 or below num_probes, a top below 1, gaps of a wrong shape, no gap known, or a
            min_gain, difference, min_distance or confidence out of range, or a min_gain of a search that cannot state
            an expected improvement.
    """
    budget, batch, top = (
        whole_number(name, n) for name, n in (("budget", budget), ("batch", batch), ("top", top))
    )
    if (num_probes := whole_number("num_probes", num_probes, 0)) > budget:
        raise ValueError(f"num_probes: expected at most {budget}, the budget, got {num_probes}")
    check_min_gain(min_gain, search)
    difference = difference or None
    check_reported(min_distance, difference, confidence)
    probes = space.sample(num_probes, "uniform", generator).split(batch) if num_probes else ()
    record = _Record(space)
    for psi, tell in _batches(search, probes, budget, batch, min_gain):
        mean, gradient, error = record.evaluate(gap, psi)
        tell(psi, mean, gradient, {"standard_error": error})
        if on_batch is not None:
            on_batch(search)
    bound = mass_bound(record.mean[:num_probes], confidence) if num_probes else None
    believed = search.estimates()[len(search.history) - len(record.mean) :]
    rows = record.distinct(believed, top, min_distance * math.sqrt(space.size))
    tasks = record.describe(rows, gap, confirm, difference, confidence)
    expected = math.inf if min_gain is None else expected_improvement(search)
    return WorstReport(
        tasks=tuple(tasks),
        names=space.names,
        units=space.units,
        num_evaluations=len(record.mean),
        num_failed=int(record.mean.isnan().sum()),
        num_starts=max(num_probes, search.num_starts),
        bound=bound,
        confidence=confidence,
        budget=budget,
        min_gain=min_gain,
        expected_improvement=expected if math.isfinite(expected) else None,
    )


def _batches(
    search: Search, probes: Sequence[Tensor], budget: int, batch: int, min_gain: float | None
) -> Iterator[tuple[Tensor, Callable[..., None]]]:
    """Tasks to evaluate, and who is told of them: the probes, then what the search asks for."""
    for part in probes:
        yield part, search.add
    remaining = budget - sum(len(part) for part in probes)
    while remaining > 0 and (min_gain is None or expected_improvement(search) >= min_gain):
        psi = search.ask(min(batch, remaining))
        yield psi, search.tell
        remaining -= len(psi)


def check_min_gain(min_gain: float | None, search: Search) -> None:
    """Refuse a gain that cannot end this search.

    Raises:
        ValueError: not a positive number, or the search cannot say what it expects.
    """
    if min_gain is None:
        return
    if not (math.isfinite(min_gain) and min_gain > 0):
        raise ValueError(f"min_gain: expected a positive number, in the unit of the gap, got {min_gain:g}")
    expected_improvement(search)


def expected_improvement(search: Search) -> float:
    """What the search expects of its next task, at best; see `Search.expected_improvement`.

    Raises:
        ValueError: it cannot say.
    """
    expected = search.expected_improvement()
    if expected is None:
        raise ValueError(
            f"min_gain: expected a search that states an expected improvement (default, gp), got "
            f"{type(search).__name__}, which states none: leave `min_gain` out, or choose another search"
        )
    return expected


class _Record:
    """All evaluations of one search with their replicates."""

    def __init__(self, space: TaskSpace) -> None:
        self.space = space
        self.psi = torch.zeros(0, space.size, dtype=torch.float64)
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.gradient = torch.zeros(0, space.size, dtype=torch.float64)
        self.replicates: list[Tensor] = []

    def evaluate(self, gap: Gap, psi: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Means, gradients and standard errors of a batch, recorded."""
        replicates, gradient = evaluate(gap, psi)
        self.replicates += list(replicates)
        error = self._standard_error(replicates)
        mean = replicates.mean(1)
        self.psi, self.mean = torch.cat([self.psi, psi.double()]), torch.cat([self.mean, mean])
        missing = torch.full(psi.shape, torch.nan, dtype=torch.float64)
        self.gradient = torch.cat([self.gradient, missing if gradient is None else gradient.double()])
        return mean, gradient, error

    def _standard_error(self, replicates: Tensor) -> Tensor:
        """Of the means of (n, R) replicates (n,).

        The variance of few replicates is itself a guess, so that of all tasks so far enters with the weight of
        POOLED_DEGREES degrees of freedom (Smyth 2004).
        """
        own = replicates.shape[1] - 1
        if own == 0:
            return torch.zeros(len(replicates), dtype=torch.float64)
        variance = replicates.var(1)
        pooled = torch.stack([r.var() for r in self.replicates if len(r) > 1]).nanmean()
        variance = (POOLED_DEGREES * pooled + own * variance) / (POOLED_DEGREES + own)
        return (variance / replicates.shape[1]).sqrt().nan_to_num(0.0)

    def distinct(self, believed: Tensor, top: int, distance: float) -> list[int]:
        """Observations of the largest gaps that are believed (H,), no two of them near."""
        z = self.space.embed(self.psi)
        rows: list[int] = []
        for row in believed.nan_to_num(nan=-math.inf).argsort(descending=True).tolist():
            if bool(believed[row].isnan()) or len(rows) == top:
                break
            if all(float((z[row] - z[other]).norm()) > distance for other in rows):
                rows.append(row)
        if not rows:
            raise ValueError(f"find_worst: all {len(self.mean)} evaluations failed")
        return rows

    def describe(
        self,
        rows: list[int],
        gap: Gap,
        confirm: Gap | None,
        difference: float | None,
        confidence: float,
    ) -> list[WorstTask]:
        """Everything about some tasks, the worst first; they are evaluated anew together."""
        psi = self.psi[rows].to(self.space.low.dtype)
        replicates = [self.replicates[row] for row in rows]
        if confirm is not None:
            replicates = list(evaluate(confirm, psi)[0])
        slopes, errors = self.gradient[rows] * unit_scale(self.space), None
        if difference is not None:
            slopes, errors = central_difference(confirm or gap, self.space, psi, difference)
        tasks = []
        for i, row in enumerate(rows):
            low, high = mean_interval(replicates[i].numpy(), confidence)
            norm = None
            if not bool(slopes[i].isnan().any()):
                norm = projected_norm(self.space, self.space.to_unit(psi[i].double()), slopes[i])
            task = WorstTask(
                psi=tuple(psi[i].double().tolist()),
                search_gap=float(self.mean[row]),
                gap=float(replicates[i].mean()),
                low=low,
                high=high,
                num_replicates=len(replicates[i]),
                gradient_norm=norm,
                gradient_error=None if errors is None or norm is None else float(errors[i]),
            )
            tasks.append(task)
        return sorted(tasks, key=lambda task: -task.gap)


def evaluate(gap: Gap, psi: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replicates (n, R) float64 and gradients (n, k) or None.

    Raises:
        ValueError: other shapes.
    """
    answer = gap(psi)
    value, gradient = answer if isinstance(answer, tuple) else (answer, None)
    if value is None:
        raise ValueError(
            f"gap: expected numbers for {len(psi)} tasks, got None; does the function return them?"
        )
    value = torch.as_tensor(value).detach().double()
    if value.dim() == 1:
        value = value[:, None]
    if value.dim() != 2 or len(value) != len(psi) or not value.shape[1]:
        raise ValueError(
            f"gap: expected ({len(psi)},) or ({len(psi)}, R) numbers for {len(psi)} tasks, got {tuple(value.shape)}"
        )
    return value, None if gradient is None else torch.as_tensor(gradient).detach()


def mean_interval(replicates: np.ndarray[Any, Any], confidence: float) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of (R,) replicates; None with fewer than two, or a missing one."""
    num = len(replicates)
    if num < 2 or np.isnan(replicates).any():
        return None, None
    mean, error = float(replicates.mean()), float(replicates.std(ddof=1)) / math.sqrt(num)
    half = float(student_t.isf((1 - confidence) / 2, num - 1)) * error
    return mean - half, mean + half


def central_difference(gap: Gap, space: TaskSpace, psi: Tensor, step: float) -> tuple[Tensor, Tensor | None]:
    """d gap / d unit at psi (n, k) from 2 k neighbours each, one-sided at the border, all in one call.

    Returns:
        slopes (n, k), 0 where the step leads to no other task (kinds, whole numbers), nan if it does so in no
        coordinate; and the largest standard error of each (n,) if there are replicates.
    """
    unit, eye = space.to_unit(psi.double())[:, None], torch.eye(space.size, dtype=torch.float64)
    neighbours = torch.cat([unit + step * eye, unit - step * eye], dim=1)  # (n, 2 k, k)
    nearest, reached = unwrapped(space, space.from_unit(neighbours.flatten(0, 1)))
    replicates, _ = evaluate(gap, nearest.to(psi.dtype))
    shape = (len(psi), 2, space.size)
    up, down = replicates.unflatten(0, shape).unbind(1)  # (n, k, R)
    ahead, behind = space.to_unit(reached).unflatten(0, shape).unbind(1)
    distance = (ahead - behind).diagonal(dim1=1, dim2=2)
    moves = distance > 0
    slope = torch.where(moves, (up.mean(-1) - down.mean(-1)) / distance, 0.0)
    slope[~moves.any(-1)] = torch.nan
    if replicates.shape[1] < 2:
        return slope, None
    variance = (up.var(-1) + down.var(-1)) / replicates.shape[1]
    return slope, torch.where(moves, variance.sqrt() / distance, 0.0).amax(-1)


def projected_norm(space: TaskSpace, unit: Tensor, slope: Tensor) -> float:
    """lim |P(u + t g) - u| / t for small t: how steeply the gap still grows within the space."""
    norm = float(slope.norm())
    if norm == 0:
        return 0.0
    t = 1e-4 / norm
    here, there = (space.embed(space.from_unit(u)) for u in (unit, project_unit(space, unit + t * slope)))
    return float((there - here).norm()) / t  # embedded: the ends of a circle are one place
