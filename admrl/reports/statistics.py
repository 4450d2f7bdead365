"""Statistics of comparisons: aggregates, intervals, paired differences, risk.

Scores are (S, M): S meta-training seeds ("runs"), M tasks; or (S, R, M) with R policy seeds, of which the aggregates
take the mean first. The aggregates are those of Agarwal et al. 2021 (the rliable library).

Intervals are Student's t with jackknife standard errors, because there are few runs: a percentile bootstrap of two
runs is their range (half the coverage), of five it covers 85 instead of 95 %. Whole runs are left out, since the
tasks of a run share a trained model; and policy seeds are, since all runs share theirs, with start states and A*:

    variance = V(runs) + max(V(policy seeds) - V(interaction), 0)       (two-way; Cameron, Gelbach, Miller 2011)

each from the pseudo-values of leaving out a run, a seed, or both. For means this is analysis of variance. The
quantile is the mean of those with S - 1 and R - 1 degrees of freedom, weighted by the terms (Cochran and Cox 1957).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit  # of Student's t: as scipy.stats.t, a hundred times faster
from scipy.stats import mannwhitneyu, trim_mean

CONFIDENCE = 0.95
SMALLEST = 1e-100  # p-value
CVAR_SHARE = 0.1  # of the tasks, the worst ones
Statistic = Callable[[np.ndarray], np.ndarray]  # (..., S, M) -> (...)


@dataclass(frozen=True)
class Interval:
    """An estimate with an interval; nan ends if there is a single run, or too few policy seeds to leave one out (two,
    of the corrected worst gap)."""

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float = math.nan
    """Two-sided, that the truth is 0: of the interval whose end is 0."""


@dataclass(frozen=True)
class PairedDifference:
    """Statistic of method A minus that of method B over the same seeds and tasks."""

    interval: Interval
    per_seed: tuple[float, ...]
    p_value: float
    """Two-sided t test; nan with fewer than two seeds."""


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


def interval(scores: np.ndarray, statistic: Statistic, *, confidence: float = CONFIDENCE) -> Interval:
    """The statistic of scores (S, M) or (S, R, M) with its interval; see the head of this page.

    Raises:
        ValueError: no run or no task, scores that are not finite.
    """
    scores = check_scores("scores", scores)
    scores = scores[:, None] if scores.ndim == 2 else scores
    return jackknife_interval(scores, lambda x: statistic(x.mean(-2)), confidence=confidence)


def jackknife_interval(
    scores: np.ndarray, statistic: Statistic, *, confidence: float = CONFIDENCE
) -> Interval:
    """The same for a statistic (..., S, R, M) -> (...); with R = 1, without what the runs have in common."""
    num_runs, num_seeds = scores.shape[:2]
    value = float(statistic(scores))
    if num_runs < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    without_run = scores[_others(num_runs)]  # (S, S - 1, R, M)
    by_run = num_runs * value - (num_runs - 1) * statistic(without_run)
    parts = [(_variance(by_run), num_runs - 1)]  # (variance, degrees of freedom)
    if num_seeds > 1:
        fewer, others = num_seeds - 1, _others(num_seeds)
        by_seed = num_seeds * value - fewer * statistic(np.moveaxis(scores[:, others], 1, 0))
        both = statistic(np.moveaxis(without_run[:, :, others], 2, 1))  # (S, R)
        # S R T - (S - 1) R T(-s) - S (R - 1) T(-r) + (S - 1) (R - 1) T(-s, -r)
        pseudo = num_seeds * by_run[:, None] + num_runs * by_seed - num_runs * num_seeds * value
        rest = pseudo + (num_runs - 1) * fewer * both - by_run[:, None] - by_seed + value
        interaction = (rest**2).sum() / ((num_runs - 1) * fewer * num_runs * num_seeds)
        parts.append((max(_variance(by_seed) - interaction, 0.0), fewer))
    return _student(value, parts, confidence)


def _others(num: int) -> np.ndarray:
    """(num, num - 1): all but 0, all but 1, ..."""
    return np.array([[j for j in range(num) if j != i] for i in range(num)])


def _student(value: float, parts: Sequence[tuple[float, int]], confidence: float) -> Interval:
    """From independent variances with their degrees of freedom."""
    variance = sum(v for v, _ in parts)
    error = math.sqrt(variance)
    if not variance > 0:  # nan, too
        return Interval(value, value - error, value + error, error)

    def quantile(p: float) -> float:
        """Standard errors from the estimate to either end of an interval that misses the truth with probability p."""
        return float(sum(-v * stdtrit(degrees, p / 2) for v, degrees in parts) / variance)

    half, size = quantile(1 - confidence) * error, abs(value) / error
    p_values = [2 * float(stdtr(degrees, -size)) for v, degrees in parts if v > 0]
    p_value = _root(lambda p: quantile(p) - size, max(min(p_values), SMALLEST), max(p_values))
    return Interval(value, value - half, value + half, error, p_value)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Between low and high, positive; the end next to it where rounding hides it."""
    if low >= high or falling(high) >= 0:
        return high
    if falling(low) <= 0:
        return low
    return math.exp(brentq(lambda x: falling(math.exp(x)), math.log(low), math.log(high)))


def _variance(pseudo: np.ndarray) -> float:
    """Of the mean of independent values."""
    return float(pseudo.var(ddof=1)) / len(pseudo)


def paired_difference(
    a: np.ndarray, b: np.ndarray, statistic: Statistic, *, confidence: float = CONFIDENCE
) -> PairedDifference:
    """statistic(A) - statistic(B) for scores (S, M) or (S, R, M) of the same seeds and tasks, seed by seed.

    Raises:
        ValueError: scores of different shapes, or not finite.
    """
    a, b = check_scores("a", a), check_scores("b", b)
    if a.shape != b.shape:
        raise ValueError(
            f"paired comparison: expected the same seeds and tasks, got (seeds, tasks) {a.shape} and {b.shape}"
        )
    num_tasks = a.shape[-1]

    def difference(scores: np.ndarray) -> np.ndarray:
        return statistic(scores[..., :num_tasks]) - statistic(scores[..., num_tasks:])

    both = np.concatenate([a, b], axis=-1)  # (S, R, 2 M): a seed brings both methods
    answer = interval(both, difference, confidence=confidence)
    per_run = both if both.ndim == 2 else both.mean(1)
    return PairedDifference(answer, tuple(float(difference(x[None])) for x in per_run), answer.p_value)


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
    """Scores as (S, M) or (S, R, M) numbers.

    Raises:
        ValueError: another shape, none, or not finite; says how many.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim not in (2, 3) or 0 in scores.shape:
        raise ValueError(f"{name}: expected (runs, tasks), at least one of each, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{name}: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are missing; "
            "leave out the tasks that are not complete for every run"
        )
    return scores
