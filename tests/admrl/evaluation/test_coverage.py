"""Intervals of gaps against known truths: 95 % intervals cover 90 to 98 %, with normal and with skewed returns.

A simulated task is one repetition, so a table of 1500 tasks is 1500 of them.
"""

import math

import numpy as np
import pytest
from scipy.stats import t as student_t
from table_tools import toy_table

from admrl.evaluation.scoring import best_known
from admrl.search.worst import mean_interval

GAP = 0.5  # of every simulated task, unless a test says otherwise


def draws(rng, kind, *shape):
    """Mean 0, variance 1."""
    return rng.standard_normal(shape) if kind == "normal" else rng.standard_exponential(shape) - 1


def simulated(
    rng, kind, num_seeds, num_tasks, *, reference, policies=0.3, starts=1.0, noise=0.5, gap=GAP, num=16
):
    """A table of tasks whose true gap is known: policies differ between seeds; start states matter to A*, too.

    Args:
        reference: "paired", a run scored on the start states of every policy seed; "file", with episodes of its own;
            "file, same start states", those of the first policy seed; "own", another method's policy beside a run.
    """
    start = starts * draws(rng, kind, num_seeds, num_tasks, num)
    policy = policies * draws(rng, kind, num_seeds, num_tasks, 1)
    returns = start - gap + policy + noise * draws(rng, kind, num_seeds, num_tasks, num)
    if reference == "paired":
        best = start + noise * draws(rng, kind, num_seeds, num_tasks, num)
        known = best_known({}, {"reference": best}, num_seeds)
    elif reference == "own":
        best = start[:1] + noise * draws(rng, kind, 1, num_tasks, num)
        run = start - 3.0 + noise * draws(rng, kind, num_seeds, num_tasks, num)
        known = best_known({"own": best}, {"run": run}, num_seeds)
    else:
        same = reference == "file, same start states"
        best = start[:1] if same else starts * draws(rng, kind, 1, num_tasks, num)
        known = best_known({"file": best + noise * draws(rng, kind, 1, num_tasks, num)}, None, num_seeds)
    return toy_table(
        psi=np.zeros((num_tasks, 2)),
        episode_return=returns[:, :, None],
        optimal_return=known.returns,
        optimal_by_seed=known.by_seed,
        optimal_source=known.source,
        grid_shape=None,
    )


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("reference", ["paired", "file", "file, same start states", "own"])
@pytest.mark.parametrize("policies", [0.0, 0.3])
def test_the_standard_error_of_a_gap_covers_policies_episodes_and_the_reference(
    num_seeds, kind, reference, policies
):
    """The gap of deterministic policies (0.0) is noisy, too, because of its episodes."""
    rng = np.random.default_rng(num_seeds)
    table = simulated(rng, kind, num_seeds, 1500, reference=reference, policies=policies)
    error = table.standard_error()
    half = student_t.isf(0.025, num_seeds - 1) * error
    assert 0.90 <= np.mean(np.abs(table.mean_gap() - GAP) <= half) <= 0.98
    true_error = table.mean_gap().std()
    expected = math.sqrt(np.mean(error**2))
    # safe, where A*'s episodes have the start states of one policy seed among several
    assert 0.9 < expected / true_error < (1.1 if reference in ("paired", "file") else 1.8)


def test_a_reference_on_the_same_start_states_takes_their_noise_out():
    rng = np.random.default_rng(0)
    paired, own, alone = (
        simulated(rng, "normal", 3, 500, reference=r, policies=0.0, noise=0.1).standard_error().mean()
        for r in ("paired", "own", "file")
    )
    assert paired < alone / 5 and own < alone / 4


@pytest.mark.parametrize("num_seeds", [3, 10])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_of_the_mean_and_of_the_true_worst_gap_cover(kind, num_seeds):
    """A single task; eight that are equally bad, where the plain worst gap is too large; one that is clearly the
    worst."""
    rng = np.random.default_rng(num_seeds)
    for gap in (np.full((1, 1), 1.0), np.full((8, 1), 1.0), np.array([[5.0], *[[0.0]] * 7])):
        tables = [simulated(rng, kind, num_seeds, len(gap), reference="paired", gap=gap) for _ in range(400)]
        worst = np.array([t.worst_interval() for t in tables])
        mean = np.array([t.average_interval() for t in tables])
        for ends, truth in ((worst, gap.max()), (mean, gap.mean())):
            assert 0.90 <= np.mean((ends[:, 0] <= truth) & (ends[:, 1] >= truth)) <= 0.98
        if len(gap) > 1 and np.ptp(gap) == 0:
            assert np.mean([t.worst().gap for t in tables]) > 1.05, "too large, as the docs say"


def test_between_alike_and_standing_out_the_interval_of_the_worst_gap_is_safe():
    """Two equally bad tasks, or gaps spread out evenly: no interval that holds for all gaps is exact for all."""
    rng = np.random.default_rng(0)
    for gap in (np.array([[5.0], [5.0], *[[0.0]] * 6]), np.linspace(0, 1, 8)[:, None]):
        tables = [simulated(rng, "skewed", 3, 8, reference="paired", gap=gap) for _ in range(400)]
        ends = np.array([t.worst_interval() for t in tables])
        assert np.mean((ends[:, 0] <= gap.max()) & (ends[:, 1] >= gap.max())) >= 0.95


@pytest.mark.parametrize("num_replicates", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_of_search_worst_cover(kind, num_replicates):
    """Replicates are means of episodes, as those of `RunGap`."""
    rng = np.random.default_rng(num_replicates)
    table = simulated(rng, kind, num_replicates, 1000, reference="paired")
    ends = np.array([mean_interval(row, 0.95) for row in table.gap[:, :, 0].T])
    assert 0.90 <= np.mean((ends[:, 0] <= GAP) & (ends[:, 1] >= GAP)) <= 0.98


def test_one_policy_seed_says_nothing():
    table = simulated(np.random.default_rng(0), "normal", 1, 4, reference="paired")
    assert np.isnan(table.standard_error()).all() and np.isnan(table.average()[1])
    assert np.isnan(table.worst_interval()).all() and np.isnan(table.average_interval()).all()
    assert mean_interval(np.array([1.0]), 0.95) == (None, None)


def test_episodes_of_a_file_are_shared_out_by_policy_seed():
    """By hand: six episodes, three seeds: pairs of them. Two episodes, four seeds: as spread out as four would be."""
    known = best_known({"file": np.array([[[1.0, 3.0, 5.0, 7.0, 9.0, 5.0]]])}, None, 3)
    assert known.by_seed.tolist() == [[2.0], [6.0], [7.0]] and known.returns.tolist() == [5.0]
    few = best_known({"file": np.array([[[4.0, 6.0]]])}, None, 4)
    # variance 2 of an episode, so 1 of A*, and 4 of each of four shares
    assert few.by_seed.var(ddof=1) == pytest.approx(4.0) and few.by_seed.mean() == pytest.approx(5.0)


def test_policies_are_compared_on_the_same_start_states():
    """Seed 1 drew easy start states: its policy looks better than that of seed 0, and is worse."""
    hard, easy = np.array([0.0, 1, 2, 3]), np.array([10.0, 11, 12, 13])
    reference = np.stack([hard, easy])[:, None]  # (R, M, N)
    own = np.stack([hard + 1, easy - 1])[:, None]
    assert best_known({"own": own}).returns.tolist() == [10.5]
    known = best_known({"own": own}, {"reference": reference}, 2)
    # one more than the reference, wherever one starts
    assert known.source == ("own",) and known.by_seed.tolist() == [[2.5], [12.5]]
    unrelated = np.stack([hard[[2, 0, 3, 1]], easy])[:, None]  # does not follow the start states
    assert best_known({"own": own[:1]}, {"reference": unrelated - 99}, 2).returns.tolist() == [2.5]
