"""Sub-optimality gaps over a set of tasks: G_n(psi) = A*(psi) - A_n(psi), AdMRL section 5.

A_n(psi) is the undiscounted real return for psi after n real adaptation samples, averaged over episodes, for R
policy seeds (`admrl.evaluation.evaluator`). A*(psi) is the best return that any candidate reached, chosen on other
episodes than it is reported from (`admrl.evaluation.scoring.best_known`), so that choosing the luckiest does not
raise A*. Gaps may be negative: A* was weak.

A policy seed is an independent repetition: policies, start states, episodes, and A*'s episodes are its own. So the
spread of the gaps over R seeds is all the noise there is, and (mean - gap) / standard error has Student's t
distribution with R - 1 degrees of freedom. A gap has two parts, if the evaluation measured them:

    A* - A_n = (A* - A_oracle) + (A_oracle - A_n)       the optimisation's part, the model's part

where A_oracle(psi) is the real return of policies that the same optimiser made in the true simulator, with the same
updates, samples and policy seeds (`GapTable.part`).

Tables of older versions (`optimal_by_seed` is None) had start states and
A* in common, which their standard errors leave out; `not_covered` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

from admrl.config.evaluation import PARTS
from admrl.evaluation.provenance import Provenance
from admrl.search.objective import Objective, scaled_gap
from admrl.storage.files import DamagedFileError, legible, make_folder, parse_json, write_json
from task_families.choices import check_name

MOST_SAMPLES = 2**53  # the largest count that a file's numbers hold to the unit
FORMATS = (
    "admrl gap table 4",
    "admrl gap table 3",
    "admrl gap table 2",
    "admrl gap table 1",
)  # the first one is written
CONFIDENCE = 0.95  # of intervals
PART_NAMES = {  # kinds of reference, too
    "optimisation": "optimisation's part of the gap, A* - A_oracle",
    "model": "model's part of the gap, A_oracle - A_n",
}
UNKNOWN, BEST_SHOWN = "unknown", "best of the methods shown"  # kinds of reference
_OLDER_BEST = "best of the methods evaluated together"
_OLDER_RUNS = "best of the runs evaluated together"  # with a reference run, unless the settings say none


@dataclass(frozen=True)
class WorstCase:
    """The task with the largest mean gap."""

    task: int
    gap: float
    standard_error: float
    corrected: float
    """Gap of the task that is worst for one half of the policy seeds, measured on the other half, averaged over
    both ways round; nan with a single seed. `gap` is the maximum of noisy means and too large as an estimate of
    the true worst case; `corrected` is unbiased for the task that was chosen, which may not be the worst one, and
    so too small. The truth lies between, in expectation."""
    low: float = math.nan
    """Interval of the true worst gap, whichever task it is at; see `GapTable.worst_interval`."""
    high: float = math.nan


@dataclass(frozen=True, eq=False)
class GapTable:
    """Returns and gaps of one method on M tasks; saved as one JSON file. Missing values are nan."""

    method: str
    family: str
    variant: str
    task_names: tuple[str, ...]
    task_units: tuple[str, ...]
    psi: np.ndarray  # (M, k)
    num_samples: np.ndarray  # (J,) real adaptation samples n of A_n per task, the held-out ones included
    episode_return: np.ndarray  # (R, M, J, N) undiscounted, R policy seeds, N episodes
    optimal_return: np.ndarray  # (M,) A*
    optimal_source: tuple[str, ...]  # (M,) which candidate gave it
    grid_shape: tuple[int, ...] | None = None
    visited_psi: np.ndarray | None = None  # (n_tasks, k) tasks of the training, in order
    provenance: Provenance = Provenance()  # versions, seeds, sample counts
    test_set: str = ""  # name of the set of tasks
    box: np.ndarray | None = None  # (2, k) low and high ends of the training box
    model_error: np.ndarray | None = None  # (M,) see `admrl.evaluation.tables.model_errors`
    optimal_by_seed: np.ndarray | None = None
    """(R, M) A* as each policy seed sees it (`admrl.evaluation.scoring.BestKnown.by_seed`); None: an older table."""
    oracle_return: np.ndarray | None = None
    """(R, M, N) undiscounted real returns of policies of the same optimiser, made in the true simulator; None: the
    gaps were not decomposed."""

    @property
    def adapted_return(self) -> np.ndarray:
        """A_n: (R, M, J), mean over episodes."""
        return self.episode_return.mean(-1)

    @property
    def gap(self) -> np.ndarray:
        """G_n = A* - A_n: (R, M, J), paired by policy seed. Never clamped."""
        optimal = self.optimal_return[None] if self.optimal_by_seed is None else self.optimal_by_seed
        return optimal[:, :, None] - self.adapted_return

    @property
    def gap_name(self) -> str:
        """What the numbers are: a gap against nothing better than the methods themselves is no sub-optimality gap."""
        reference, settings = self.provenance.reference or {}, self.provenance.evaluation or {}
        kind = reference.get("kind")
        if kind in PART_NAMES.values():
            return str(kind)
        if kind == UNKNOWN:
            return "sub-optimality gap (unknown: no reference)"
        alone = kind == _OLDER_RUNS and settings.get("num_reference_stages") == 0
        if kind not in (BEST_SHOWN, _OLDER_BEST) and not alone:
            return "sub-optimality gap"
        shown = reference.get("methods") or reference.get("runs") or ()
        return f"gap to the best of the {'methods' if len(shown) > 1 else 'policies of the one method'} shown"

    def part(self, name: str) -> GapTable:
        """The table of a part of the gaps, "optimisation" or "model"; its `gap` is that part, with the same
        statistics. The two parts add up to the gap. "gap": the table itself.

        Raises:
            ValueError: an unknown part, or gaps that were not decomposed.
        """
        check_name("part", name, PARTS)
        if name == "gap":
            return self
        if self.oracle_return is None:
            raise ValueError(
                f"{self.method}: these gaps have no parts; measure them with `admrl evaluate --decompose`"
            )
        provenance = replace(self.provenance, reference={"kind": PART_NAMES[name]})
        if name == "optimisation":
            episodes = np.repeat(self.oracle_return[:, :, None], len(self.num_samples), axis=2)
            return replace(self, episode_return=episodes, provenance=provenance)
        by_seed = self.oracle_return.mean(-1)
        return replace(self, optimal_return=by_seed.mean(0), optimal_by_seed=by_seed, provenance=provenance)

    @property
    def not_covered(self) -> str:
        """What the standard errors leave out, in words; nothing for tables of this version."""
        if self.optimal_by_seed is None:
            return "the noise of the start states and of A* (a table of an older version)"
        return ""

    def num_missing(self, j: int = 0) -> int:
        """Tasks without a mean gap: a policy's simulation broke down, or there is no reference."""
        return int(np.isnan(self.mean_gap(j)).sum())

    def mean_gap(self, j: int = 0) -> np.ndarray:
        """(M,) mean over policy seeds."""
        return self.gap[:, :, j].mean(0)

    def standard_error(self, j: int = 0) -> np.ndarray:
        """(M,) standard error of `mean_gap`: policies, episodes, A* (but see `not_covered`); nan with one seed."""
        num_seeds = len(self.gap)
        if num_seeds < 2:
            return np.full(self.gap.shape[1], np.nan)
        return self.gap[:, :, j].std(0, ddof=1) / math.sqrt(num_seeds)

    def worst(self, j: int = 0) -> WorstCase:
        """The worst-case gap G_n^max over the tasks whose gap is known (see `num_missing`). Its standard error is
        that of the gap at this task; as the largest of noisy gaps it is too large, see `WorstCase`, `worst_interval`.

        Raises:
            ValueError: no gap is known.
        """
        mean, gap = self.mean_gap(j), self.gap[:, :, j]
        if np.isnan(mean).all():
            raise ValueError(self._no_gap())
        task = int(np.nanargmax(mean))
        corrected = float(corrected_worst(gap[:, ~np.isnan(mean)]))
        error = float(self.standard_error(j)[task])
        return WorstCase(task, float(mean[task]), error, corrected, *self.worst_interval(j))

    def _no_gap(self) -> str:
        if np.isnan(self.optimal_return).all() and not np.isnan(self.episode_return).all():
            return (
                f"{self.method}: no task has a gap, because A* is unknown: make a reference (`admrl reference`), or "
                "evaluate with one"
            )
        return f"{self.method}: no task has a gap, all returns are missing"

    def worst_interval(self, j: int = 0, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Interval of the true worst gap max_m G(m), whichever task it is at; nan with one policy seed.

        The gap of the truly worst task is below its own upper end, so the largest upper end of all tasks is above
        the truth; and the truth is above the mean gap, so above that one's lower end. Among several tasks each end
        has the whole error probability: the lower one fails only where tasks are alike, and then the largest of their
        upper ends does not; the upper one only where a task stands out. In between both are safe, for any gaps,
        if the noise of tasks is independent (90 % where all of it is shared). (The lower ends of single tasks,
        together, would be nearer where one stands out, and fail for skewed gaps.)
        """
        error, mean, degrees = self.standard_error(j), self.mean_gap(j), max(len(self.gap) - 1, 1)
        if np.isnan(error).all():
            return math.nan, math.nan
        tails = 1 if np.isfinite(mean).sum() > 1 else 2
        quantile = float(student_t.isf((1 - confidence) / tails, degrees))
        average, average_error = self.average(j)
        return average - quantile * average_error, float(np.nanmax(mean + quantile * error))

    def average_interval(self, j: int = 0, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Interval of the mean gap over these tasks (Student's t); nan with one policy seed."""
        mean, error = self.average(j)
        half = float(student_t.isf((1 - confidence) / 2, max(len(self.gap) - 1, 1))) * error
        return mean - half, mean + half

    def average(self, j: int = 0) -> tuple[float, float]:
        """Mean gap over the tasks whose gap is known, and its standard error; nan if none is."""
        known = ~np.isnan(self.mean_gap(j))
        if not known.any():
            return math.nan, math.nan
        per_seed = self.gap[:, known, j].mean(axis=1)  # (R,)
        error = per_seed.std(ddof=1) / math.sqrt(len(per_seed)) if len(per_seed) > 1 else math.nan
        return float(per_seed.mean()), float(error)

    def objective(self, objective: Objective, j: int = 0, *, scale: str = "absolute") -> tuple[float, float]:
        """An objective of the mean gaps over the tasks whose gap is known, and its jackknife standard error (nan with
        one policy seed), which covers what `standard_error` does. Like `worst`, it is too large where it picks from
        noisy gaps (the CVaR, the softmax).

        Args:
            scale: absolute, or ratio: (A* - A) / |A*|.

        Raises:
            ValueError: no gap is known, or an unknown scale.
        """
        known = ~np.isnan(self.mean_gap(j))
        if not known.any():
            raise ValueError(self._no_gap())
        optimal = self.optimal_return[known]
        adapted = optimal - self.gap[:, known, j]
        gap = scaled_gap(torch.from_numpy(optimal), torch.from_numpy(adapted), scale)  # (R, M)
        num = len(gap)
        left_out = [float(objective.value(gap[np.arange(num) != r].mean(0))) for r in range(num) if num > 1]
        error = math.sqrt((num - 1) * float(np.var(left_out))) if num > 1 else math.nan
        return float(objective.value(gap.mean(0))), error

    def save(self, path: Path | str) -> None:
        """Write the table atomically; makes its folder."""
        data = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        data["provenance"] = self.provenance.to_dict()
        make_folder(Path(path).parent)
        write_json(Path(path), {"format": FORMATS[0], **data})

    @classmethod
    def load(cls, path: Path | str) -> GapTable:
        """Read a table.

        Raises:
            DamagedFileError: the file is not a gap table; names the file.
        """
        try:
            data = legible(parse_json(Path(path).read_bytes()))
            found = data.pop("format", None) if isinstance(data, dict) else None
            if found not in FORMATS:
                raise ValueError(f"unknown format {found!r:.40}")
            return cls(**_table_fields(data))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            raise DamagedFileError(
                f"{path}: not a gap table ({error!s:.200}); `admrl evaluate` writes them"
            ) from error


def corrected_worst(gap: np.ndarray) -> np.ndarray:
    """`WorstCase.corrected` of gaps (..., R, M) -> (...), all known; nan with one policy seed."""
    if gap.shape[-2] < 2:
        return np.full(gap.shape[:-2], np.nan)
    first, second = gap[..., ::2, :].mean(-2), gap[..., 1::2, :].mean(-2)
    pairs = ((second, first), (first, second))  # measured, chosen by
    return np.mean([np.take_along_axis(x, y.argmax(-1)[..., None], -1)[..., 0] for x, y in pairs], axis=0)


def _table_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a table from plain data, each checked; None is nan."""
    psi, num_samples = _array(data, "psi", 2), _array(data, "num_samples", 1)
    returns, optimal = _array(data, "episode_return", 4), _array(data, "optimal_return", 1)
    num_tasks, size = psi.shape
    if returns.shape[1:3] != (num_tasks, len(num_samples)) or optimal.shape != (num_tasks,):
        raise ValueError(f"returns do not match {num_tasks} tasks and {len(num_samples)} sample counts")
    if 0 in returns.shape or size == 0:
        raise ValueError("expected at least one task, policy seed and episode")
    if not (np.isfinite(psi).all() and np.isfinite(num_samples).all()):
        raise ValueError("psi, num_samples: expected finite numbers")
    if ((num_samples != num_samples.round()) | (abs(num_samples) > MOST_SAMPLES)).any():
        raise ValueError(
            f"num_samples: expected whole numbers to {MOST_SAMPLES:g}, got {num_samples.tolist()!s:.80}"
        )
    checked: dict[str, Any] = {
        "psi": psi,
        "num_samples": num_samples.astype(int),
        "episode_return": returns,
        "optimal_return": optimal,
        "grid_shape": _grid_shape(data["grid_shape"], num_tasks),
    }
    shapes: dict[str, tuple[int | None, ...]] = {
        "visited_psi": (None, size),
        "box": (2, size),
        "model_error": (num_tasks,),
        "optimal_by_seed": (len(returns), num_tasks),
        "oracle_return": (len(returns), num_tasks, None),
    }
    for name, shape in shapes.items():
        if data.get(name) is None:
            continue
        checked[name] = array = _array(data, name, len(shape))
        if any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    for name in ("method", "family", "variant", "test_set"):
        if not isinstance(data.get(name, ""), str):
            raise ValueError(f"{name}: expected text")
    for name, count in (("task_names", size), ("task_units", size), ("optimal_source", num_tasks)):
        texts = data[name]
        if not isinstance(texts, list) or len(texts) != count or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{name}: expected {count} texts")
        checked[name] = tuple(texts)
    return data | checked | {"provenance": Provenance.from_dict(data["provenance"])}


def _grid_shape(grid: Any, num_tasks: int) -> tuple[int, ...] | None:
    """Cells per axis; a grid may have holes."""
    if grid is None:
        return None
    counts = isinstance(grid, list) and all(type(n) is int and 0 < n <= num_tasks for n in grid)
    if not counts or math.prod(grid) < num_tasks:
        raise ValueError(f"grid_shape: expected a grid of {num_tasks} tasks, got {grid!r:.60}")
    return tuple(grid)


def _array(data: dict[str, Any], name: str, num_axes: int) -> np.ndarray:
    """Finite numbers (None is nan) with so many axes: whatever `save` writes."""
    try:
        if not _only_numbers(data[name]):  # numpy would read texts and truth values as numbers
            raise ValueError("a text, a truth value or an object among them")
        array = np.array(data[name], dtype=float)
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers, rows of equal length") from error
    if array.ndim != num_axes or bool(np.isinf(array).any()):
        raise ValueError(f"{name}: expected {num_axes} axes of finite numbers")
    return array


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(_only_numbers(x) for x in value)
    return value is None or type(value) in (int, float)
