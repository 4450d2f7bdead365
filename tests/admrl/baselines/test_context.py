"""PEARL's posterior over the latent task against numerical integration and torch's own divergence."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from admrl.baselines.config import preset_config
from admrl.baselines.context import Encoder, Posterior, product_of_gaussians


def test_product_of_gaussians_is_the_analytic_posterior():
    """The normalised product of densities on a grid, integrated numerically."""
    mean = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    variance = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    q = product_of_gaussians(mean[None, :, None], variance[None, :, None])
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = Normal(mean[:, None], variance.sqrt()[:, None]).log_prob(z).sum(0).exp()
    density /= torch.trapezoid(density, z)
    expected_mean = torch.trapezoid(z * density, z)
    expected_variance = torch.trapezoid((z - expected_mean).square() * density, z)
    assert float(q.mean) == pytest.approx(float(expected_mean), abs=1e-9)
    assert float(q.variance) == pytest.approx(float(expected_variance), abs=1e-9)


def test_posterior_ignores_the_order_and_sharpens_with_every_transition(generator):
    encoder = Encoder(7, preset_config("smoke", "point_robot", "pearl").context, generator)
    context = torch.randn(2, 9, 7, generator=generator)
    q, shuffled = (
        encoder.posterior(context),
        encoder.posterior(context[:, torch.randperm(9, generator=generator)]),
    )
    torch.testing.assert_close(q.mean, shuffled.mean)
    torch.testing.assert_close(q.variance, shuffled.variance)
    assert bool((encoder.posterior(context[:, :5]).variance > q.variance).all())


def test_kl_is_the_sum_over_tasks_and_dimensions(generator):
    mean = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    variance = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(Posterior(mean, variance).kl_to_prior(), expected)
    assert float(Posterior.prior(4, 3).kl_to_prior()) == 0
