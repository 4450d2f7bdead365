"""A Gaussian process over tasks that takes values and gradients, in float64.

    f ~ GP(0, s^2 phi(q)),   q = sum_i (z_i - z'_i)^2 / l_i^2,   D_i = (z_i - z'_i) / l_i^2

    cov(f, f')            =  s^2 phi
    cov(f, d f'/d z'_j)   = -2 s^2 phi' D_j
    cov(d_i f, d'_j f')   = -4 s^2 phi'' D_i D_j - 2 s^2 phi' delta_ij / l_i^2

phi(q) = exp(-q / 2), or Matern 5/2: (1 + t + t^2 / 3) exp(-t) with t = sqrt(5 q). Both are twice differentiable
in q; the derivatives are closed forms. Shapes: H observations, d coordinates, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KERNELS = ("rbf", "matern")
MAX_FIT_ROWS = (
    250  # of values and derivatives in the fit of the hyperparameters; a Cholesky factor of it takes 1 ms
)
JITTERS = (
    1e-8,
    1e-6,
    1e-4,
)  # of the prior variance, on values and derivatives; the first that makes a factor exist


def kernel_terms(name: str, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi, phi' and phi'' at squared scaled distances q."""
    if name == "rbf":
        phi = torch.exp(-q / 2)
        return phi, -phi / 2, phi / 4
    t = (5 * q + 1e-30).sqrt()  # 1e-30: the derivative of the root at 0 is finite, and unused
    decay = torch.exp(-t)
    return (1 + t + t * t / 3) * decay, -5 / 6 * (1 + t) * decay, 25 / 12 * decay


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """Logarithms, so that any number is allowed; all in units of standardised gaps."""

    log_length: Tensor  # (d,)
    log_scale: Tensor  # () of s
    log_noise: Tensor  # () standard deviation of a value's noise
    log_slope_noise: Tensor  # () the same for derivatives

    def pack(self) -> Tensor:
        """(d + 3,)"""
        rest = torch.stack([self.log_scale, self.log_noise, self.log_slope_noise])
        return torch.cat([self.log_length, rest])

    @classmethod
    def unpack(cls, x: Tensor) -> Hyperparameters:
        """Inverse of `pack`."""
        return cls(x[:-3], x[-3], x[-2], x[-1])

    @classmethod
    def prior_mean(cls, size: int) -> Tensor:
        """(d + 3,): lengths grow with sqrt(d), as distances in the cube do."""
        length = math.log(0.5 * math.sqrt(size))
        return torch.tensor([length] * size + [0.0, math.log(1e-2), math.log(3e-2)], dtype=torch.float64)


PRIOR_STD = {"length": 0.7, "scale": 0.7, "noise": 1.5}  # of the logarithms


@dataclass(frozen=True, eq=False)
class Data:
    """Standardised observations."""

    z: Tensor  # (H, d)
    y: Tensor  # (H,)
    slope: Tensor  # (H, d) nan: not known
    variance: Tensor  # (H,) known noise variance of y

    @property
    def rows(self) -> Tensor:
        """(H (1 + d),) bool: which of values and derivatives are known; values first, then coordinate-major."""
        return torch.cat([torch.ones_like(self.y, dtype=torch.bool), ~self.slope.T.flatten().isnan()])

    def target(self) -> Tensor:
        """Values and known derivatives in the order of `rows`."""
        return torch.cat([self.y, self.slope.T.flatten()])[self.rows]


def covariance(kernel: str, hyper: Hyperparameters, a: Tensor, b: Tensor) -> Tensor:
    """Values and derivatives at a (A, d) with those at b (B, d): (A (1 + d), B (1 + d))."""
    size = a.shape[1]
    inverse = torch.exp(-2 * hyper.log_length)  # 1 / l^2
    difference = a[:, None] - b  # (A, B, d)
    phi, d1, d2 = kernel_terms(kernel, (difference.square() * inverse).sum(-1))
    D = (difference * inverse).permute(2, 0, 1)  # (d, A, B)
    top = torch.cat([phi[None], -2 * d1 * D])  # (1 + d, A, B): f with (f, d')
    cross = -4 * d2 * D[:, None] * D[None] - 2 * d1 * torch.diag(inverse)[:, :, None, None]
    lower = torch.cat([(2 * d1 * D)[:, None], cross], dim=1)  # (d, 1 + d, A, B)
    blocks = torch.cat([top[None], lower])  # (1 + d, 1 + d, A, B)
    whole = blocks.permute(0, 2, 1, 3).reshape((1 + size) * len(a), (1 + size) * len(b))
    return torch.exp(2 * hyper.log_scale) * whole


def value_covariance(kernel: str, hyper: Hyperparameters, a: Tensor, b: Tensor) -> Tensor:
    """Values at a (A, d) with values and derivatives at b (B, d): (A, B (1 + d)); the first rows of `covariance`."""
    inverse = torch.exp(-2 * hyper.log_length)
    difference = a[:, None] - b
    phi, d1, _ = kernel_terms(kernel, (difference.square() * inverse).sum(-1))
    D = (difference * inverse).permute(0, 2, 1)  # (A, d, B)
    whole = torch.cat([phi[:, None], -2 * d1[:, None] * D], dim=1).flatten(1)
    return torch.exp(2 * hyper.log_scale) * whole


def _noise(hyper: Hyperparameters, data: Data) -> Tensor:
    values = torch.exp(2 * hyper.log_noise) + data.variance
    # a derivative's noise is relative to the prior's slope, s / l
    slope = torch.exp(2 * (hyper.log_slope_noise + hyper.log_scale - hyper.log_length))
    return torch.cat([values, slope[:, None].expand(-1, len(data.y)).flatten()])[data.rows]


def _factor(kernel: str, hyper: Hyperparameters, data: Data) -> Tensor:
    """Cholesky factor of the covariance of what is known."""
    rows = data.rows
    K = covariance(kernel, hyper, data.z, data.z)[rows][:, rows]
    noise, diagonal = _noise(hyper, data), K.diagonal().detach()
    for jitter in JITTERS:
        L, failed = torch.linalg.cholesky_ex(K + torch.diag(noise + jitter * diagonal))
        if not failed:
            return L
    raise ValueError(
        f"Gaussian process: the covariance of {len(K)} observations is singular even with a jitter of "
        f"{JITTERS[-1]:g}; are gaps or gradients enormous?"
    )


def log_evidence(kernel: str, x: Tensor, data: Data) -> Tensor:
    """log p(y, slopes | hyperparameters) + log prior, up to a constant."""
    hyper = Hyperparameters.unpack(x)
    L = _factor(kernel, hyper, data)
    whitened = torch.linalg.solve_triangular(L, data.target()[:, None], upper=False)
    size = len(x) - 3
    std = torch.tensor(
        [PRIOR_STD["length"]] * size + [PRIOR_STD["scale"]] + [PRIOR_STD["noise"]] * 2, dtype=torch.float64
    )
    prior = ((x - Hyperparameters.prior_mean(size)) / std).square().sum() / 2
    return -whitened.square().sum() / 2 - L.diagonal().log().sum() - prior


def fit_hyperparameters(
    kernel: str, data: Data, start: Tensor, *, max_steps: int = 25
) -> tuple[Tensor, float]:
    """Hyperparameters (d + 3,) that maximise `log_evidence` near start, and its value; L-BFGS."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=max_steps, line_search_fn="strong_wolfe", tolerance_change=1e-4
    )
    lowest, highest = Hyperparameters.prior_mean(len(x) - 3) - 6, Hyperparameters.prior_mean(len(x) - 3) + 4

    def loss() -> Tensor:
        optimizer.zero_grad()
        # a quadratic wall keeps the line search where the Cholesky factor exists
        inside = x.clamp(lowest, highest)
        value = -log_evidence(kernel, inside, data) + (x - inside).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    fitted = x.detach().clamp(lowest, highest)
    with torch.no_grad():
        return fitted, float(log_evidence(kernel, fitted, data))


class Posterior:
    """What the observations say about other tasks; differentiable in their coordinates."""

    def __init__(self, kernel: str, x: Tensor, data: Data) -> None:
        self._kernel, self._hyper, self._data = kernel, Hyperparameters.unpack(x), data
        with torch.no_grad():
            self._L = _factor(kernel, self._hyper, data)
            self._weights = torch.cholesky_solve(data.target()[:, None], self._L)[:, 0]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of f at z (C, d): (C,), (C,)."""
        cross = value_covariance(self._kernel, self._hyper, z, self._data.z)[:, self._data.rows]
        whitened = torch.linalg.solve_triangular(self._L, cross.T, upper=False)
        variance = torch.exp(2 * self._hyper.log_scale) - whitened.square().sum(0)
        return cross @ self._weights, variance.clamp_min(1e-14).sqrt()
