"""MAESN (Gupta et al. 2018): a latent z, held for an episode, explores; the inner step moves its distribution.

    a ~ pi_theta(. | s, z),  z ~ N(mu_i, sigma_i^2) once an episode,  l_i = log sigma_i      i a training task
    mu' = mu_i - alpha_mu o d_mu J,  l' = l_i - alpha_l o d_l J,  theta' = theta - alpha_theta o d_theta J
    J   = - mean_episodes log N(z; mu, sigma) A_0  -  mean_steps log pi_theta(a | s, z) A
    maximise    mean_i [ L'(theta', mu'_i, l'_i) - w KL(N(mu_i, sigma_i) || N(0, I)) ]
    subject to  mean_i KL' <= max_kl

A_0 is the advantage of an episode's first step, z a sample for its score: d_mu log N = (z - mu) / sigma^2 and
d_l log N = (z - mu)^2 / sigma^2 - 1. After adaptation z = mu' + sigma' eps with the eps that was drawn, so that L'
and KL' are functions of theta', mu' and l'. The outer update is MAML-TRPO's, of theta, alpha and all (mu_i, l_i) at
once. In a test theta stays (`admrl.inner_loop.maesn_policy`).

Differs from the released code: z of the inner steps is data for theta', too, and not a function of mu and l; A_0 has
mean 0 and standard deviation 1 over a task's episodes; the baseline of A sees z, that of A_0 does not (there neither
does); hidden layers are tanh, not ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from admrl.inner_loop.adaptation import Batch, Loss, inner_loss, log_prob
from admrl.inner_loop.advantages import normalized
from admrl.inner_loop.meta_problem import MetaProblem
from policy_opt.curvature import hessian_operator
from policy_opt.gaussian_policy import gaussian_kl, gaussian_log_prob
from policy_opt.policy import ActionDistribution


@dataclass(frozen=True, eq=False)
class LatentBatch(Batch):
    """Samples of N lanes of T steps, R = N T of every task, lane after lane; obs holds z behind the observations.

    A lane keeps its z where an episode terminates early; A_0 is of its first episode.
    """

    eps: Tensor  # (M, N, L)
    z: Tensor  # (M, N, L) of the distributions that acted
    first_advantage: Tensor  # A_0 (M, N)
    first_weight: Tensor  # (M, N), sums to 1 for every task

    @classmethod
    def make(cls, batch: Batch, advantage: Tensor, eps: Tensor, z: Tensor) -> LatentBatch:
        """Of the samples of lanes with these z, and their advantages (M, R) by a baseline that does not see z."""
        lanes = z.shape[:2]
        weight = batch.weight.view(*lanes, -1)[..., 0]
        weight = weight / weight.sum(1, keepdim=True)
        first = normalized(advantage.view(*lanes, -1)[..., 0], weight)
        steps: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
        return cls(**steps, eps=eps, z=z, first_advantage=first, first_weight=weight)

    def with_latent(self, z: Tensor) -> Tensor:
        """Observations (M, R, S + L) with z (M, N, L) in place of the one that acted."""
        size = z.shape[-1]
        rows = z.repeat_interleave(self.obs.shape[1] // z.shape[1], dim=1)
        return torch.cat([self.obs[..., :-size], rows], dim=-1)


def latent_loss(mean: Tensor, log_std: Tensor, batch: LatentBatch) -> Tensor:
    """- mean_episodes log N(z; mu, sigma) A_0 of every task (M,): mean and log_std (M, L)."""
    score = gaussian_log_prob(mean[:, None], log_std[:, None], batch.z)
    return -(batch.first_weight * batch.first_advantage * score).sum(1)


@dataclass(frozen=True, eq=False)
class LatentProblem(MetaProblem):
    """`MetaProblem` where the inner loop moves x = (theta, mu_i, l_i) (M, q), q = p + 2 L, i the task's number.

    meta is theta (p), alpha (q), then mu and l of every training task (N, 2 L); step_size is None.
    """

    batches: Sequence[LatentBatch]  # k + 1
    learned: Tensor  # (q,), 1 where alpha is learned, else 0
    index: Tensor  # (M,) of the training tasks
    num_training_tasks: int  # N
    size: int  # L
    kl_weight: float  # w
    adapt_policy: bool

    def tasks(self, rows: slice) -> Self:
        """The problem of some tasks."""
        return replace(super().tasks(rows), index=self.index[rows])

    def parts(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (p,) and alpha (q,)."""
        p = self.policy.num_params
        return meta[:p], meta[p : p + len(self.learned)]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (M, p), mu and l (M, L) of x (M, q)."""
        p = self.policy.num_params
        return x[:, :p], x[:, p : p + self.size], x[:, p + self.size :]

    def spread(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 (M, q) and alpha (q,)."""
        theta, alpha = self.parts(meta)
        own = meta[len(theta) + len(alpha) :].view(-1, 2 * self.size)[self.index]
        return torch.cat([theta.expand(len(own), -1), own], dim=1), alpha

    def spread_tangent(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """See `MetaProblem`."""
        start, alpha = self.spread(tangent)
        return start, self.learned * alpha

    def collected(self, of_theta: Tensor, of_step_size: Tensor) -> Tensor:
        """See `MetaProblem`; of_theta is of x_0."""
        p = self.policy.num_params
        own = of_theta.new_zeros(self.num_training_tasks, 2 * self.size)
        own = own.index_add(0, self.index, of_theta[:, p:])
        return torch.cat([of_theta[:, :p].sum(0), self.learned * of_step_size.sum(0), own.flatten()])

    def loss(self, batch: Batch) -> Loss:
        """See `MetaProblem`; J of the head of this page."""
        assert isinstance(batch, LatentBatch)

        def total(x: Tensor) -> Tensor:
            theta, mean, log_std = self.split(x)
            of_latent = latent_loss(mean, log_std, batch)
            if not self.adapt_policy:
                return of_latent
            return of_latent + inner_loss(self.inner_loss, log_prob(self.policy, theta, batch), batch)

        return total

    def acting(self, adapted: Tensor) -> ActionDistribution:
        """See `MetaProblem`; z = mu' + sigma' eps."""
        theta, mean, log_std = self.split(adapted)
        last = self.batches[-1]
        return self.policy.distribution(
            theta, last.with_latent(mean[:, None] + log_std.exp()[:, None] * last.eps)
        )

    def penalty(self, start: Tensor) -> Tensor:
        """See `MetaProblem`; w KL(N(mu, sigma) || N(0, I)), nats."""
        _, mean, log_std = self.split(start)
        nothing = torch.zeros_like(mean)
        return self.kl_weight * gaussian_kl(mean, log_std, nothing, nothing)

    def fisher_product(self, adapted: Tensor) -> Callable[[Tensor], Tensor]:
        """See `MetaProblem`; by autograd, since z is a function of mu' and l'."""
        return hessian_operator(lambda x: self.kl(x).sum(), adapted)
