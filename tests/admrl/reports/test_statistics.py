"""Every statistic against numbers worked out by hand, and against published ones."""

import itertools
import math

import numpy as np
import pytest

from admrl.reports.statistics import (
    cvar,
    interval,
    iqm,
    mean,
    median,
    optimality_gap,
    paired_difference,
    probability_of_improvement,
    standard_error,
    worst,
)

# two runs, four tasks
TOY = np.array([[1.0, 2.0, 3.0, 10.0], [3.0, 0.0, 7.0, 6.0]])
# the score matrices of rliable's own tests (runs x tasks) with the values stated there
X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]])
Y = np.array([[1, 1], [2, 2], [3, 3]])


def test_aggregates_by_hand():
    assert mean(TOY) == 4.0
    assert iqm(TOY) == 3.5  # sorted 0 1 | 2 3 3 6 | 7 10
    assert median(TOY) == 3.5  # task means 2, 1, 5, 8
    assert worst(TOY) == 8.5  # 10 and 7
    assert cvar(TOY, 0.25) == 8.5  # the worst task of four
    assert cvar(TOY, 0.5) == (6.5 + 6.5) / 2
    assert cvar(TOY, 0.375) == pytest.approx((11.5 / 1.5 + 10 / 1.5) / 2)  # one and a half tasks
    assert cvar(TOY, 1.0) == 4.0
    assert optimality_gap(TOY, 5.0) == 5 - (1 + 2 + 3 + 5 + 3 + 0 + 5 + 5) / 8
    np.testing.assert_allclose(standard_error(TOY), [1, 1, 2, 2])  # differences / 2
    assert np.isnan(standard_error(TOY[:1])).all()


def test_published_values_of_rliable():
    assert median(X) == mean(X) == iqm(X) == 1.5
    assert median(Y) == mean(Y) == iqm(Y) == 2.0
    assert probability_of_improvement(X, Y) == pytest.approx(1 / 3)
    assert probability_of_improvement(X, X) == 0.5


def test_published_bootstrap_standard_error():
    """Efron and Tibshirani 1993, table 2.1 and 2.2: mouse data, standard error of the mean for B -> infinity."""
    treated = np.array([94, 197, 16, 38, 99, 141, 23.0])[:, None]
    answer = interval(treated, mean, num_resamples=20_000)
    assert answer.value == pytest.approx(86.86, abs=0.005)
    assert answer.standard_error == pytest.approx(23.36, rel=0.02)  # 1 / sqrt(2 x 20000) is 0.5 per cent


def test_intervals_are_exact_where_all_resamples_can_be_listed():
    """Three runs, one task: 27 equally likely resamples; the percentile interval is theirs."""
    scores = np.array([[0.0], [1.0], [5.0]])
    every = np.array([np.mean(draw) for draw in itertools.product([0.0, 1.0, 5.0], repeat=3)])
    answer = interval(scores, mean, confidence=0.8, num_resamples=20_000)
    assert answer.low == pytest.approx(np.quantile(every, 0.1)) == pytest.approx(1 / 3)
    assert answer.high == pytest.approx(np.quantile(every, 0.9)) == pytest.approx(11 / 3)
    assert answer.standard_error == pytest.approx(every.std(), rel=0.02)


def test_stratified_resampling_treats_tasks_as_independent_and_runs_does_not():
    """A common effect of each run on its M tasks: standard errors of the mean differ by the square root of M."""
    effect = np.random.default_rng(0).standard_normal((8, 1))
    scores = np.repeat(effect, 16, axis=1)
    expected = effect.std() / math.sqrt(8)
    whole = interval(scores, mean, resampling="runs", num_resamples=20_000).standard_error
    within = interval(scores, mean, resampling="stratified", num_resamples=20_000).standard_error
    assert whole == pytest.approx(expected, rel=0.03)
    assert within == pytest.approx(expected / 4, rel=0.03)


@pytest.mark.parametrize("resampling", ["runs", "stratified"])
def test_intervals_cover(resampling):
    """Percentile intervals of the mean of 20 normal runs: +-1.96 sqrt(19/20) s/sqrt(20) covers 92.9 %."""
    rng, covered, num = np.random.default_rng(0), 0, 600
    for seed in range(num):
        scores = rng.standard_normal((20, 3))
        answer = interval(scores, mean, resampling=resampling, num_resamples=400, seed=seed)
        covered += answer.low <= 0 <= answer.high
    assert abs(covered / num - 0.929) < 4 * math.sqrt(0.929 * 0.071 / num)  # four standard errors


def test_one_run_has_no_interval_and_equal_runs_have_an_empty_one():
    assert math.isnan(interval(TOY[:1], mean).low) and interval(TOY[:1], mean).value == 4.0
    same = interval(np.tile(TOY[:1], (3, 1)), iqm)
    assert (same.low, same.high, same.standard_error) == (2.5, 2.5, 0.0)


def test_paired_difference_by_hand():
    """Seeds differ by 100, methods by 1: the pairing takes the seeds' spread out."""
    b = np.array([[0.0, 4.0], [100.0, 104.0], [200.0, 204.0]])
    a = b - np.array([[1.0], [1.0], [4.0]])
    answer = paired_difference(a, b, mean, num_resamples=20_000)
    assert answer.interval.value == -2.0 and answer.per_seed == (-1.0, -1.0, -4.0)
    every = [np.mean(d) for d in itertools.product([-1.0, -1.0, -4.0], repeat=3)]
    assert (
        answer.interval.low
        == pytest.approx(np.quantile(every, 0.025, method="inverted_cdf"))
        == pytest.approx(-4.0)
    )
    assert (
        answer.interval.high
        == pytest.approx(np.quantile(every, 0.975, method="inverted_cdf"))
        == pytest.approx(-1.0)
    )
    # t = -2 / (sqrt(3) / sqrt(3)) = -2 with two degrees of freedom: p = 1 - 2 / sqrt(2 + 4)
    assert answer.p_value == pytest.approx(1 - 2 / math.sqrt(6))
    assert paired_difference(a, b, worst).interval.value == -2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(np.zeros((0, 3)), mean), "at least one of each"),
        (lambda: interval(np.zeros(3), mean), "expected \\(runs, tasks\\)"),
        (lambda: interval(np.array([[1.0, np.nan]]), mean), "1 of 2 scores are missing"),
        (lambda: interval(TOY, mean, resampling="run"), "did you mean 'runs'"),
        (lambda: paired_difference(TOY, TOY[:1], mean), "the same seeds and tasks"),
        (lambda: probability_of_improvement(TOY, TOY[:, :2]), "the same tasks, got 4 and 2"),
        (lambda: cvar(TOY, 0.0), "share: expected above 0"),
    ],
)
def test_bad_scores_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
