"""MQL's networks: actor and twin critics, each with a GRU that reads the last L tuples (a, r, s) of the episode.

    c = GRU(h)                       its last state, h (L, W) padded with zeros in front
    pi(s, h) = tanh(f(s, c_actor))
    Q_i(s, a, h) = g_i(s, a, c_critic), i = 1, 2

Weights have no leading axis in meta-training and (B, ...) in adaptation, where every task has its own (`stacked`);
the same lines compute both. Shapes: B tasks, N transitions of each, see `admrl.mql.replay`.

[ours] Initial weights are those of `admrl.solving.sac`; of a GRU, U(+-1/sqrt(units)), as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from admrl.mql.config import Td3Config
from admrl.solving.sac import HEAD_RANGE, Linear, Mlp, uniform
from task_families.family import TaskFamily


class Gru(nn.Module):
    """Gated recurrent units (Cho et al. 2014), as `torch.nn.GRU` defines them, for stacked weights, too."""

    def __init__(self, input_size: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.input = Linear(input_size, 3 * size, dtype=torch.float32)
        self.hidden = Linear(size, 3 * size, dtype=torch.float32)
        for parameter in self.parameters():
            uniform(parameter, 1 / math.sqrt(size), generator)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, L, in) -> the last state (B, N, size).

        r, z = sigma(W x + U h)     n = tanh(W x + r U h)     h <- (1 - z) n + z h
        """
        b, n, length, _ = x.shape
        seen = self.input(x.flatten(1, 2)).view(b, n, length, -1).unbind(2)  # of all steps at once
        h = x.new_zeros(b, n, self.size)
        for from_x in seen:
            from_h = self.hidden(h)
            gates = torch.sigmoid(from_x[..., : 2 * self.size] + from_h[..., : 2 * self.size])
            r, z = gates.chunk(2, dim=-1)
            new = torch.tanh(from_x[..., 2 * self.size :] + r * from_h[..., 2 * self.size :])
            h = torch.lerp(new, h, z)
        return h


class ContextActor(nn.Module):
    """pi(s, h)."""

    def __init__(self, obs_size: int, act_size: int, config: Td3Config, generator: torch.Generator) -> None:
        super().__init__()
        self.context = Gru(act_size + 1 + obs_size, config.context_size, generator)
        sizes = (obs_size + config.context_size, *config.hidden_sizes, act_size)
        self.net = Mlp(sizes, generator, HEAD_RANGE)

    def forward(self, obs: Tensor, history: Tensor) -> Tensor:
        """obs (B, N, S), history (B, N, L, W) -> unit actions (B, N, A)."""
        return torch.tanh(self.net(torch.cat([obs, self.context(history)], dim=-1)))


class ContextCritic(nn.Module):
    """Q_1 and Q_2, which share their context."""

    def __init__(self, obs_size: int, act_size: int, config: Td3Config, generator: torch.Generator) -> None:
        super().__init__()
        self.context = Gru(act_size + 1 + obs_size, config.context_size, generator)
        sizes = (obs_size + act_size + config.context_size, *config.hidden_sizes, 1)
        self.q1, self.q2 = Mlp(sizes, generator), Mlp(sizes, generator)

    def forward(self, obs: Tensor, act: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """-> Q_1, Q_2 (B, N, 1)."""
        x = torch.cat([obs, act, self.context(history)], dim=-1)
        return self.q1(x), self.q2(x)

    def first(self, obs: Tensor, act: Tensor, history: Tensor) -> Tensor:
        """Q_1 (B, N, 1), without gradient in its parameters."""
        with torch.no_grad():
            context = self.context(history)
        return self.q1(torch.cat([obs, act, context], dim=-1), frozen=True)


class Agent(nn.Module):
    """Actor, critics and the targets that follow them."""

    def __init__(self, family: TaskFamily, config: Td3Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.bounds = config, family.action_bounds
        self.gamma = family.gamma if config.gamma is None else config.gamma
        self.obs_size = family.obs_size
        self.actor = ContextActor(family.obs_size, family.act_size, config, generator)
        self.critic = ContextCritic(family.obs_size, family.act_size, config, generator)
        self.target_actor, self.target_critic = deepcopy(self.actor), deepcopy(self.critic)
        self.target_actor.requires_grad_(False)
        self.target_critic.requires_grad_(False)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains."""
        return {"critic": list(self.critic.parameters()), "actor": list(self.actor.parameters())}

    @torch.no_grad()
    def follow(self) -> None:
        """target <- (1 - tau) target + tau network."""
        for target, network in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            targets: list[Tensor] = list(target.parameters())
            torch._foreach_lerp_(targets, list(network.parameters()), self.config.tau)


def stacked(agents: Sequence[Agent]) -> Agent:
    """Agents of one configuration as one whose tasks have weights of their own, (B, ...). It shares none with them.

    Its losses are means over tasks: train it with `Optimizers(..., num_agents=B)`, and every task's step is that of
    its agent alone.
    """
    together = deepcopy(agents[0])
    with torch.no_grad():
        for name, parameter in together.named_parameters():
            parameter.data = torch.stack([agent.get_parameter(name) for agent in agents])
    return together
