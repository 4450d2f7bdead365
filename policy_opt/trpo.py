"""Trust-region policy optimisation (Schulman et al. 2015), batched over tasks.

    maximise  L(theta) = E[ pi_theta(a|s) / pi_old(a|s) * A(s, a) ] + beta * E[ entropy(theta) ]
    subject to  E[ KL(pi_old || pi_theta) ] <= max_kl

    g = grad L,   x = (F + damping I)^-1 g  by conjugate gradients,   step = x sqrt(2 max_kl / x'(F + damping I)x)

then the step is halved until L does not decrease and the KL bound holds. Every task has its own step, KL and
acceptance; a rejected task keeps its parameters. The gradient of L is the policy gradient; its Hessian is not
the Hessian of the return (never differentiate L twice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_opt.capture import RECORDERS, Captured, Newest, layouts
from policy_opt.config import TrpoConfig
from policy_opt.linear_solve import conjugate_gradient
from policy_opt.policy import Policy

# Tasks are updated one after another in blocks of about this many states: on a CPU the activations of a larger
# block leave the cache (36 tasks of 10 000 states at once: 2.4 times the time of 36 calls).
STATES_PER_BLOCK = 10_000


@dataclass(frozen=True)
class TrpoReport:
    """What one update did, per task (M,)."""

    accepted: Tensor  # bool
    kl: Tensor  # mean KL(old || new) of the parameters returned, nats
    improvement: Tensor  # gain of L, in units of the normalised advantage
    step_fraction: Tensor  # 1, 1/2, 1/4, ...; 0 if rejected


def trpo_step(
    policy: Policy,
    theta: Tensor,
    obs: Tensor,
    act: Tensor,
    advantage: Tensor,
    config: TrpoConfig,
    recorded: Newest | None = None,
) -> tuple[Tensor, TrpoReport]:
    """One update of M policies.

    Args:
        theta: (M, p), the policies that chose the actions.
        obs: (M, ..., S), act: (M, ..., A), advantage: (M, ...), any number of samples per task.
            Advantages are normalised to mean 0 and standard deviation 1 within each task.
        recorded: where the directions of updates are kept that a GPU records (`policy_opt.capture`); the caller
            keeps it from update to update. None: nothing is recorded.

    Returns:
        theta (M, p) and a report. A task whose gradient, step or line search is not finite is rejected.
    """
    obs, act, advantage = obs.flatten(1, -2), policy.to_unit(act.flatten(1, -2)), advantage.flatten(1)
    policy = policy.in_units()  # ratios, KL and gradients do not depend on the units
    parts = []
    for rows in task_blocks(theta, obs.shape[1]):
        block = policy
        if policy.obs_mean is not None and policy.obs_std is not None and policy.obs_mean.dim() == 2:
            block = policy.with_normalizer(policy.obs_mean[rows], policy.obs_std[rows])
        parts.append(_step_block(block, theta[rows], obs[rows], act[rows], advantage[rows], config, recorded))
    thetas, reports = zip(*parts, strict=True)
    fields = TrpoReport.__dataclass_fields__
    return torch.cat(thetas), TrpoReport(**{f: torch.cat([getattr(r, f) for r in reports]) for f in fields})


def task_blocks(theta: Tensor, num_states: int) -> list[slice]:
    """Blocks of the M tasks of theta (M, p), with so many states each: small on a CPU, all at once elsewhere."""
    per_block = max(1, STATES_PER_BLOCK // num_states) if theta.device.type == "cpu" else len(theta)
    return [slice(start, start + per_block) for start in range(0, len(theta), per_block)]


def _step_block(
    policy: Policy,
    theta: Tensor,
    obs: Tensor,
    act: Tensor,
    advantage: Tensor,
    config: TrpoConfig,
    recorded: Newest | None,
) -> tuple[Tensor, TrpoReport]:
    advantage = (advantage - advantage.mean(1, keepdim=True)) / advantage.std(1, keepdim=True).clamp(min=1e-8)
    x = policy.normalize(obs)
    with torch.no_grad():
        old = policy.distribution(theta, x)
        log_prob_old = old.log_prob(act)

    def surrogate_and_kl(candidate: Tensor) -> tuple[Tensor, Tensor]:
        new = policy.distribution(candidate, x)
        ratio = torch.exp(new.log_prob(act) - log_prob_old)
        surrogate = (ratio * advantage).mean(1) + config.entropy_bonus * new.entropy().mean(1)
        return surrogate, old.kl(new).mean(1)

    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        before = surrogate_and_kl(leaf)[0]
        (g,) = torch.autograd.grad(before.sum(), leaf)
    before = before.detach()

    with torch.no_grad():
        direction, curvature = _direction_of(policy, config, recorded, theta, x, g)(theta, x, g)
        step = direction * torch.sqrt(2 * config.max_kl / curvature)[:, None]
        usable = (curvature > 0) & step.isfinite().all(1)
        return _line_search(surrogate_and_kl, theta, step, usable, before, config)


def _direction_of(
    policy: Policy, config: TrpoConfig, recorded: Newest | None, *inputs: Tensor
) -> Callable[..., tuple[Tensor, ...]]:
    """What maps the inputs theta (M, p), x (M, R, S), g (M, p) to the direction (M, p) and its curvature (M,)."""

    def direction(theta: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        fisher = fisher_product(policy, theta, x, config.fisher_fraction)
        solve = conjugate_gradient(
            fisher, g, damping=config.cg_damping, rtol=1e-10, max_steps=config.cg_steps
        )
        found = solve.solution
        return found, (found * (fisher(found) + config.cg_damping * found)).sum(1)

    shape = policy.shape_key
    if recorded is None or shape is None or inputs[0].device.type not in RECORDERS:
        return direction
    key = (type(policy), shape, config, layouts(inputs))
    return recorded.get(key, lambda: Captured("the direction of a TRPO step", direction))


def _line_search(
    surrogate_and_kl: Callable[[Tensor], tuple[Tensor, Tensor]],
    theta: Tensor,
    step: Tensor,
    usable: Tensor,
    before: Tensor,
    config: TrpoConfig,
) -> tuple[Tensor, TrpoReport]:
    """Halve the step of every task until its own test passes; tasks that are done stay as they are."""
    zero = torch.zeros_like(before)
    new, kl, gain, fraction = theta.clone(), zero, zero, zero
    pending = usable.clone()
    for halvings in range(config.max_backtracks + 1):
        if halvings and not bool(pending.any()):  # a GPU is waited for here
            break
        size = 0.5**halvings
        candidate = torch.where(pending[:, None], theta + size * step, new)
        after, candidate_kl = surrogate_and_kl(candidate)
        # comparisons with nan are false: a candidate that is not finite is refused
        passed = pending & (after >= before) & (candidate_kl <= config.kl_slack * config.max_kl)
        new = torch.where(passed[:, None], candidate, new)
        kl = torch.where(passed, candidate_kl, kl)
        gain = torch.where(passed, after - before, gain)
        fraction = torch.where(passed, torch.full_like(fraction, size), fraction)
        pending = pending & ~passed
    return new, TrpoReport(accepted=fraction > 0, kl=kl, improvement=gain, step_fraction=fraction)


def fisher_product(
    policy: Policy, theta: Tensor, x: Tensor, fraction: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """v (M, p) -> F v, the policies' exact Fisher matrices averaged over inputs x (M, R, S), already normalised.

    fraction: of the states, evenly spaced.
    """
    return policy.fisher_product(theta, x[:, :: max(1, round(1 / fraction))])
