"""Bayesian searches: expected improvement as an integral, and what they believe of noisy gaps."""

import math

import pytest
import torch
from scipy import integrate, stats
from search_tools import BOX, DOUBLE, generator, two_hills

from admrl.search import make_search
from admrl.search.bayesian import log_expected_improvement


def test_log_expected_improvement_is_the_integral_and_stays_finite():
    for mean, std in ((0.3, 1.0), (-0.5, 0.2), (-3.0, 0.5), (-8.0, 1.0)):
        value, _ = integrate.quad(lambda f, m=mean, s=std: f * stats.norm.pdf(f, m, s), 0, 20, epsabs=0)
        ours = log_expected_improvement(torch.tensor(mean).double(), torch.tensor(std).double())
        assert float(ours) == pytest.approx(math.log(value), rel=1e-6)
    z = -torch.logspace(0, 8, 200, dtype=DOUBLE)
    far = log_expected_improvement(z, torch.ones_like(z))
    assert bool(far.isfinite().all()) and bool((far.diff() < 0).all())
    # far out: log pdf(z) - 2 log |z|
    assert float(far[-1]) == pytest.approx(-(1e8**2) / 2, rel=1e-9)


@pytest.mark.parametrize("name", ["gp", "default", "botorch"])
def test_estimates_discount_luck_and_leave_exact_gaps_alone(name):
    """A flat gap with one lucky observation: the normal posterior mean lies near the others, exact gaps stay."""
    if name == "botorch":
        pytest.importorskip("botorch")
    psi = BOX.grid((4, 4))
    gap = torch.cat([torch.tensor([9.0]).double(), torch.linspace(-1, 1, 15).double()])
    search = make_search(name, BOX, generator=generator())
    search.add(psi, gap)
    assert not search.is_noisy and torch.equal(search.estimates(), gap)
    noisy = make_search(name, BOX, generator=generator())
    noisy.add(psi, gap, None, {"standard_error": torch.full((16,), 3.0)})
    assert noisy.is_noisy and noisy.best().gap == 9.0
    before, believed = noisy.state_dict(), noisy.estimates()
    assert float(believed[0]) < 4.5 and float(believed.std()) < 0.5 * float(gap.std())
    torch.testing.assert_close(noisy.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_botorch_does_not_chase_a_lucky_gap(with_gradient):
    """A smooth noisy hill, and one gap in its far corner that luck made the largest: the next task is on the hill."""
    pytest.importorskip("botorch")
    psi = BOX.grid((5, 5))
    leaf = psi.double().requires_grad_()
    hill = -(BOX.to_unit(leaf) - 0.4).square().sum(-1)
    (slope,) = torch.autograd.grad(hill.sum(), leaf)
    gap = hill.detach()
    gap[0] = gap.max() + 0.5
    search = make_search("botorch", BOX, generator=generator())
    search.add(psi, gap, slope if with_gradient else None, {"standard_error": torch.full((25,), 2.0)})
    assert float((BOX.to_unit(search.ask()) - 0.4).norm()) < 0.8
    assert int(search.estimates().argmax()) != 0


@pytest.mark.parametrize("name", ["gp", "default"])
def test_tasks_asked_for_together_know_of_each_other(name):
    def told():
        search = make_search(name, BOX, generator=generator())
        psi = search.ask(8)
        search.tell(psi, two_hills(psi))
        return search

    together, in_turn = told(), told()
    for n in range(1, 7):
        psi = in_turn.ask(n)
    assert torch.equal(together.ask(6), psi)
    assert float(torch.pdist(BOX.to_unit(psi)).min()) > 0.02
