"""MAML-TRPO (Finn et al. 2017, Alg. 3): a trust region around the adapted policies. MAML-MT is the same, told psi.

    maximise  mean_tasks L'(theta_k(meta))   subject to  mean_tasks KL'(theta_k(meta)) <= max_kl
    g = mean J' grad L',  F = mean J' F' J,  x = (F + damping I)^-1 g,  step = x sqrt(2 max_kl / x'(F + damping I)x)

with J the derivative of the inner loop and F' the Fisher matrix of the adapted policy. F is the Hessian of the mean
KL' exactly: grad KL' = 0 where the samples come from, so that the second derivative of theta_k does not enter. (Of a
simulation that broke down, the last step counts in F alone, and the bound is kept by the line search.) The
step is shortened until L' grows and the KL' bound holds; after `num_trials` theta stays as it is.

Differs from the paper: the released code has products with the Hessian of KL' by finite differences of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.inner_loop.adaptation import LinearAdaptation, gradients, linearize
from admrl.inner_loop.config import OuterTrpoConfig
from admrl.inner_loop.meta_problem import MetaProblem, captured
from policy_opt.capture import Newest, Tensors
from policy_opt.linear_solve import conjugate_gradient


@dataclass(frozen=True)
class TrustRegionReport:
    """What one outer update did."""

    kl: float  # mean KL' of the parameters returned, nats; 0 if none was accepted
    improvement: float  # gain of L', in units of the normalised advantage
    step_fraction: float  # of the step at the bound; 0: nothing was accepted


@torch.no_grad()
def maml_trpo_step(
    meta: Tensor, problem: MetaProblem, config: OuterTrpoConfig, recorded: Newest | None = None
) -> tuple[Tensor, TrustRegionReport]:
    """New meta-parameters (P,) and a report; those given, where no step is accepted. recorded: see `captured`."""

    def direction(meta: Tensor, problem: MetaProblem) -> Tensors:
        """x (P,) and x'(F + damping I)x ()."""
        g, product = gradient_and_metric(meta, problem)

        def metric(v: Tensor) -> Tensor:
            return torch.stack([product(row) for row in v])

        solve = conjugate_gradient(
            metric, g[None], damping=config.cg_damping, rtol=1e-10, max_steps=config.cg_steps
        )
        x = solve.solution[0]
        return x, x @ (product(x) + config.cg_damping * x)

    x, curvature = captured("the direction of a MAML step", direction, meta, problem, recorded)
    step = x * torch.sqrt(2 * config.max_kl / curvature)
    if not bool(curvature > 0) or not bool(step.isfinite().all()):
        return meta, TrustRegionReport(0.0, 0.0, 0.0)
    before, _ = surrogate_and_kl(meta, problem)
    for trial in range(config.num_trials):
        fraction = config.backtrack_ratio**trial
        candidate = meta + fraction * step
        after, kl = surrogate_and_kl(candidate, problem)
        if after > before and kl <= config.max_kl:  # false for nan
            return candidate, TrustRegionReport(kl, after - before, fraction)
    return meta, TrustRegionReport(0.0, 0.0, 0.0)


def surrogate_and_kl(meta: Tensor, problem: MetaProblem) -> tuple[float, float]:
    """Means over tasks of L' (less its penalty) and KL'."""
    surrogate, kl = 0.0, 0.0
    for block in problem.blocks():
        first, *_, adapted = block.path(meta)
        surrogate += float((block.surrogate(adapted) - block.penalty(first)).sum())
        kl += float(block.kl(adapted).sum())
    return surrogate / problem.num_tasks, kl / problem.num_tasks


def gradient_and_metric(meta: Tensor, problem: MetaProblem) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """g (P,), and v (P,) -> F v, of the head of this page."""
    prepared: list[tuple[MetaProblem, LinearAdaptation, Callable[[Tensor], Tensor]]] = []
    g = torch.zeros_like(meta)
    for block in problem.blocks():
        theta, step_size, losses = block.start(meta)
        linear = linearize(theta, step_size, losses, order=block.order)
        of_theta, of_step_size = linear.pull(gradients(block.surrogate)(linear.adapted))
        g = g + block.collected(of_theta - gradients(block.penalty)(theta.detach()), of_step_size)
        prepared.append((block, linear, block.fisher_product(linear.adapted)))

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for block, linear, fisher in prepared:
            pushed = linear.push(*block.spread_tangent(v))
            total = total + block.collected(*linear.pull(fisher(pushed)))
        return total / problem.num_tasks

    return g / problem.num_tasks, product
