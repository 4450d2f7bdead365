"""The inner loop: k policy-gradient steps of M tasks at once, from one theta, and the derivatives of where they end.

    g_j       = grad l_j(theta_j),   theta_{j+1} = theta_j - alpha o g_j,   j = 0 .. k-1        (MAML Eq. 1)
    d theta_k = J d theta - sum_j (...) g_j o d alpha,   J = prod_j (I - alpha o H_j),  H_j = Hess l_j(theta_j)

    log_likelihood     l = - mean log pi_theta(a|s) A                     Hess: - mean A (Hess log pi)
    likelihood_ratio   l = - mean [pi_theta / pi_old](a|s) A              Hess: - mean A (score score' + Hess log pi)

At theta = theta_old both losses have the gradient of the policy-gradient theorem; they differ in the second
derivative (ProMP, Rothfuss et al. 2019, section 4). alpha is a number for each parameter, which may be learned
(Meta-SGD, Li et al. 2017). order "first" takes J = I (FOMAML). Shapes: M tasks, p parameters, R samples, k steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from admrl.inner_loop.config import InnerLoss, Order
from policy_opt.policy import ActionDistribution, Policy

Loss = Callable[[Tensor], Tensor]  # theta (M, p) -> (M,), each task's of its own row alone


@dataclass(frozen=True, eq=False)
class Batch:
    """R samples of each of M tasks, and the policies that chose the actions."""

    obs: Tensor  # (M, R, S)
    act: Tensor  # (M, R, A) in units of the policy
    advantage: Tensor  # (M, R)
    weight: Tensor  # (M, R), sums to 1 for every task: what a mean over its samples is
    old: ActionDistribution  # of the policies that acted
    log_prob: Tensor  # (M, R) of act

    def tasks(self, index: slice) -> Batch:
        """The samples of some tasks."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        kept: dict[str, Any] = {name: x[index] for name, x in held.items() if isinstance(x, Tensor)}
        return replace(self, **kept, old=self.old.tasks(index))


def inner_loss(kind: InnerLoss, log_prob: Tensor, batch: Batch) -> Tensor:
    """l of every task (M,), of log pi_theta(a|s) (M, R); see the head of this page."""
    weights = batch.weight * batch.advantage
    if kind == "log_likelihood":
        return -(weights * log_prob).sum(1)
    return -(weights * torch.exp(log_prob - batch.log_prob)).sum(1)


def policy_loss(policy: Policy, batch: Batch, kind: InnerLoss) -> Loss:
    """`inner_loss` as a function of the parameters."""
    return lambda theta: inner_loss(kind, log_prob(policy, theta, batch), batch)


def log_prob(policy: Policy, theta: Tensor, batch: Batch) -> Tensor:
    """log pi_theta(a|s) of a batch: (M, p) -> (M, R)."""
    return policy.distribution(theta, batch.obs).log_prob(batch.act)


def kl_from_old(policy: Policy, theta: Tensor, batch: Batch) -> Tensor:
    """Mean KL(pi_old || pi_theta) over a batch, nats: (M, p) -> (M,)."""
    return (batch.weight * batch.old.kl(policy.distribution(theta, batch.obs))).sum(1)


def gradients(loss: Loss) -> Callable[[Tensor], Tensor]:
    """theta (M, p) -> the gradient of every task's loss (M, p)."""
    return torch.func.grad(lambda theta: loss(theta).sum())


def adapt(
    theta: Tensor, step_size: Tensor, losses: Sequence[Loss], *, order: Order = "second"
) -> list[Tensor]:
    """theta_0 ... theta_k, each (M, p), differentiable in theta and step_size.

    Args:
        theta: (M, p); step_size: alpha, (p,) or (M, p).
        losses: l_0 ... l_{k-1}.
        order: "first": gradients count as constants of the derivative.
    """
    path = [theta]
    for loss in losses:
        g = gradients(loss)(path[-1])
        path.append(path[-1] - step_size * (g.detach() if order == "first" else g))
    return path


@dataclass(frozen=True, eq=False)
class LinearAdaptation:
    """The inner loop at one theta, linearised: products with the derivative of theta_k in (theta, alpha)."""

    adapted: Tensor  # theta_k (M, p)
    step_size: Tensor  # (p,) or (M, p)
    steps: tuple[Tensor, ...]  # g_j (M, p)
    hessians: tuple[Callable[[Tensor], Tensor], ...]  # v -> H_j v, (M, p); empty for the first order

    def push(self, tangent: Tensor, step_size_tangent: Tensor | None = None) -> Tensor:
        """Tangents of theta (M, p), and of alpha, -> that of theta_k (M, p)."""
        v = tangent
        for j, g in enumerate(self.steps):
            if self.hessians:
                v = v - self.step_size * self.hessians[j](v)
            if step_size_tangent is not None:
                v = v - step_size_tangent * g
        return v

    def pull(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose: a cotangent of theta_k (M, p) -> those of theta and of alpha, (M, p) each."""
        u, of_step_size = cotangent, torch.zeros_like(cotangent)
        for j in reversed(range(len(self.steps))):
            of_step_size = of_step_size - self.steps[j] * u
            if self.hessians:
                u = u - self.hessians[j](self.step_size * u)  # (I - alpha o H)' = I - H diag(alpha)
        return u, of_step_size


def linearize(
    theta: Tensor, step_size: Tensor, losses: Sequence[Loss], *, order: Order = "second"
) -> LinearAdaptation:
    """`adapt` and its derivative; one backward pass a product and step."""
    at, steps, hessians = theta.detach(), [], []
    for loss in losses:
        if order == "first":
            g = gradients(loss)(at)
        else:
            g, pull_back, *_ = torch.func.vjp(gradients(loss), at)  # the graph is kept
            hessians.append(_product(pull_back))
        steps.append(g)
        at = at - step_size * g
    return LinearAdaptation(at, step_size, tuple(steps), tuple(hessians))


def _product(pull_back: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], Tensor]:
    return lambda v: pull_back(v)[0]  # H = H'
