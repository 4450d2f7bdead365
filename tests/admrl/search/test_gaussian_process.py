"""The Gaussian process with gradients against automatic derivatives and dense densities."""

import math

import pytest
import torch
from search_tools import DOUBLE, generator

from admrl.search.gaussian_process import (
    KERNELS,
    Data,
    Hyperparameters,
    Posterior,
    covariance,
    fit_hyperparameters,
    kernel_terms,
    log_evidence,
    value_covariance,
)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariances_of_derivatives_are_derivatives_of_the_covariance(kernel):
    hyper = Hyperparameters.unpack(torch.tensor([-0.3, 0.2, 0.1, 0.3, -3.0, -2.0], dtype=DOUBLE))
    a = torch.randn(3, 3, generator=generator(), dtype=DOUBLE)
    b = torch.randn(4, 3, generator=generator(1), dtype=DOUBLE)

    def k(x, y):
        q = ((x - y).square() * torch.exp(-2 * hyper.log_length)).sum()
        return torch.exp(2 * hyper.log_scale) * kernel_terms(kernel, q)[0]

    whole = covariance(kernel, hyper, a, b).view(4, 3, 4, 4)
    for i in range(3):
        for j in range(4):
            x, y = a[i], b[j]
            torch.testing.assert_close(whole[0, i, 0, j], k(x, y))
            torch.testing.assert_close(whole[1:, i, 0, j], torch.func.grad(k)(x, y))
            torch.testing.assert_close(whole[0, i, 1:, j], torch.func.grad(k, argnums=1)(x, y))
            mixed = torch.func.jacfwd(torch.func.grad(k), argnums=1)(x, y)
            torch.testing.assert_close(whole[1:, i, 1:, j], mixed)
    torch.testing.assert_close(value_covariance(kernel, hyper, a, b), covariance(kernel, hyper, a, b)[:3])


def smooth_data(num=12, *, slopes=True):
    z = 2 * torch.rand(num, 2, generator=generator(3), dtype=DOUBLE) - 1
    y = torch.sin(2 * z[:, 0]) * torch.cos(z[:, 1])
    slope = torch.stack(
        [
            2 * torch.cos(2 * z[:, 0]) * torch.cos(z[:, 1]),
            -torch.sin(2 * z[:, 0]) * torch.sin(z[:, 1]),
        ],
        dim=1,
    )
    if not slopes:
        slope = torch.full_like(slope, torch.nan)
    slope[2] = torch.nan
    return Data(z, y, slope, torch.zeros(num, dtype=DOUBLE))


def test_evidence_is_the_dense_normal_density():
    data = smooth_data(5)
    x = Hyperparameters.prior_mean(2) + torch.tensor([0.1, -0.2, 0.3, 0.2, -0.1], dtype=DOUBLE)
    hyper = Hyperparameters.unpack(x)
    rows = data.rows
    K = covariance("rbf", hyper, data.z, data.z)[rows][:, rows]
    slope_noise = torch.exp(2 * (hyper.log_slope_noise + hyper.log_scale - hyper.log_length))
    noise = torch.cat([torch.exp(2 * hyper.log_noise).repeat(5), slope_noise.repeat_interleave(5)])[rows]
    density = torch.distributions.MultivariateNormal(torch.zeros(len(K)).double(), K + torch.diag(noise))
    prior = (
        torch.tensor([0.1, -0.2, 0.3, 0.2, -0.1]) / torch.tensor([0.7, 0.7, 0.7, 1.5, 1.5])
    ).square().sum() / 2
    expected = density.log_prob(data.target()) + len(K) * math.log(2 * math.pi) / 2 - prior
    # the jitter of 1e-8 is the only difference
    torch.testing.assert_close(log_evidence("rbf", x, data), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_make_the_posterior_better_and_it_interpolates(kernel):
    test = 1.6 * torch.rand(50, 2, generator=generator(5), dtype=DOUBLE) - 0.8
    truth = torch.sin(2 * test[:, 0]) * torch.cos(test[:, 1])
    errors = {}
    for slopes in (False, True):
        data = smooth_data(slopes=slopes)
        x, evidence = fit_hyperparameters(kernel, data, Hyperparameters.prior_mean(2))
        assert evidence >= float(log_evidence(kernel, Hyperparameters.prior_mean(2), data))
        posterior = Posterior(kernel, x, data)
        mean, std = posterior(data.z)
        assert float((mean - data.y).abs().max()) < 0.05 and float(std.max()) < 0.1
        errors[slopes] = float((posterior(test)[0] - truth).square().mean().sqrt())
    assert errors[True] < 0.7 * errors[False]
    assert errors[True] < 0.05
