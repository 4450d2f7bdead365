"""ValueFunction: V(s) = w' phi(s) with fixed random tanh features, fitted by ridge regression in closed form.

    phi(s) = (1, x, tanh(x G + h)),  x = clip((s - mean) / std, -5, 5)
    w      = argmin sum_i (w' phi(s_i) - y_i)^2 + lambda |w|^2

Differs from the paper:
1. The released code fits a 64-64 tanh network with 780 Adam steps of batch 64 after every policy update, the
   largest part of that update. This fit is one product and one small solve, has no step size and no state, and
   lets M tasks fit at once. `benchmarks/value_fit.py` compares the two by the returns that they lead to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policy_opt.config import ValueConfig

INPUT_LIMIT = 5.0  # standard deviations; keeps the linear features bounded on diverging model states


@dataclass(frozen=True, eq=False)
class ValueFunction:
    """Shapes, normaliser and features; the weights (M, F) travel as an argument."""

    directions: Tensor  # (S, num_features)
    offsets: Tensor  # (num_features,)
    obs_mean: Tensor  # (S,) or (M, S)
    obs_std: Tensor
    ridge: float

    @classmethod
    def make(cls, obs_mean: Tensor, obs_std: Tensor, config: ValueConfig) -> ValueFunction:
        """Features for observations with this mean and standard deviation, (S,) or (M, S).

        The features are fixed (seed 0) and the same for every task and every run.
        """
        generator = torch.Generator().manual_seed(0)
        size = obs_mean.shape[-1]
        directions = (
            torch.randn(size, config.num_features, generator=generator, dtype=torch.float32) / size**0.5
        )
        offsets = torch.rand(config.num_features, generator=generator, dtype=torch.float32) * 4 - 2
        return cls(directions.to(obs_mean), offsets.to(obs_mean), obs_mean, obs_std, config.ridge)

    def to(self, device: torch.device | str) -> ValueFunction:
        """The same features on a device."""
        names = ("directions", "offsets", "obs_mean", "obs_std")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def init(self, num_tasks: int) -> Tensor:
        """Weights (M, F) of V = 0."""
        return self.directions.new_zeros(num_tasks, 1 + self.directions.shape[0] + self.directions.shape[1])

    def features(self, obs: Tensor) -> Tensor:
        """phi: (M, ..., S) -> (M, ..., F)."""
        shape = (-1, *([1] * (obs.dim() - 2)), obs.shape[-1])
        x = (obs - self.obs_mean.view(shape)) / self.obs_std.view(shape)
        x = x.clamp(-INPUT_LIMIT, INPUT_LIMIT)
        return torch.cat([torch.ones_like(x[..., :1]), x, torch.tanh(x @ self.directions + self.offsets)], -1)

    def __call__(self, weights: Tensor, obs: Tensor) -> Tensor:
        """V: weights (M, F), obs (M, ..., S) -> (M, ...)."""
        return self.predict(weights, self.features(obs))

    def predict(self, weights: Tensor, features: Tensor) -> Tensor:
        """V from features (M, ..., F) -> (M, ...)."""
        return torch.bmm(features.flatten(1, -2), weights[..., None]).view(features.shape[:-1])

    def fit(self, features: Tensor, target: Tensor) -> Tensor:
        """Ridge regression: features (M, ..., F), target (M, ...) -> weights (M, F).

        The penalty is ridge * (mean squared feature) * (number of rows); a thousandth of that for the constant.
        A task whose system is singular or not finite gets nan.
        """
        phi, y = features.flatten(1, -2), target.flatten(1)
        gram = phi.transpose(1, 2) @ phi  # (M, F, F)
        penalty = self.ridge * gram.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True)  # (M, 1)
        penalty = penalty.expand(-1, gram.shape[-1]).clone()
        penalty[:, 0] *= 1e-3
        rhs = (phi.transpose(1, 2) @ y[..., None]).double()
        solution, info = torch.linalg.solve_ex((gram + torch.diag_embed(penalty)).double(), rhs)
        return torch.where(info[:, None] == 0, solution[..., 0], torch.nan).to(phi)
