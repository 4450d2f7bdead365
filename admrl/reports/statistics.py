"""Statistics of comparisons: aggregates, bootstrap intervals, paired differences, risk.

Scores are (S, M): S meta-training seeds ("runs"), M tasks. The aggregates and the stratified bootstrap are those of
Agarwal et al. 2021 (the rliable library); intervals come from `scipy.stats.bootstrap`. Two ways of resampling:

    stratified   runs are drawn anew within every task (rliable): the tasks of one run count as independent
    runs         whole runs are drawn, all tasks of a run together: right if the tasks of a run share a trained model

The gaps of one training over its tasks are correlated, so "runs" is the honest one here, and the wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, mannwhitneyu, trim_mean, ttest_rel

from task_families.choices import check_name

RESAMPLING = ("stratified", "runs")
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
CVAR_SHARE = 0.1  # of the tasks, the worst ones
Statistic = Callable[[np.ndarray], np.ndarray]  # (..., S, M) -> (...)


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile-bootstrap interval; nan ends if there is a single run."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class PairedDifference:
    """Statistic of method A minus that of method B over the same seeds and tasks."""

    interval: Interval
    per_seed: tuple[float, ...]
    p_value: float
    """Two-sided paired t test over seeds; nan with fewer than two."""


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over runs and tasks: (..., S, M) -> (...)."""
    return scores.mean((-2, -1))


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: of the middle half of all runs' and tasks' scores, (..., S, M) -> (...)."""
    return trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs: (..., S, M) -> (...)."""
    return np.median(scores.mean(-2), axis=-1)


def worst(scores: np.ndarray) -> np.ndarray:
    """Mean over runs of each run's largest score, G_n^max of a gap: (..., S, M) -> (...)."""
    return scores.max(-1).mean(-1)


def cvar(scores: np.ndarray, share: float = CVAR_SHARE) -> np.ndarray:
    """Conditional value at risk: mean over runs of the mean of each run's worst tasks, (..., S, M) -> (...).

    The worst share x M tasks count; the last of them in part, if that is not a whole number.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected above 0, up to 1, got {share}")
    ordered = np.flip(np.sort(scores, axis=-1), -1)
    num = max(share * scores.shape[-1], 1e-9)
    weights = np.clip(num - np.arange(scores.shape[-1]), 0, 1)
    return (ordered @ (weights / weights.sum())).mean(-1)


STATISTICS: dict[str, Statistic] = {"mean": mean, "iqm": iqm, "worst": worst, "cvar": cvar}


def optimality_gap(scores: np.ndarray, threshold: float = 1.0) -> float:
    """How far scores, those above the threshold counted as the threshold, stay below it on average (rliable)."""
    return float(threshold - np.minimum(scores, threshold).mean())


def interval(
    scores: np.ndarray,
    statistic: Statistic,
    *,
    resampling: str = "runs",
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The statistic of scores (S, M) with a percentile-bootstrap interval; see the head of this page.

    Raises:
        ValueError: no run or no task, scores that are not finite, an unknown resampling.
    """
    check_name("resampling", resampling, RESAMPLING)
    scores = check_scores("scores", scores)
    value = float(statistic(scores))
    if len(scores) < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    if np.ptp(scores, axis=0).max() == 0:  # every resample is the same
        return Interval(value, value, value, 0.0)

    def of_tasks(*columns: np.ndarray, axis: int) -> np.ndarray:
        # scipy gives M arrays (..., S), one a task
        return statistic(np.moveaxis(np.stack([np.moveaxis(c, axis, -1) for c in columns]), 0, -1))

    result = bootstrap(
        tuple(scores.T),
        of_tasks,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        paired=resampling == "runs",
        vectorized=True,
        rng=np.random.default_rng(seed),
        batch=max(1, 2_000_000 // scores.size),
    )
    low, high = result.confidence_interval
    return Interval(value, float(low), float(high), float(result.standard_error))


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """statistic(A) - statistic(B) for scores (S, M) of the same seeds and tasks, resampled seed by seed.

    Raises:
        ValueError: scores of different shapes, or not finite.
    """
    a, b = check_scores("a", a), check_scores("b", b)
    if a.shape != b.shape:
        raise ValueError(
            f"paired comparison: expected the same seeds and tasks, got (seeds, tasks) {a.shape} and {b.shape}"
        )
    per_seed = np.array([float(statistic(x[None]) - statistic(y[None])) for x, y in zip(a, b, strict=True)])
    both = np.concatenate([a, b], axis=1)  # (S, 2 M): a seed brings both methods
    num_tasks = a.shape[1]

    def difference(scores: np.ndarray) -> np.ndarray:
        return statistic(scores[..., :num_tasks]) - statistic(scores[..., num_tasks:])

    answer = interval(both, difference, confidence=confidence, num_resamples=num_resamples, seed=seed)
    p_value = math.nan
    if len(per_seed) > 1 and np.ptp(per_seed) > 0:
        p_value = float(ttest_rel(per_seed, np.zeros_like(per_seed)).pvalue)
    return PairedDifference(answer, tuple(per_seed.tolist()), p_value)


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """P(score of A > score of B), ties one half, averaged over tasks: (S, M) and (S', M) (rliable)."""
    a, b = check_scores("a", a), check_scores("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected the same tasks, got {a.shape[1]} and {b.shape[1]}")
    wins = [mannwhitneyu(x, y, method="asymptotic").statistic for x, y in zip(a.T, b.T, strict=True)]
    return float(np.mean(wins) / (len(a) * len(b)))


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Standard deviation (ddof 1) over the square root of the count; nan with a single value."""
    count = values.shape[axis]
    if count < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    return values.std(axis, ddof=1) / math.sqrt(count)


def check_scores(name: str, scores: np.ndarray) -> np.ndarray:
    """Scores as (S, M) numbers.

    Raises:
        ValueError: another shape, none, or not finite; says how many.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"{name}: expected (runs, tasks), at least one of each, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{name}: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are missing; "
            "leave out the tasks that are not complete for every run"
        )
    return scores
