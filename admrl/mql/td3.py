"""TD3 (Fujimoto et al. 2018) with a context h, on weighted transitions.

    a~ = clip(pi_target(s', h') + clip(sigma eps, -c, c), -1, 1)              TD3 Eq. 14
    y = r + gamma (1 - d) min_i Q_i,target(s', a~, h')                        TD3 Eq. 10
    J_Q  = mean beta sum_i (Q_i(s, a, h) - y)^2 + lambda |theta_Q - theta_meta|^2
    J_pi = mean -beta Q_1(s, pi(s, h), h)       + lambda |theta_pi - theta_meta|^2

every policy_delay-th step moves the actor and the targets. Meta-training (MQL section 3.1: the objective of all tasks
together) has beta = 1 and lambda = 0; for adaptation see `admrl.mql.adaptation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.mql.networks import Agent
from admrl.mql.replay import Batch
from admrl.solving.sac import Optimizers


@dataclass(frozen=True, eq=False)
class Penalty:
    """lambda |theta - theta_meta|^2 of B tasks."""

    proximity: Tensor  # (B,) lambda
    anchor: dict[str, list[Tensor]]  # theta_meta by group of parameters, (...) each

    def of(self, name: str, parameters: Sequence[Tensor]) -> Tensor:
        """Its mean over tasks, for parameters (B, ...) of a group."""
        pairs = zip(parameters, self.anchor[name], strict=True)
        distance = sum(((p - a).square().flatten(1).sum(1) for p, a in pairs), self.proximity.new_zeros(()))
        return (self.proximity * distance).mean()


@torch.no_grad()
def target(agent: Agent, batch: Batch, noise: Tensor) -> Tensor:
    """y (B, N, 1); noise (B, N, A) is standard normal."""
    config = agent.config
    eps = (config.target_noise * noise).clamp(-config.noise_clip, config.noise_clip)
    act = (agent.target_actor(batch.next_obs, batch.next_history) + eps).clamp(-1, 1)
    beyond = torch.minimum(*agent.target_critic(batch.next_obs, act, batch.next_history))
    return batch.reward + agent.gamma * (1 - batch.terminated) * beyond


def critic_loss(agent: Agent, batch: Batch, y: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """mean beta ((Q_1 - y)^2 + (Q_2 - y)^2); weight (B, N, 1)."""
    q1, q2 = agent.critic(batch.obs, batch.act, batch.history)
    return (weight * ((q1 - y).square() + (q2 - y).square())).mean()


def actor_loss(agent: Agent, batch: Batch, weight: Tensor | float = 1.0) -> Tensor:
    """mean -beta Q_1(s, pi(s)); weight (B, N, 1)."""
    act = agent.actor(batch.obs, batch.history)
    return -(weight * agent.critic.first(batch.obs, act, batch.history)).mean()


def td3_step(
    agent: Agent,
    optimizers: Optimizers,
    batch: Batch,
    noise: Tensor,
    *,
    moves_actor: bool,
    weight: Tensor | float = 1.0,
    penalty: Penalty | None = None,
) -> dict[str, Tensor]:
    """One step of the critics and, if it moves, of the actor and the targets.

    Args:
        noise: standard normal (B, N, A), of the target actions.
        weight: beta (B, N, 1).

    Returns:
        the losses without the penalty, scalars.
    """
    y = target(agent, batch, noise)
    losses = {"critic_loss": critic_loss(agent, batch, y, weight)}
    _step("critic", losses["critic_loss"], optimizers, penalty)
    if moves_actor:
        losses["actor_loss"] = actor_loss(agent, batch, weight)
        _step("actor", losses["actor_loss"], optimizers, penalty)
        agent.follow()
    return {name: loss.detach() for name, loss in losses.items()}


def _step(name: str, loss: Tensor, optimizers: Optimizers, penalty: Penalty | None) -> None:
    extra = 0.0 if penalty is None else penalty.of(name, optimizers.groups[name])
    optimizers.step(name, loss + extra)
