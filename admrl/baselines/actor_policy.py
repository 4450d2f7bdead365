"""ActorPolicy: a trained actor as the policy of a rollout, with z drawn once for each lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.evaluation.adapter import Act
from admrl.solving.sac import Actor, tanh_gaussian
from task_families.simulator import ActionBounds


@dataclass(frozen=True, eq=False)
class ActorPolicy:
    """M policies pi(a | s, z, known), z ~ N(mean, std^2) once for each lane."""

    network: Actor
    mean: Tensor  # (M, L) or (M, N, L)
    std: Tensor  # the same shape; 0: z is the mean
    known: Tensor  # (M, c): psi, a one-hot code, or nothing (M, 0)
    bounds: ActionBounds  # the network's -1 and 1
    heads: Tensor | None = None  # (M, 2 A, h + 1), see `Actor.forward`
    deterministic: bool = True
    """Act by tanh(mu), as PEARL is tested; otherwise sample."""

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        num_lanes, size = noise.shape[2], self.mean.shape[-1]
        draws = torch.stack(
            [torch.randn(num_lanes, size, generator=g, dtype=torch.float32) for g in generators]
        )  # (M, N, L)
        mean, std = (x if x.dim() == 3 else x[:, None] for x in (self.mean, self.std))
        known = self.known[:, None].expand(-1, num_lanes, -1)
        condition = torch.cat([mean + std * draws, known], dim=-1)  # (M, N, c)

        @torch.no_grad()
        def act(t: int, obs: Tensor) -> Tensor:
            mu, log_std = self.network(obs, condition, self.heads)
            unit = torch.tanh(mu) if self.deterministic else tanh_gaussian(mu, log_std, noise[t])[0]
            return self.bounds.from_unit(unit)

        return act
