"""Pathwise return: differentiate the learned model's rollout at fixed noise.

    s_t+1 = f_phi(s_t, a_t),  a_t = mean_theta(s_t) + sigma_theta eps_t
    J     = mean_n sum_t gamma^t r_psi(s_t, a_t, s_t+1)

with start states and eps of a recorded rollout, each lane in one member of the ensemble. Its derivatives have far
less variance than score functions, but see only what is smooth:

* a kink of the reward such as |v - psi| has a point mass as second derivative, which automatic differentiation drops
  (the mixed derivative of the bare |.| is 0). `smoothing` replaces |x| by sqrt(x^2 + w^2) - w with w = smoothing x
  the root mean square of x over a task's lanes, inside this estimator only;
* the same is true of the model's ReLU units and of the clipping of actions, which stay as they are: H misses the
  curvature of the model itself;
* a termination is a jump: its time is taken as fixed, so its part of every derivative is missing (on Hopper2D, 2 % of
  the lanes terminating made the slope three times too large: docs/task_gradient.md);
* derivatives through many steps may explode: `adjoint_growth` measures it, `horizon` cuts it with a value function.

Differs from the paper:
1. The paper has no pathwise estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from admrl.gradient.score_function import discounts
from admrl.solving.adaptation import Solution
from dynamics.ensemble import DynamicsEnsemble
from dynamics.virtual_env import VirtualEnv
from policy_opt.config import TrpoConfig
from policy_opt.linear_operator import Matvec
from policy_opt.linear_solve import conjugate_gradient
from task_families.family import TaskFamily
from task_families.rollout import Rollout


class smoothed_abs(TorchFunctionMode):
    """Inside, torch's |x| is sqrt(x^2 + w^2) - w with w = width x the root mean square of x; of x (M, ..., N) that of
    each task, so that a task's return knows nothing of its neighbours."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.abs, torch.Tensor.abs, torch.Tensor.__abs__, torch.absolute):
            x = args[0]
            own = tuple(range(1, x.dim())) or None
            square = x.detach().square().mean(own, keepdim=own is not None)
            w2 = (self.width**2 * square).clamp(min=torch.finfo(x.dtype).tiny)
            return (x.square() + w2).sqrt() - w2.sqrt()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class PathwiseReturn:
    """A `Return` through the model."""

    family: TaskFamily
    model: DynamicsEnsemble
    solution: Solution
    start: Tensor  # (M, N, S)
    noise: Tensor  # (M, N, T, A)
    smoothing: float
    bootstrap: bool  # V of the solution at the cut, because the horizon was shortened

    def __call__(self, theta: Tensor, psi: Tensor) -> Tensor:
        """theta (M, p), psi (M, k) -> (M,)."""
        return self.unrolled(theta, psi, self.start)[0]

    def unrolled(self, theta: Tensor, psi: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The return (M,) from start states (M, N, S), and the states that led to it."""
        family, policy = self.family, self.solution.policy
        num_steps = self.noise.shape[2]
        discount = discounts(family, family.horizon, start)
        env = VirtualEnv(self.model, family, (start.shape[0], start.shape[1]))
        alive = torch.ones(env.shape, dtype=torch.bool, device=start.device)
        obs = env.reset(alive, start)
        total, states = obs.new_zeros(env.shape), [obs]
        smooth: AbstractContextManager[Any] = (
            smoothed_abs(self.smoothing) if self.smoothing else nullcontext()
        )
        for t in range(num_steps):
            act, _ = policy.sample(theta, obs, self.noise[:, :, t])
            next_obs = env.step(act)
            with smooth:
                reward = family.reward(psi[:, None], obs, act, next_obs)
            total = total + discount[t] * torch.where(alive, reward, 0.0)
            alive = alive & ~family.terminated(next_obs.detach())
            obs = next_obs
            states.append(obs)
        if self.bootstrap:
            value = self.solution.value(self.solution.weights, obs)
            total = total + family.gamma * discount[num_steps - 1] * torch.where(alive, value, 0.0)
        return total.mean(-1), states


def pathwise_return(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    rollout: Rollout,
    *,
    smoothing: float,
    horizon: int | None = None,
) -> PathwiseReturn:
    """From the start states and the action noise of a rollout of the solution.

    Args:
        model: the one that the rollout comes from; its parameters are constants.
        horizon: steps to differentiate through, at most those of the rollout; then the value function. Its
            dependence on psi is not known, so what follows the cut is missing from the mixed derivative.
    """
    frozen = model.clone().requires_grad_(False)
    lanes = slice(0, rollout.obs.shape[1] // model.num_members * model.num_members)
    part = rollout.lanes(lanes)
    steps = min(horizon or family.horizon, part.obs.shape[2])
    policy, theta = solution.policy, solution.theta
    with torch.no_grad():
        noise = policy.noise(theta, part.obs, part.act)
    return PathwiseReturn(
        family=family,
        model=frozen,
        solution=solution,
        start=part.obs[:, :, 0],
        noise=noise[:, :, :steps],
        smoothing=smoothing,
        bootstrap=steps < part.obs.shape[2],
    )


def adjoint_growth(eta: PathwiseReturn, theta: Tensor, psi: Tensor) -> Tensor:
    """(M,) how uneven the sensitivities to the states are: the largest over the median of
    |d J/d s_t| (root mean square over lanes), t = 0 ... T - 1. Large where derivatives explode."""
    with torch.enable_grad():
        value, states = eta.unrolled(theta, psi, eta.start.clone().requires_grad_())
        adjoints = torch.autograd.grad(value.sum(), states[:-1])
    size = torch.stack([a.square().sum(-1).mean(-1).sqrt() for a in adjoints])  # (T, M)
    return size.amax(0) / size.median(0).values


def natural_step(fisher: Matvec, gradient: Tensor, config: TrpoConfig) -> Tensor:
    """The natural-gradient step (M, p) onto the trust region's boundary, without TRPO's damping."""
    solve = conjugate_gradient(
        fisher, gradient, damping=1e-3 * config.cg_damping, rtol=1e-3, max_steps=config.cg_steps
    )
    direction = solve.solution
    size = (direction * gradient).sum(-1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    return direction * (2 * config.max_kl / size).sqrt()


def polish(
    eta: Callable[[Tensor], Tensor],
    natural: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    num_steps: int,
) -> Tensor:
    """Natural-gradient ascent on a deterministic objective eta: theta (M, p) -> (M,), with backtracking.

    Args:
        natural: (theta, gradient) -> the first step to try; it is halved up to 8 times until eta grows. A task for
            which it never does stays where it is.
    """
    for _ in range(num_steps):
        with torch.enable_grad():
            leaf = theta.clone().requires_grad_()
            here = eta(leaf)
            (gradient,) = torch.autograd.grad(here.sum(), leaf)
        here = here.detach()
        step = natural(theta, gradient)
        pending = torch.ones_like(here, dtype=torch.bool)
        for halvings in range(9):
            with torch.no_grad():
                candidate = torch.where(pending[:, None], theta + 0.5**halvings * step, theta)
                better = pending & (eta(candidate) > here)
            theta = torch.where(better[:, None], candidate, theta)
            pending = pending & ~better
            if not bool(pending.any()):
                break
    return theta
