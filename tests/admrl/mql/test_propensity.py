"""Propensity weights: the regression against closed forms and SciPy, beta and ESS by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from admrl.mql.config import AdaptConfig
from admrl.mql.propensity import Propensity, effective_sample_size, fit_propensity


def test_one_feature_against_its_closed_form():
    """n samples at +1 (meta) and n at -1: b = 0 and w = 2 n C sigma(-w), that is w (1 + e^w) = 2 n C."""
    for w in (0.1, 1.0, 3.0):
        n = 5
        c = w * (1 + math.exp(w)) / (2 * n)
        fit = fit_propensity(torch.ones(1, n, 1), -torch.ones(1, n, 1), c)
        assert float(fit.w) == pytest.approx(w, abs=1e-10) and float(fit.b) == pytest.approx(0, abs=1e-10)


def test_the_intercept_is_not_penalised():
    """Without features, f is the log odds of the numbers of samples, whatever C."""
    fit = fit_propensity(torch.zeros(1, 6, 1), torch.zeros(1, 2, 1), 1e-3)
    assert float(fit.b) == pytest.approx(math.log(3), abs=1e-6) and float(fit.w) == 0


@pytest.mark.parametrize("c", [0.05, 0.5, 10.0])
def test_the_gradient_vanishes_and_scipy_agrees(c):
    g = torch.Generator().manual_seed(0)
    meta = torch.randn(4, 40, 3, generator=g, dtype=torch.float64)
    task = torch.randn(4, 40, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 1.0, -0.5])
    task[3] = meta[3] + 50.0  # separable
    fit = fit_propensity(meta, task, c)
    assert float(fit.gradient.max()) < 1e-7
    for m in range(4):
        x = np.concatenate([meta[m].numpy(), task[m].numpy()])
        z = np.repeat([1.0, -1.0], 40)

        def objective(w, x=x, z=z):
            return w[:-1] @ w[:-1] / 2 + c * np.logaddexp(0, -z * (x @ w[:-1] + w[-1])).sum()

        best = minimize(objective, np.zeros(4), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
        ours = np.append(fit.w[m].numpy(), float(fit.b[m]))
        assert objective(ours) <= best.fun + 1e-9 * abs(best.fun)
        if m < 3:
            assert np.allclose(ours, best.x, atol=1e-4)


def test_a_task_does_not_depend_on_its_neighbours():
    g = torch.Generator().manual_seed(1)
    meta, task = (torch.randn(3, 20, 2, generator=g) for _ in range(2))
    together = fit_propensity(meta, task + 1, 0.5)
    alone = fit_propensity(meta[1:2], task[1:2] + 1, 0.5)
    torch.testing.assert_close(together.w[1:2], alone.w, rtol=0, atol=1e-9)


def test_beta_by_hand():
    """exp(-max(f, -clip)), and 0 below the least."""
    fit = Propensity(torch.ones(1, 1).double(), torch.zeros(1).double(), torch.zeros(1))
    f = torch.tensor([[[0.5], [-0.7], [-5.0], [2.4], [2.2]]])
    beta = fit.weights(f, AdaptConfig(max_log_weight=1.2, min_weight=0.1))
    expected = [math.exp(-0.5), math.exp(0.7), math.exp(1.2), 0.0, math.exp(-2.2)]
    assert beta[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_ess_by_hand():
    beta = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0], [0.0] * 4])
    # (sum)^2 / (m sum of squares): 16/16, 16/64, 16/40, none
    assert effective_sample_size(beta).tolist() == pytest.approx([1.0, 0.25, 0.4, 0.0])


def test_identical_distributions_have_weights_near_one_and_no_penalty():
    g = torch.Generator().manual_seed(2)
    meta, task = (torch.randn(2, 4000, 3, generator=g) for _ in range(2))
    fit = fit_propensity(meta, task, 0.05)
    beta = fit.weights(meta, AdaptConfig())
    assert float((beta - 1).abs().mean()) < 0.06
    assert bool((1 - effective_sample_size(beta) < 0.01).all())
    # a control that must fail: another distribution
    moved = fit_propensity(meta, task + 2, 0.05)
    assert bool((1 - effective_sample_size(moved.weights(meta, AdaptConfig())) > 0.3).all())


def test_samples_that_are_far_apart_have_a_fit_too():
    """Nothing overlaps, and the intercept's curvature underflows: still an optimum, and weights at their limits."""
    meta, task = torch.full((1, 10, 2), 1e4), torch.full((1, 10, 2), -1e4)
    fit = fit_propensity(meta, task, 10.0)
    assert bool(fit.w.isfinite().all()) and bool(fit.b.isfinite().all())
    config = AdaptConfig(max_log_weight=1.2)
    assert fit.weights(task, config)[0].tolist() == pytest.approx([math.exp(1.2)] * 10)
    assert fit.weights(meta, config)[0].tolist() == [0.0] * 10
