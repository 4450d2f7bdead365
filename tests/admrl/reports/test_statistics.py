"""Every statistic against numbers worked out by hand, and against published ones."""

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


def test_published_standard_error():
    """Efron and Tibshirani 1993, table 2.1: mouse data, mean 86.86, estimated standard error 25.24 (ddof 1)."""
    treated = np.array([94, 197, 16, 38, 99, 141, 23.0])[:, None]
    answer = interval(treated, mean)
    assert answer.value == pytest.approx(86.86, abs=0.005)
    assert answer.standard_error == pytest.approx(25.24, abs=0.005)
    # t with six degrees of freedom: 2.4469
    assert answer.high - answer.value == pytest.approx(2.4469 * 25.236, rel=1e-4)


def test_two_way_variance_by_hand():
    """Two runs, two policy seeds: [[0, 2], [4, 10]] has run means 1 and 7, seed means 2 and 6, rest +-1."""
    answer = interval(np.array([[[0.0], [2.0]], [[4.0], [10.0]]]), mean)
    # V(runs) = 18 / 2, V(seeds) = 8 / 2, V(rest) = 4 x 1 / 1 / 4 = 1
    assert answer.value == 4.0 and answer.standard_error == pytest.approx(math.sqrt(9 + (4 - 1)))
    assert answer.high - answer.value == pytest.approx(12.7062 * math.sqrt(12), rel=1e-5)


def test_what_all_runs_have_in_common_counts():
    """Runs that agree with each other, on policy seeds that do not: their mean is as uncertain as the seeds are."""
    common = np.random.default_rng(0).standard_normal((1, 4, 3)).repeat(5, axis=0)
    answer = interval(common, mean)
    assert answer.standard_error == pytest.approx(common[0].mean(1).std(ddof=1) / 2)


STATISTICS = {"mean": mean, "iqm": iqm, "worst": worst, "cvar": cvar}


def runs_of(rng, kind, num_runs, num_seeds):
    """Gaps (S, R, M) of eight tasks with spread over runs, policy seeds and both, that all tasks feel."""

    def effect(scale, *shape):
        draws = rng.standard_normal(shape) if kind == "normal" else rng.gamma(4.0, 0.5, shape) - 2.0
        return scale * draws

    tasks = np.linspace(0, 4, 8)
    rest = effect(1.0, num_runs, num_seeds, 1) + effect(0.5, num_runs, num_seeds, 8)
    return tasks + effect(1.0, num_runs, 1, 1) + effect(0.5, 1, num_seeds, 1) + rest


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize(("num_runs", "num_seeds"), [(2, 3), (5, 2), (10, 1)])
def test_intervals_of_comparisons_cover(name, kind, num_runs, num_seeds):
    """Of the expected value of the statistic, which is known for the mean and simulated for the others."""
    rng, statistic = np.random.default_rng(num_runs), STATISTICS[name]
    draws = [runs_of(rng, kind, num_runs, num_seeds) for _ in range(300)]
    if num_seeds == 1:  # nothing in common: one policy seed cannot show it
        draws = [x + 0.5 * rng.standard_normal((num_runs, 1, 1)) for x in draws]
        draws = [np.concatenate([y[:1] for y in draws[i : i + num_runs]]) for i in range(300 - num_runs)]
    many = [runs_of(rng, kind, num_runs, num_seeds).mean(1) for _ in range(4000)]
    truth = 2.0 if name == "mean" else float(statistic(np.stack(many)).mean())
    found = [interval(x, statistic) for x in draws]
    assert 0.90 <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.985


@pytest.mark.parametrize(("num_runs", "num_seeds"), [(2, 2), (3, 2), (5, 2), (5, 3)])
@pytest.mark.parametrize("sizes", [(0.3, 1.0, 0.3), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 0.5, 1.0)])
def test_intervals_cover_wherever_the_noise_is(num_runs, num_seeds, sizes):
    """Standard deviations of runs, policy seeds and both. (Ten runs that differ in nothing, on two policy seeds that
    do, are the worst case known: 89 %.)"""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        shapes = (num_runs, 1), (1, num_seeds), (num_runs, num_seeds)
        scores = sum(
            size * rng.standard_normal((*shape, 1)) for size, shape in zip(sizes, shapes, strict=True)
        )
        found.append(interval(scores, mean))
    assert 0.90 <= np.mean([i.low <= 0 <= i.high for i in found]) <= 0.985


@pytest.mark.parametrize("num_runs", [2, 3, 5, 10])
def test_paired_intervals_and_their_p_values_are_calibrated(num_runs):
    """Two equal methods: 5 % of the p-values are below 0.05, and 95 % of the intervals hold 0."""
    rng = np.random.default_rng(num_runs)
    found = []
    for _ in range(400):
        common = rng.standard_normal((num_runs, 3, 1))
        a, b = (common + 0.5 * rng.standard_normal((num_runs, 3, 4)) for _ in range(2))
        found.append(paired_difference(a, b, mean))
    covered = np.array([d.interval.low <= 0 <= d.interval.high for d in found])
    assert 0.90 <= covered.mean() <= 0.985
    p_values = np.array([d.p_value for d in found])
    assert 0.015 <= np.mean(p_values < 0.05) <= 0.10
    assert ((p_values >= 0.05) == covered).all(), "a p-value and an interval say the same"


def test_a_p_value_is_that_of_the_interval_whose_end_is_0():
    """Two variances of unequal degrees of freedom, from no difference to one of 1e6 standard errors."""
    scores = np.array([[[0.0], [2.0], [1.0]], [[4.0], [10.0], [3.0]]])
    for shift in (-1e6, -30.0, 0.0, 5.0, 60.0):
        answer = interval(scores + shift, mean)
        again = interval(scores + shift, mean, confidence=1 - answer.p_value)
        nearest = again.low if answer.value > 0 else again.high
        assert nearest == pytest.approx(0.0, abs=1e-6 * abs(answer.value))
    answer = interval(scores - scores.mean(), mean)
    assert answer.p_value == pytest.approx(1.0)


def test_one_run_has_no_interval_and_equal_runs_have_an_empty_one():
    assert math.isnan(interval(TOY[:1], mean).low) and interval(TOY[:1], mean).value == 4.0
    same = interval(np.tile(TOY[:1], (3, 1)), iqm)
    assert (same.low, same.high, same.standard_error) == (2.5, 2.5, 0.0)


def test_paired_difference_by_hand():
    """Seeds differ by 100, methods by 1: the pairing takes the seeds' spread out."""
    b = np.array([[0.0, 4.0], [100.0, 104.0], [200.0, 204.0]])
    a = b - np.array([[1.0], [1.0], [4.0]])
    answer = paired_difference(a, b, mean)
    assert answer.interval.value == -2.0 and answer.per_seed == (-1.0, -1.0, -4.0)
    # standard error sqrt(3) / sqrt(3), t with two degrees of freedom
    assert answer.interval.low == pytest.approx(-2 - 4.30265, rel=1e-5)
    assert answer.interval.high == pytest.approx(-2 + 4.30265, rel=1e-5)
    # t = -2 / (sqrt(3) / sqrt(3)) = -2 with two degrees of freedom: p = 1 - 2 / sqrt(2 + 4)
    assert answer.p_value == pytest.approx(1 - 2 / math.sqrt(6))
    assert paired_difference(a, b, worst).interval.value == -2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(np.zeros((0, 3)), mean), "at least one of each"),
        (lambda: interval(np.zeros(3), mean), "expected \\(runs, tasks\\)"),
        (lambda: interval(np.array([[1.0, np.nan]]), mean), "1 of 2 scores are missing"),
        (lambda: paired_difference(TOY, TOY[:1], mean), "the same seeds and tasks"),
        (lambda: probability_of_improvement(TOY, TOY[:, :2]), "the same tasks, got 4 and 2"),
        (lambda: cvar(TOY, 0.0), "share: expected above 0"),
    ],
)
def test_bad_scores_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
