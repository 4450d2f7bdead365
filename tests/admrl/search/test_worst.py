"""The report of the worst tasks: bounds, intervals, differences, and searches whose answer is known."""

import math

import numpy as np
import pytest
import torch
from search_tools import BOX, DOUBLE, generator, two_hills

from admrl.search import RandomSearch, find_worst, make_search, mass_bound
from admrl.search.worst import central_difference, mean_interval, projected_norm
from task_families import TaskBall, TaskBox, TaskChoice, TaskCircle, TaskProduct, make


def test_mass_bound_by_hand_and_in_practice():
    assert mass_bound(torch.zeros(300), 0.95).mass == pytest.approx(0.00994, abs=1e-5)
    assert math.isinf(mass_bound(torch.tensor([1.0, math.nan])).largest)
    # the mass above the largest of 20 uniform numbers is 1 - max; it exceeds the bound in 10 % of trials
    draws = torch.rand(4000, 20, generator=generator(), dtype=DOUBLE)
    bounds = [mass_bound(row, 0.9) for row in draws]
    above = sum(1 - b.largest > b.mass for b in bounds) / 4000
    assert above == pytest.approx(0.1, abs=0.015)  # three standard errors
    for gaps, confidence in ((torch.zeros(0), 0.9), (torch.zeros(3), 1.0)):
        with pytest.raises(ValueError, match="expected"):
            mass_bound(gaps, confidence)


def noisy(seed):
    """8 replicates with noise of 0.1."""
    source = generator(seed)
    return lambda psi: (
        two_hills(psi)[:, None] + 0.1 * torch.randn(len(psi), 8, generator=source, dtype=DOUBLE)
    )


def test_find_worst_reports_two_distinct_hills_with_intervals():
    search = make_search("default", BOX, generator=generator(1))
    report = find_worst(
        noisy(0), BOX, search, budget=70, batch=2, num_probes=20, top=2, min_distance=0.3,
        confirm=noisy(1), difference=0.05, generator=generator(2),
    )  # fmt: skip
    first, second = report.tasks
    assert first.psi == pytest.approx((0.25, 1.0), abs=0.1) and second.psi == pytest.approx(
        (0.75, 3.0), abs=0.3
    )
    for task, truth in ((first, 2.0), (second, 1.0)):
        assert task.low < task.gap < task.high and task.low - 0.1 < truth < task.high + 0.1
        assert task.gradient_norm is not None and task.gradient_error > 0
    assert report.num_evaluations == 70 and report.num_failed == 0
    assert report.num_starts == 20 and report.bound.num_probes == 20
    assert report.bound.mass == pytest.approx(1 - 0.05 ** (1 / 20))
    text = "\n".join(report.lines())
    assert "worst of 20 starts" in text and "95% confidence" in text


def test_few_replicates_do_not_make_a_gap_exact():
    """Two policies that agree by chance: their standard error comes from the other tasks."""
    told = []

    class Spy(RandomSearch):
        def tell(self, psi, gap, gradient=None, info=None):
            told.append(info["standard_error"])
            super().tell(psi, gap, gradient, info)

    source = generator(3)

    def gap(psi):
        luck = torch.randn(len(psi), 2, generator=source, dtype=DOUBLE)
        luck[0] = 0.0
        return luck

    find_worst(gap, BOX, Spy(BOX, None, "uniform", generator()), budget=400, batch=400, generator=generator())
    error = torch.cat(told)
    # of one degree of freedom of its own and six of all tasks': sqrt(6 / 7 * 1 / 2) where the own says 0
    assert float(error[0]) == pytest.approx((6 / 7 / 2) ** 0.5, rel=0.1) and float(error.min()) > 0.5
    assert float(error.square().mean()) == pytest.approx(0.5, rel=0.15)


@pytest.mark.slow
def test_default_finds_a_noisy_summit():
    """Wide hill of height 1, noise of 0.5 a policy: 36 tasks of two policies each, mean of eight searches."""

    def hill(psi):
        z = BOX.to_unit(psi.double())
        return torch.exp(-(z - torch.tensor([0.5, -0.4])).square().sum(-1) / (2 * 0.5**2))

    found = []
    for seed in range(8):
        source = generator(seed)

        def gap(psi, source=source, replicates=2):
            return hill(psi)[:, None] + 0.5 * torch.randn(
                len(psi), replicates, generator=source, dtype=DOUBLE
            )

        search = make_search("default", BOX, generator=generator(seed))
        report = find_worst(gap, BOX, search, budget=36, batch=6, top=3, confirm=lambda p: gap(p, replicates=8),
                            generator=generator(seed))  # fmt: skip
        found.append(float(hill(torch.tensor(report.tasks[0].psi)[None])))
    assert sum(found) / 8 > 0.85


def test_find_worst_survives_failures_and_takes_gradients(tmp_path):
    def gap(psi):
        value = two_hills(psi)
        return torch.where(psi[:, 1] > 3.5, torch.nan, value), torch.zeros_like(psi)

    report = find_worst(
        gap,
        BOX,
        make_search("uniform", BOX, generator=generator()),
        budget=60,
        batch=7,
        generator=generator(),
    )
    assert report.num_failed > 0 and report.bound is None
    assert report.tasks[0].low is None and report.tasks[0].gradient_norm == 0.0
    report.save(tmp_path / "worst.json")
    assert (tmp_path / "worst.json").stat().st_size > 100
    with pytest.raises(ValueError, match="all 5 evaluations failed"):
        find_worst(
            lambda psi: psi[:, 0] * math.nan,
            BOX,
            make_search("uniform", BOX, generator=generator()),
            budget=5,
            generator=generator(),
        )
    with pytest.raises(ValueError, match="num_probes: expected at most 5, the budget"):
        find_worst(gap, BOX, make_search("uniform", BOX, generator=generator()), budget=5, num_probes=6,
                   generator=generator())  # fmt: skip
    with pytest.raises(ValueError, match=r"expected \(1,\) or \(1, R\)"):
        find_worst(lambda psi: torch.zeros(3), BOX, make_search("uniform", BOX, generator=generator()), budget=1,
                   generator=generator())  # fmt: skip


def test_projected_gradient_norm():
    ball = TaskBall(torch.zeros(2).double(), 2.0, ("x", "y"), ("m", "m"))
    slope = torch.tensor([3.0, 4.0]).double()
    inside, top = torch.zeros(2).double(), slope / 5
    assert projected_norm(ball, inside, slope) == pytest.approx(5.0)
    # on the sphere, pointing outwards: nothing is left, up to the curvature times t |g|
    assert projected_norm(ball, top, slope) == pytest.approx(0.0, abs=1e-3)
    assert projected_norm(ball, top, torch.tensor([-4.0, 3.0]).double()) == pytest.approx(5.0, rel=1e-3)
    assert projected_norm(BOX, torch.tensor([1.0, 0.0]).double(), slope) == pytest.approx(4.0)


def test_differences_at_the_border_are_one_sided():
    psi = torch.tensor([[1.0, 2.0], [0.5, 1.0]]).double()
    slope, error = central_difference(lambda p: 3 * p[:, 0] - p[:, 1] ** 2, BOX, psi, 0.1)
    # per unit coordinate, of which 0.5 and 2 of psi make one; a quadratic's central difference is exact
    torch.testing.assert_close(slope, torch.tensor([[1.5, -8.0], [1.5, -4.0]]).double())
    assert error is None

    def replicates(p):
        return 3 * p[:, :1] + torch.tensor([-1.0, 1.0]).double()

    slope, error = central_difference(replicates, BOX, psi, 0.1)
    torch.testing.assert_close(slope, torch.tensor([[1.5, 0.0], [1.5, 0.0]]).double())
    # variance 2 of two replicates on either side: a difference has a standard error of sqrt 2, over 0.1 and 0.2
    torch.testing.assert_close(error, 2**0.5 / torch.tensor([0.1, 0.2]).double())


def test_a_circle_has_no_border():
    """Near the ends of the turn, too, the slope of sin is cos, and nothing of a gradient is projected away."""
    circle = TaskCircle(dtype=DOUBLE)
    psi = torch.tensor([[0.0], [0.1], [3.0], [6.28]]).double()

    def replicates(p):
        return p.sin() + torch.tensor([0.0, 0.1]).double()

    slope, error = central_difference(replicates, circle, psi, 0.01)
    # per unit of pi rad, up to step^2 / 6
    torch.testing.assert_close(slope, math.pi * psi.cos(), atol=1e-3, rtol=0)
    assert float(error.max()) == pytest.approx(0.005**0.5 / 0.02)  # variance 0.005 on either side
    for sign in (1.0, -1.0):
        gradient = torch.tensor([sign]).double()
        assert projected_norm(circle, circle.to_unit(psi[0]), gradient) == pytest.approx(1.0)
    both = TaskProduct((circle, BOX))
    psi = torch.cat([torch.zeros(1, dtype=DOUBLE), BOX.high.double()])[None]  # at its seam and in its corner
    slope, _ = central_difference(lambda p: p[:, 0].sin() + 3 * p[:, 1] + p[:, 2], both, psi, 0.01)
    torch.testing.assert_close(slope, torch.tensor([[math.pi, 1.5, 2.0]]).double(), atol=1e-3, rtol=0)


def test_differences_of_kinds_and_whole_numbers_are_left_out():
    """A step to the same task was divided by 1e-12: a standard error of 1e12."""
    floors = TaskChoice(torch.arange(5.0)[:, None].double(), ("floor",), ("1",))
    slope = TaskBox(torch.zeros(1).double(), torch.ones(1).double(), ("slope",), ("1",))

    def replicates(p):
        return p.sum(-1, keepdim=True) + torch.tensor([-1.0, 1.0]).double()

    psi = torch.tensor([[3.0, 0.5]]).double()
    found, error = central_difference(replicates, TaskProduct((floors, slope)), psi, 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5]]).double())
    torch.testing.assert_close(error, 2**0.5 / torch.tensor([0.2]).double())
    assert central_difference(replicates, floors, psi[:, :1], 0.1)[0].isnan().all(), "no step, no slope"
    torch.testing.assert_close(central_difference(replicates, floors, psi[:, :1], 0.5)[0].item(), 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence: expected a number between 0 and 1, got 95"),
        ({"min_distance": math.nan}, "min_distance: expected a finite number, got nan"),
        ({"difference": -0.1}, r"difference: expected 0 or None .*, got -0\.1"),
    ],
)
def test_options_are_refused_before_the_search(options, message):
    """The confidence was refused after the whole budget, the others not at all."""
    search = make_search("uniform", BOX, generator=generator())
    with pytest.raises(ValueError, match=message):
        find_worst(
            lambda psi: psi.sum(-1), BOX, search, budget=4, num_probes=2, generator=generator(), **options
        )
    assert len(search.history) == 0


def test_a_gap_that_returns_nothing_is_named():
    with pytest.raises(ValueError, match=r"gap: expected numbers for 1 tasks, got None"):
        find_worst(
            lambda psi: None,
            BOX,
            make_search("uniform", BOX, generator=generator()),
            budget=1,
            generator=generator(),
        )


def test_intervals_of_the_mean_by_hand():
    """Two replicates, 1 and 3: mean 2, standard error 1, t with one degree of freedom 12.706."""
    assert mean_interval(np.array([1.0, 3.0]), 0.95) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-5)
    assert mean_interval(np.array([2.0, 2.0]), 0.9) == (2.0, 2.0)
    assert mean_interval(np.array([2.0]), 0.9) == (None, None)


def test_find_worst_on_the_linear_quadratic_family():
    """The closed-form gap of a wrong model is convex: its worst task is a corner, the best of the four."""
    family = make("linear_quadratic")
    model = type(family.dynamics)(0.95 * family.dynamics.A, 0.9 * family.dynamics.B, family.dynamics.c + 0.02)

    def gap(psi):
        values = torch.stack([family.gap(p, model, sigma=0.3) for p in psi.double()])
        return values, torch.stack([family.gap_gradient(p, model, sigma=0.3) for p in psi.double()])

    corners = gap(family.box.grid((2, 2)))[0]
    search = make_search("default", family.box, generator=generator())
    report = find_worst(gap, family.box, search, budget=20, top=1, generator=generator())
    assert report.tasks[0].gap == pytest.approx(float(corners.max()), rel=1e-3)
    assert report.tasks[0].gradient_norm < 1e-3
