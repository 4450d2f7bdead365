"""PEARL's inference network: q(z|c) of a set of transitions as a product of Gaussians, one factor per transition.

    Psi(z|c_i) = N(mu_i, sigma_i^2)                   of a network of one transition
    q(z|c) ~ prod_i Psi(z|c_i) = N(mu, sigma^2)       sigma^2 = 1 / sum_i sigma_i^-2
                                                      mu = sigma^2 sum_i mu_i sigma_i^-2

It does not depend on the order of the transitions, and there is no factor for the prior: q of an empty context is
defined as N(0, I) apart. Shapes: B tasks, n transitions, L latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from admrl.baselines.config import ContextConfig
from admrl.solving.sac import Mlp

MIN_VARIANCE = 1e-7  # of a factor, as released


@dataclass(frozen=True, eq=False)
class Posterior:
    """Independent Gaussians over z, one for each task."""

    mean: Tensor  # (B, L)
    variance: Tensor  # (B, L)

    @classmethod
    def prior(cls, num_tasks: int, latent_size: int) -> Posterior:
        """N(0, I)"""
        return cls(
            torch.zeros(num_tasks, latent_size, dtype=torch.float32),
            torch.ones(num_tasks, latent_size, dtype=torch.float32),
        )

    def draw(self, noise: Tensor) -> Tensor:
        """z = mu + sigma noise, differentiable."""
        return self.mean + self.variance.sqrt() * noise

    def kl_to_prior(self) -> Tensor:
        """sum over tasks and dimensions of KL(N(mu, sigma^2) || N(0, 1)) = (sigma^2 + mu^2 - 1 - log sigma^2) / 2."""
        return 0.5 * (self.variance + self.mean.square() - 1 - self.variance.log()).sum()


def product_of_gaussians(mean: Tensor, variance: Tensor) -> Posterior:
    """(B, n, L) factors -> their normalised product; see the head of this page."""
    precision = 1 / variance
    total = precision.sum(1)
    return Posterior((precision * mean).sum(1) / total, 1 / total)


class Encoder(nn.Module):
    """The network of one transition."""

    def __init__(self, row_size: int, config: ContextConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.net = Mlp((row_size, *config.hidden_sizes, 2 * config.latent_size), generator)

    def posterior(self, context: Tensor) -> Posterior:
        """context (B, n, .) of `admrl.baselines.replay.context_rows`, n >= 1."""
        mean, raw = self.net(context).float().chunk(2, dim=-1)
        return product_of_gaussians(mean, softplus(raw).clamp(min=MIN_VARIANCE))
