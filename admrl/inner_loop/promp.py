"""ProMP (Rothfuss et al. 2019): a clipped objective after adaptation and a KL penalty before it; and MAML-PPO.

    maximise  mean_tasks  mean min(rho A, clip(rho, 1 - eps, 1 + eps) A)  -  eta mean_j KL(pi_old_j || pi_theta_j)
    rho = pi_theta_k / pi_old' of the last phase;  theta_j, j = 0 .. k-1, before inner step j, on samples of phase j

(ProMP Eq. 11; the KL as in the released code, which penalises every pre-update policy of the inner loop.) Some Adam
steps on the same samples, differentiated through the inner loop. MAML-PPO is the same computation, as of the released
branch `full_code` and the robustness study, with eps 0.5 and eta 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admrl.inner_loop.adaptation import kl_from_old
from admrl.inner_loop.config import ClipConfig
from admrl.inner_loop.meta_problem import MetaProblem, captured
from policy_opt.capture import Newest, Tensors


@dataclass(frozen=True)
class ClipReport:
    """What the last of the Adam steps saw, before it was made."""

    objective: float
    kl: float  # mean KL of the pre-update policies from those that sampled, nats


def promp_objective(meta: Tensor, problem: MetaProblem, config: ClipConfig) -> tuple[Tensor, Tensor]:
    """The objective of every task (M,), differentiable in meta, and its KL (M,)."""
    *before, adapted = problem.path(meta)
    last, ratio = problem.batches[-1], problem.ratio(adapted)
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = (last.weight * torch.minimum(ratio * last.advantage, clipped * last.advantage)).sum(1)
    pairs = zip(before, problem.batches, strict=False)  # the last phase has none
    kl = torch.stack([kl_from_old(problem.policy, theta, batch) for theta, batch in pairs]).mean(0)
    return surrogate - config.kl_weight * kl, kl


def promp_step(
    meta: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    problem: MetaProblem,
    config: ClipConfig,
    recorded: Newest | None = None,
) -> ClipReport:
    """`num_epochs` steps of the optimiser of meta (P,), which changes; recorded: see `captured`."""

    def gradient(meta: Tensor, problem: MetaProblem) -> Tensors:
        """Of the loss (P,); objective and KL, summed over tasks."""
        leaf = meta.detach().requires_grad_()
        objective = kl = torch.zeros((), dtype=torch.float64, device=meta.device)
        for block in problem.blocks():
            value, divergence = promp_objective(leaf, block, config)
            (-value.sum() / problem.num_tasks).backward()
            objective = objective + value.detach().sum()
            kl = kl + divergence.detach().sum()
        assert leaf.grad is not None
        return leaf.grad, objective, kl

    for _ in range(config.num_epochs):
        meta.grad, objective, kl = captured("a gradient of ProMP", gradient, meta, problem, recorded)
        optimizer.step()
    return ClipReport(float(objective) / problem.num_tasks, float(kl) / problem.num_tasks)
