"""CRL (Liu et al.): PEARL's encoder, an output layer of the policy for every training task, and a network that
predicts the output layer of a new task.

    pi(phi, w_i, b_i) = <phi, w_i> + b_i                 phi: shared layers; (w_i, b_i): of task i
    f((s, a, r, s')_t, t = 1..H) -> (w^, b^),  L = mean (f - (w_i, b_i))^2              Eq. 7, the adapter network
    w_new, b_new = f((s, a, r, s')_t, t = 1..H)                                         Eq. 8, test
    z ~ q(z|c), KL as in PEARL                                                          Eq. 9
    critic and policy as in PEARL, the policy with the task's own output layer          Eq. 10, 11

Not stated in the paper, and chosen here:
1. All numbers that PEARL has, too, are PEARL's.
2. The output layers start equal, because the adapter would otherwise have to learn their random differences. They
   are a shared layer plus a part of the task's own, which learns more slowly (`own_rate`): layers that learn at
   the full rate know the training tasks by themselves, and the shared layers then learn little from z.
3. Eq. 8 maps H transitions to one layer, Eq. 7 could be read as one at a time: f reads a set, as
   g2(mean_t g1((s, a, r, s')_t)). A mean of predictions from single transitions knows no more than single transitions
   tell, for example one distance to a goal in the plane.
   It predicts how a layer differs from the mean layer in units of the layers' standard deviation: they differ by
   hundredths, and a network that starts at that scale hardly learns them.
4. Before the first transition (A_0) the layer is the mean of the training tasks'.
5. Layers belong to the policy alone (Eq. 7, 8 and both algorithms; Fig. 1 draws them for the critic, too).
6. The adapter learns from a part of each task's transitions, those of its context.
7. One Adam for all own parts, so that its momentum moves the layers of tasks outside the meta-batch, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from admrl.baselines.config import TITLES, BaselineConfig
from admrl.baselines.pearl import Pearl, PearlAdapter
from admrl.baselines.replay import MultiTaskReplay
from admrl.solving.sac import Mlp, Optimizers
from task_families.family import TaskFamily

MIN_DEVIATION = 1e-6  # of the output layers, which start equal
ADAPTER_STEP = "a gradient step of the adapter network"


class SetNetwork(nn.Module):
    """A network of the mean of what another one finds in each transition; the order does not matter."""

    def __init__(
        self, row_size: int, hidden_sizes: Sequence[int], out_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = hidden_sizes[-1]
        self.each = Mlp((row_size, *hidden_sizes), generator, output_range=1 / math.sqrt(width))
        self.whole = Mlp((width, width, out_size), generator)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, n, row_size) -> (B, out_size)"""
        return self.whole(self.each(rows).mean(-2))


class Crl(Pearl):
    """Networks and the gradient step."""

    def __init__(
        self, family: TaskFamily, config: BaselineConfig, psi: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__(family, config, psi, generator, sees_psi=False)
        shared = self._shared_head()
        self.own = nn.Parameter(torch.zeros(len(psi), *shared.shape, dtype=torch.float32))  # (K, 2 A, h + 1)
        row_size = 2 * family.obs_size + family.act_size + 1
        self.adapter = SetNetwork(row_size, config.crl.hidden_sizes, shared.numel(), generator)

    @property
    def heads(self) -> Tensor:
        """Output layers (w_i, b_i) of the training tasks: (K, 2 A, h + 1)."""
        return self._shared_head() + self.config.crl.own_rate * self.own

    def _shared_head(self) -> Tensor:
        last = self.sac.actor.net.last
        return torch.cat([last.weight, last.bias[:, None]], dim=-1)  # (2 A, h + 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains."""
        groups = super().parameter_groups()
        groups["actor"] += [self.own]
        return groups | {"adapter": list(self.adapter.parameters())}

    def update(
        self, replay: MultiTaskReplay, optimizers: Optimizers, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Alg. 1, lines 12-25."""
        metrics = super().update(replay, optimizers, generator)  # lines 13-17 and 22-24
        tasks = torch.randint(self.num_tasks, (self.config.meta_batch,), generator=generator)
        rows = self.adapter_rows(replay, tasks, generator)

        def step(tasks: Tensor, rows: Tensor) -> dict[str, Tensor]:
            loss, variance = self.adapter_loss(tasks, rows)
            optimizers.step("adapter", loss)  # line 25
            return {"adapter_loss": loss.detach() * variance, "head_variance": variance}

        return metrics | optimizers.captured(ADAPTER_STEP, self, step, tasks.to(rows.device), rows)

    def adapter_rows(self, replay: MultiTaskReplay, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """Random transitions (B, n, .) of tasks (B,), with the rewards that a test task shows."""
        num = self.config.crl.num_transitions
        return replay.sample_context(tasks, num, generator, has_next_obs=True, window=self.window)

    def adapter_loss(self, tasks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 7 for tasks (B,) and transitions of theirs (B, n, .), in units of the layers' variance (the mean layer
        gets 1), and that variance ()."""
        mean, deviation = self._head_moments()
        heads = self.heads.detach()[tasks]
        target = ((heads - mean) / deviation).flatten(1)  # Alg. 1, lines 18, 19
        with self.sac.mixed_precision():
            predicted = self.adapter(rows).float()
        return mse_loss(predicted, target), deviation.square()  # line 20

    def train_heads(self, tasks: Tensor) -> Tensor:
        """Output layers of training tasks."""
        return self.heads[tasks]

    @torch.no_grad()
    def predict_heads(self, context: Tensor | None, num_tasks: int) -> Tensor:
        """Eq. 8: (M, n, .) transitions -> (M, 2 A, h + 1); the mean training layer where there are none."""
        mean, deviation = self._head_moments()
        mean = mean.expand(num_tasks, -1, -1)
        if context is None or self.config.crl.test_head == "mean":
            return mean
        return mean + deviation * self.adapter(context).view_as(mean)

    def _head_moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the training tasks' layers (2 A, h + 1), and how far their numbers deviate from it ()."""
        heads = self.heads.detach()
        return heads.mean(0), heads.var(0, unbiased=False).mean().sqrt().clamp(min=MIN_DEVIATION)


class CrlAdapter(PearlAdapter):
    """Alg. 2: PEARL's protocol, and the output layer is predicted from the same transitions."""

    _agent: Crl

    def __init__(
        self, agent: Crl, *, name: str = TITLES["crl"], provenance: dict[str, Any] | None = None
    ) -> None:
        super().__init__(agent, name=name, provenance=provenance)

    def _heads(self) -> Tensor:
        return self._agent.predict_heads(self.context(), len(self._known))  # Alg. 2, lines 6, 7
