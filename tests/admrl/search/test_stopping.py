"""Searches that end because little is still expected: known optima, and what must not change."""

import math

import pytest
import torch
from search_tools import BOX, DOUBLE, generator, two_hills

from admrl.commands.search_worst import SearchWorst
from admrl.config.search import SEARCHES
from admrl.search import RandomSearch, find_worst, make_search
from admrl.search.worst import check_min_gain
from task_families import TaskBox

SUMMIT = torch.tensor([0.3, -0.5]).double()  # unit coordinates


def quadratic(psi):
    """3 at the summit."""
    return 3 - (BOX.to_unit(psi.double()) - SUMMIT).square().sum(-1)


def found(gap, name="default", seed=0, **options):
    search = make_search(name, BOX, generator=generator(seed))
    return find_worst(gap, BOX, search, generator=generator(seed + 9), top=1, **options)


@pytest.mark.parametrize("name", ["default", "gp"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_quadratic_ends_after_its_optimum_was_found_and_before_the_budget(name, seed):
    report = found(quadratic, name, seed, budget=40, min_gain=1e-3)
    assert report.stopped and 6 <= report.num_evaluations < 25  # 2 k + 2 = 6 come before any model
    assert report.tasks[0].gap > 3 - 2e-3 and report.expected_improvement < 1e-3
    said = "\n".join(report.lines())
    assert f"Stopped after {report.num_evaluations} of 40 evaluations" in said and "gain of 0.001" in said


def test_a_search_goes_on_to_its_budget_where_gain_is_still_expected():
    """Waves with a dozen summits: ten evaluations leave most of the space unknown."""

    def waves(psi):
        return (7 * BOX.to_unit(psi.double())).sin().sum(-1)

    report = found(waves, budget=10, min_gain=1e-3)
    assert not report.stopped and report.num_evaluations == 10 and report.expected_improvement > 1e-2
    assert "Ended with its budget of 10 evaluations; the expected improvement is" in "\n".join(report.lines())


def test_a_noisy_gap_ends_once_noise_explains_what_is_left():
    source = generator(3)

    def noisy(psi):
        return quadratic(psi)[:, None] + 0.1 * torch.randn(len(psi), 8, generator=source, dtype=DOUBLE)

    report = found(noisy, budget=60, batch=6, num_probes=12, min_gain=0.05)
    assert report.stopped and report.num_evaluations < 60
    assert float(quadratic(torch.tensor(report.tasks[0].psi)[None])) > 3 - 0.05


def test_asking_for_the_expected_improvement_changes_nothing():
    plain, watched = (make_search("default", BOX, generator=generator(2)) for _ in range(2))
    for _ in range(6):
        for search in (plain, watched):
            psi = search.ask(2)
            if search is watched:
                search.expected_improvement()
            search.tell(psi, two_hills(psi))
        watched.expected_improvement()
    states = plain.state_dict(), watched.state_dict()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0, equal_nan=True)
    assert watched.expected_improvement() == plain.expected_improvement()  # of what was told alone


def test_the_expected_improvement_is_that_of_a_fine_grid():
    search = make_search("gp", BOX, generator=generator(4))
    for _ in range(9):
        psi = search.ask()
        search.tell(psi, two_hills(psi))
    stated = search.expected_improvement()
    gap = search.history.gap
    grid = BOX.grid((101, 101))
    with torch.no_grad():
        mean, std = search.posterior()(BOX.embed(grid.double()))
    mean, std = gap.mean() + gap.std() * mean, gap.std() * std
    z = (mean - gap.max()) / std
    expected = std * (torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) + z * torch.special.ndtr(z))
    assert stated == pytest.approx(float(expected.max()), rel=0.02) and stated >= 0.999 * float(
        expected.max()
    )


def test_nothing_is_expected_where_nothing_can_be_said_yet():
    search = make_search("default", BOX, generator=generator())
    assert search.expected_improvement() == math.inf
    line = TaskBox(torch.zeros(1).double(), torch.ones(1).double(), ("a",), ("1",))
    flat = find_worst(
        lambda psi: torch.zeros(len(psi)), line, make_search("gp", line, generator=generator()), budget=30,
        min_gain=1e-3, generator=generator(),
    )  # fmt: skip
    assert flat.num_evaluations < 30 and flat.tasks[0].gap == 0


@pytest.mark.parametrize("name", [n for n in SEARCHES if n not in ("default", "gp", "cmaes", "botorch")])
def test_a_search_that_states_none_is_refused_before_any_evaluation(name):
    def never(psi):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match="min_gain: expected a search that states an expected improvement"):
        found(never, name, budget=8, min_gain=0.1)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(ValueError, match="min_gain: expected a positive number"):
        found(quadratic, budget=8, min_gain=gain)


def test_a_search_of_ones_own_may_state_it():
    class Sure(RandomSearch):
        def expected_improvement(self):
            return 1.0 if len(self.history) < 7 else 0.0

    own = Sure(BOX, None, "uniform", generator())
    check_min_gain(0.5, own)
    report = find_worst(quadratic, BOX, own, budget=20, min_gain=0.5, generator=generator())
    assert report.num_evaluations == 7 and report.stopped


def test_the_command_hands_the_gain_on_and_is_off_by_default():
    assert SearchWorst().min_gain is None
    report = found(quadratic, budget=8)
    assert report.min_gain is None and report.expected_improvement is None and not report.stopped
    assert not any("xpected improvement" in line for line in report.lines())
