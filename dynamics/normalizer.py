"""Running mean and standard deviation per coordinate, for K models at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_STD = 1e-6  # a coordinate that never moved; released AdMRL code: 1e-8 for states, 1e-6 for differences


class Normalizer(nn.Module):
    """Mean and population standard deviation (K, S) of everything seen; mean 0 and std 1 before the first."""

    count: Tensor  # (K,)
    mean: Tensor  # (K, S)
    std: Tensor  # (K, S)

    def __init__(self, num_models: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_models, dtype=dtype))
        self.register_buffer("mean", torch.zeros(num_models, size, dtype=dtype))
        self.register_buffer("std", torch.ones(num_models, size, dtype=dtype))

    @torch.no_grad()
    def update_(self, x: Tensor) -> None:
        """Merge samples (K, R, S), or (R, S) for every model alike (Chan et al. 1979)."""
        x = x.double().expand(len(self.count), *x.shape[-2:])
        num = x.shape[1]
        if num == 0:
            return
        old = self.count.double()[:, None]
        total = old + num
        delta = x.mean(1) - self.mean.double()
        mean = self.mean.double() + delta * num / total
        old_m2 = torch.where(old > 0, self.std.double().square() * old, 0.0)
        m2 = old_m2 + x.var(1, correction=0) * num + delta.square() * old * num / total
        self.mean.copy_(mean)
        self.std.copy_((m2 / total).sqrt().clamp(min=MIN_STD))
        self.count.copy_(total[:, 0])

    def select(self, k: int) -> Normalizer:
        """Model k's statistics as a normaliser of one model."""
        one = Normalizer(1, self.mean.shape[1], self.mean.dtype).to(self.mean.device)
        for name, buffer in self.named_buffers():
            getattr(one, name).copy_(buffer[k : k + 1])
        return one

    def assign(self, k: int, one: Normalizer) -> None:
        """Inverse of `select`."""
        for name, buffer in one.named_buffers():
            getattr(self, name)[k] = buffer[0]
