"""The samples of one outer update, and what every outer update asks of them.

    theta_k(meta)   the inner loop on the batches of phases 0 .. k-1            `admrl.inner_loop.adaptation`
    L'              mean [pi_theta_k / pi_old'](a|s) A,   KL' = mean KL(pi_old' || pi_theta_k)     of phase k

meta holds theta (p), and alpha (p) behind it where step sizes are learned. Tasks are handled in blocks that fit into
the cache (`policy_opt.trpo.task_blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.inner_loop.adaptation import Batch, Loss, adapt, kl_from_old, log_prob, policy_loss
from admrl.inner_loop.config import InnerLoss, Order
from policy_opt.policy import Policy
from policy_opt.trpo import task_blocks


@dataclass(frozen=True, eq=False)
class MetaProblem:
    """M tasks, k + 1 phases; see the head of this page."""

    policy: Policy  # in its own units
    batches: Sequence[Batch]  # k + 1
    inner_loss: InnerLoss
    order: Order
    step_size: Tensor | None  # alpha (p,); None: it is learned, behind theta in meta

    @property
    def num_tasks(self) -> int:
        """M"""
        return len(self.batches[0].obs)

    def parts(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        """theta and alpha, (p,) each."""
        p = self.policy.num_params
        return meta[:p], meta[p:] if self.step_size is None else self.step_size

    def whole(self, theta: Tensor, step_size: Tensor) -> Tensor:
        """The inverse of `parts`, for gradients: without alpha's where it is fixed."""
        return theta if self.step_size is not None else torch.cat([theta, step_size])

    def blocks(self) -> list[MetaProblem]:
        """The problem of some tasks at a time."""
        obs = self.batches[0].obs
        return [
            MetaProblem(
                self.policy,
                [batch.tasks(rows) for batch in self.batches],
                self.inner_loss,
                self.order,
                self.step_size,
            )
            for rows in task_blocks(obs[..., 0], obs.shape[1])
        ]

    def start(self, meta: Tensor) -> tuple[Tensor, Tensor, list[Loss]]:
        """theta_0 (M, p), alpha (p,) and the losses of the inner steps."""
        theta, step_size = self.parts(meta)
        losses = [policy_loss(self.policy, batch, self.inner_loss) for batch in self.batches[:-1]]
        return theta.expand(self.num_tasks, -1), step_size, losses

    def path(self, meta: Tensor) -> list[Tensor]:
        """theta_0 ... theta_k (M, p), differentiable in meta."""
        return adapt(*self.start(meta), order=self.order)

    def ratio(self, adapted: Tensor) -> Tensor:
        """pi_theta_k / pi_old' of the last phase: (M, p) -> (M, R)."""
        last = self.batches[-1]
        return torch.exp(log_prob(self.policy, adapted, last) - last.log_prob)

    def surrogate(self, adapted: Tensor) -> Tensor:
        """L' of every task: (M, p) -> (M,)."""
        last = self.batches[-1]
        return (last.weight * last.advantage * self.ratio(adapted)).sum(1)

    def kl(self, adapted: Tensor) -> Tensor:
        """KL' of every task, nats: (M, p) -> (M,)."""
        return kl_from_old(self.policy, adapted, self.batches[-1])
