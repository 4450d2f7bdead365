"""Propensity weights: how much more likely a transition of the meta-training is under a new task (MQL section 3.2).

    logistic regression     min_(w, b)  |w|^2 / 2 + C sum_i log(1 + exp(-z_i f(x_i))),   f(x) = w'x + b
                            z = +1: transitions of the training tasks, -1: as many of the new task
    beta(x) = p_new(x) / p_meta(x) = P(z = -1 | x) / P(z = +1 | x) = exp(-f(x))
    ESS = (1/m) (sum beta)^2 / sum beta^2, in (0, 1]           1 where both are alike
    lambda = 1 - ESS

As released, beta is at most exp(max_log_weight), and 0 below min_weight. The regression is that of scikit-learn, with
which the code was released: the intercept b is not penalised. Here it is solved by Newton's method in float64, for
all tasks at once.

Shapes: B tasks, n samples of each, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from admrl.mql.config import AdaptConfig

MAX_STEPS, MAX_HALVINGS, TOLERANCE = 100, 40, 1e-9
ROUNDING = 1e-14  # of the objective
DAMPING = (
    1e-10  # of steps, where all samples are so far on their side that the intercept has no curvature left
)


@dataclass(frozen=True, eq=False)
class Propensity:
    """f(x) = w'x + b of B tasks."""

    w: Tensor  # (B, d) float64
    b: Tensor  # (B,)
    gradient: Tensor  # (B,) largest partial derivative that is left; 0 at the optimum

    def log_odds(self, x: Tensor) -> Tensor:
        """f of x (B, n, d): (B, n)."""
        return torch.einsum("bnd,bd->bn", x.double(), self.w) + self.b[:, None]

    def weights(self, x: Tensor, config: AdaptConfig) -> Tensor:
        """beta of x (B, n, d): (B, n) float64; see the head of this page."""
        beta = torch.exp(-self.log_odds(x).clamp_min(-config.max_log_weight))
        return torch.where(beta < config.min_weight, 0.0, beta)


def fit_propensity(of_meta: Tensor, of_task: Tensor, inverse_penalty: float) -> Propensity:
    """The regression of features of_meta (B, n, d) and of_task (B, n', d); see the head of this page."""
    x = torch.cat([of_meta, of_task], dim=1).double()
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)  # the intercept's
    z = x.new_ones(x.shape[:2])
    z[:, of_meta.shape[1] :] = -1
    ridge = torch.ones_like(x[0, 0])
    ridge[-1] = 0.0
    w = torch.zeros_like(x[:, 0])

    def objective(w: Tensor) -> Tensor:
        margin = z * torch.einsum("bnd,bd->bn", x, w)
        return (ridge * w.square()).sum(1) / 2 + inverse_penalty * softplus(-margin).sum(1)

    def gradient(w: Tensor) -> tuple[Tensor, Tensor]:
        # d/df log(1 + exp(-z f)) = -z sigma(-z f)
        wrong = torch.sigmoid(-z * torch.einsum("bnd,bd->bn", x, w))
        return ridge * w - inverse_penalty * torch.einsum("bn,bnd->bd", z * wrong, x), wrong

    for _ in range(MAX_STEPS):
        g, wrong = gradient(w)
        if bool((g.abs() <= TOLERANCE).all()):
            break
        curvature = inverse_penalty * (x.transpose(1, 2) * (wrong * (1 - wrong))[:, None]) @ x
        step = torch.linalg.solve(curvature + torch.diag(ridge + DAMPING), g)
        w = _descended(objective, w, step, (g * step).sum(1))
    return Propensity(w[:, :-1], w[:, -1], gradient(w)[0].abs().amax(1))


def effective_sample_size(beta: Tensor) -> Tensor:
    """ESS (B,) of weights (B, m), from 0, where all of them are 0, to 1, where all are alike."""
    squares = beta.square().sum(1)
    ess = beta.sum(1).square() / (beta.shape[1] * squares)
    return torch.where(squares > 0, ess, 0.0)


def _descended(objective: Callable[[Tensor], Tensor], w: Tensor, step: Tensor, slope: Tensor) -> Tensor:
    """w - t step (B, d), t = 1, 1/2, 1/4, ... of each task until its objective falls by a quarter of the promised."""
    before, t = objective(w), torch.ones_like(slope)
    for _ in range(MAX_HALVINGS):
        new = w - t[:, None] * step
        # near the optimum rounding decides, and either is good
        refused = objective(new) > before - 0.25 * t * slope + ROUNDING * before.abs()
        if not bool(refused.any()):
            return new
        t = torch.where(refused, t / 2, t)
    return new
