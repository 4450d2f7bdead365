"""Objectives, their weights and the scales of a gap by hand, and screening by an objective."""

import math

import numpy as np
import pytest
import torch
from search_tools import BOX, DOUBLE, generator

from admrl.search import Objective, ScreenedSearch, scaled_gap, scaled_gradient

GAPS = torch.tensor([3.0, -1.0, 4.0, 0.0, 2.0], dtype=DOUBLE)


def test_objectives_by_hand():
    assert float(Objective("worst").value(GAPS)) == 4.0
    assert float(Objective("mean").value(GAPS)) == pytest.approx(1.6)
    assert float(Objective("cvar", alpha=0.4).value(GAPS)) == pytest.approx(3.5)  # the two largest
    assert float(Objective("cvar", alpha=0.5).value(GAPS)) == pytest.approx((4 + 3 + 2 / 2) / 2.5)
    assert float(Objective("cvar", alpha=0.1).value(GAPS)) == pytest.approx(4.0)
    tau = 0.5 * float(GAPS.std(correction=0))
    expected = tau * math.log(np.exp(GAPS.numpy() / tau).mean())
    assert float(Objective("softmax").value(GAPS)) == pytest.approx(expected)
    assert float(Objective("softmax", temperature=1e3).value(GAPS)) == pytest.approx(1.6, abs=1e-2)
    assert float(Objective("softmax", temperature=1e-3).value(GAPS)) == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("objective", [Objective(n, 0.5) for n in ("worst", "cvar", "softmax", "mean")])
def test_weights_are_the_derivative_and_a_distribution(objective):
    weights = objective.weights(GAPS)
    assert float(weights.sum()) == pytest.approx(1.0) and bool((weights >= 0).all())
    tau = objective._tau(GAPS)

    def value(gap):  # with the softmax's scale held fixed, as `weights` is defined
        if objective.name != "softmax":
            return objective.value(gap)
        return tau[0] * torch.logsumexp(gap / tau, -1)

    for h in (1e-4, 1e-5):
        difference = torch.stack(
            [(value(GAPS + h * e) - value(GAPS - h * e)) / (2 * h) for e in torch.eye(5, dtype=DOUBLE)]
        )
        torch.testing.assert_close(weights, difference, atol=1e-6, rtol=0)


def test_a_missing_gap_makes_the_objective_missing():
    gaps = torch.tensor([1.0, math.nan])
    for name in ("worst", "cvar", "softmax", "mean"):
        assert Objective(name).value(gaps).isnan()


def test_ratio_and_its_gradient():
    """A* = +-4 + x, A = 1 + 3 x y: the quotient rule against autograd, for returns of either sign."""
    x = torch.tensor([[0.3, 0.7], [0.3, 0.7]], dtype=DOUBLE, requires_grad=True)
    optimal = torch.tensor([4.0, -4.0], dtype=DOUBLE) + x[:, 0]
    adapted = 1 + 3 * x[:, 0] * x[:, 1]
    slopes = [torch.autograd.grad(r.sum(), x, retain_graph=True)[0] for r in (optimal, optimal - adapted)]
    for scale in ("absolute", "ratio"):
        gap = scaled_gap(optimal, adapted, scale)
        (expected,) = torch.autograd.grad(gap.sum(), x, retain_graph=True)
        torch.testing.assert_close(
            scaled_gradient(optimal, optimal - adapted, slopes[0], slopes[1], scale), expected
        )
    negative = scaled_gap(torch.tensor([-4.0]), torch.tensor([-6.0]), "ratio")
    assert float(negative) == 0.5
    with pytest.raises(ValueError, match="did you mean 'ratio'"):
        scaled_gap(optimal, adapted, "ration")


@pytest.mark.parametrize(("objective", "expected"), [("worst", 1.0), ("cvar", 0.9), ("mean", 0.5)])
def test_screening_chooses_by_its_objective(objective, expected):
    """Scores are uniform on [0, 1]: the worst of 64 is about 63/65, the mean of the worst fifth 0.9."""
    search = ScreenedSearch(
        BOX, generator(), objective=Objective(objective, alpha=0.2), scorer=lambda psi: psi[:, 0]
    )
    chosen = []
    for _ in range(200):
        psi = search.ask()
        search.tell(psi, math.nan)  # failed: candidates stay uniform
        chosen.append(float(psi[0, 0]))
    assert np.mean(chosen) == pytest.approx(expected, abs=0.07)  # mean: standard error 0.29 / sqrt(200)
