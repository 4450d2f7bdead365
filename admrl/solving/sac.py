"""Soft actor-critic for many tasks at once, conditioned on nothing, psi, a one-hot code or a latent z.

Shapes: B tasks of a meta-batch, N transitions of each, S / A sizes of observation and action, c of the condition.

    policy    a = tanh(u), u ~ N(mu(s, c), sigma(s, c)^2),  log pi = log N(u) - sum log(1 - tanh(u)^2)
    critic    J_Q = mean (Q1 - y)^2 + mean (Q2 - y)^2                              CRL Eq. 2, 10
              y = scale r + gamma (1 - d) V_target(s', c)                          with a network V (PEARL)
              y = scale r + gamma (1 - d) (min Q_target(s', a') - alpha log pi)    without; CRL Eq. 3
    value     J_V = mean (V - (min Q(s, a~) - alpha log pi(a~|s)))^2               a~ ~ pi
    policy    J_pi = mean (alpha log pi(a~|s) - min Q(s, a~))                      CRL Eq. 1, 11
              + penalties on mu^2 and (log sigma)^2
    alpha     J_alpha = log alpha (-log pi - H_T), H_T = -A                        CRL Eq. 4

A step reads nothing back from the device, so that a GPU may capture it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu, softplus

from admrl.config.sac import SacConfig
from dynamics.onednn import linear
from policy_opt.capture import RECORDERS, CapturedSteps

MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0  # as released with PEARL
HIDDEN_BIAS, OUTPUT_RANGE, HEAD_RANGE = 0.1, 3e-3, 1e-3  # initial weights, likewise


@dataclass(frozen=True, eq=False)
class Batch:
    """Transitions of B tasks."""

    obs: Tensor  # (B, N, S)
    act: Tensor  # (B, N, A)
    reward: Tensor  # (B, N, 1)
    next_obs: Tensor  # (B, N, S)
    terminated: Tensor  # (B, N, 1) 1 where no value lies beyond

    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return self.obs, self.act, self.reward, self.next_obs, self.terminated


# -- networks ---------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """`torch.nn.Linear` by the faster product; with weights (B, out, in) and biases (B, out), a layer for each task
    (`stacked`)."""

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """(..., in) -> (..., out); frozen: see `Mlp.forward`."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if frozen:
            weight, bias = weight.detach(), bias.detach()
        if weight.dim() == 3:
            return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        return linear(x, weight, bias)


class Mlp(nn.Module):
    """ReLU layers and a linear output, with the released initial weights."""

    def __init__(
        self, sizes: Sequence[int], generator: torch.Generator, output_range: float = OUTPUT_RANGE
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        layers = [Linear(i, o, device=generator.device, dtype=torch.float32) for i, o in pairwise(sizes)]
        for layer in layers[:-1]:
            # the released code takes the number of outputs for the fan-in
            uniform(layer.weight, 1 / math.sqrt(layer.out_features), generator)
            nn.init.constant_(layer.bias, HIDDEN_BIAS)
        self.hidden, self.last = nn.ModuleList(layers[:-1]), layers[-1]
        uniform(self.last.weight, output_range, generator)
        uniform(self.last.bias, output_range, generator)

    def features(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """The last hidden layer."""
        for layer in self.hidden:
            x = relu(layer(x, frozen=frozen))
        return x

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """(..., in) -> (..., out)

        Args:
            frozen: no gradient in the parameters, which then costs nothing.
        """
        return self.last(self.features(x, frozen=frozen), frozen=frozen)


def uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill with U(-bound, bound)."""
    with torch.no_grad():
        parameter.uniform_(-bound, bound, generator=generator)


def with_condition(condition: Tensor, *inputs: Tensor) -> Tensor:
    """[inputs, condition]: inputs (B, N, .), condition (B, c) or (B, N, c) -> (B, N, . + c)."""
    if condition.dim() == 2:
        condition = condition[:, None].expand(-1, inputs[0].shape[1], -1)
    return torch.cat([*inputs, condition], dim=-1)


class Actor(nn.Module):
    """mu and log sigma of the policy."""

    def __init__(
        self, obs_size: int, act_size: int, condition_size: int, config: SacConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = (obs_size + condition_size, *config.hidden_sizes, 2 * act_size)
        self.net = Mlp(sizes, generator, HEAD_RANGE)

    def forward(self, obs: Tensor, condition: Tensor, heads: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """obs (B, N, S), condition (B, c) or (B, N, c) -> mu, log sigma (B, N, A).

        Args:
            heads: (B, 2 A, h + 1), weights and bias of an output layer for each task, in place of the common one.
        """
        features = self.net.features(with_condition(condition, obs))
        if heads is None:
            output = self.net.last(features)
        else:
            output = features @ heads[..., :-1].transpose(1, 2) + heads[:, None, :, -1]
        mean, log_std = output.float().chunk(2, dim=-1)
        return mean, log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u), u = mu + sigma noise, and log pi(a): (..., A) -> (..., A), (..., 1)."""
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), without cancellation
    log_slope = 2 * (math.log(2) - u - softplus(-2 * u))
    return torch.tanh(u), (log_normal - log_slope).sum(-1, keepdim=True)


# -- one agent --------------------------------------------------------------------------------------------------


class Sac(nn.Module):
    """Networks and optimisers. `step` is one gradient step on all of them."""

    def __init__(
        self,
        obs_size: int,
        act_size: int,
        condition_size: int,
        config: SacConfig,
        gamma: float,
        generator: torch.Generator,
    ) -> None:
        """gamma: discount, where the configuration names none."""
        super().__init__()
        self.config, self.act_size = config, act_size
        self.gamma = gamma if config.gamma is None else config.gamma
        pair = (obs_size + act_size + condition_size, *config.hidden_sizes, 1)
        self.actor = Actor(obs_size, act_size, condition_size, config, generator)
        self.q1, self.q2 = Mlp(pair, generator), Mlp(pair, generator)
        self.value: Mlp | None = None
        if config.use_value:
            self.value = Mlp((obs_size + condition_size, *config.hidden_sizes, 1), generator)
            self.targets = nn.ModuleList([deepcopy(self.value)])
            self.followed = nn.ModuleList([self.value])
        else:
            self.targets = nn.ModuleList([deepcopy(self.q1), deepcopy(self.q2)])
            self.followed = nn.ModuleList([self.q1, self.q2])
        self.targets.requires_grad_(False)
        start = 0.0 if config.temperature is None else math.log(max(config.temperature, 1e-30))
        self.log_alpha = nn.Parameter(torch.tensor(start, device=generator.device, dtype=torch.float32))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains."""
        groups = {
            "critic": [*self.q1.parameters(), *self.q2.parameters()],
            "actor": list(self.actor.parameters()),
        }
        if self.value is not None:
            groups["value"] = list(self.value.parameters())
        if self.config.temperature is None:
            groups["alpha"] = [self.log_alpha]
        return groups

    def min_q(self, obs: Tensor, act: Tensor, condition: Tensor) -> Tensor:
        """min(Q1, Q2): (B, N, 1), without gradient in their parameters."""
        x = with_condition(condition, obs, act)
        return torch.minimum(self.q1(x, frozen=True), self.q2(x, frozen=True)).float()

    @torch.no_grad()
    def target(self, batch: Batch, condition: Tensor, noise: Tensor, heads: Tensor | None = None) -> Tensor:
        """y (B, N, 1) of the critic; see the head of this page. noise (B, N, A) draws a'."""
        if self.value is not None:
            beyond = self.targets[0](with_condition(condition, batch.next_obs)).float()
        else:
            mean, log_std = self.actor(batch.next_obs, condition, heads)
            act, log_prob = tanh_gaussian(mean, log_std, noise)
            x = with_condition(condition, batch.next_obs, act)
            least = torch.minimum(self.targets[0](x), self.targets[1](x)).float()
            beyond = least - self.log_alpha.exp() * log_prob
        return self.config.reward_scale * batch.reward + self.gamma * (1 - batch.terminated) * beyond

    def critic_loss(self, batch: Batch, condition: Tensor, target: Tensor) -> Tensor:
        """mean (Q1 - y)^2 + mean (Q2 - y)^2; differentiable in the condition, through which z is learned."""
        x = with_condition(condition, batch.obs, batch.act)
        return mse_loss(self.q1(x).float(), target) + mse_loss(self.q2(x).float(), target)

    def step(
        self,
        optimizers: Optimizers,
        batch: Batch,
        condition: Tensor,
        noise: Tensor,
        *,
        heads: Tensor | None = None,
        extra_loss: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One gradient step of every network: critic (and encoder), V, target, policy, alpha, in PEARL's order.

        Args:
            condition: (B, c); if it requires gradients, the critic's loss trains what it came from.
            noise: standard normal (2, B, N, A).
            heads: see `Actor.forward`; what they came from is trained with the policy.
            extra_loss: joins the critic's; PEARL's KL.

        Returns:
            scalars on the device.
        """
        config, fixed = self.config, condition.detach()
        with self.mixed_precision():
            # critic and encoder
            target = self.target(batch, fixed, noise[0], heads)
            critic_loss = self.critic_loss(batch, condition, target)
            optimizers.step("critic", critic_loss if extra_loss is None else critic_loss + extra_loss)

            # a~ ~ pi(s), and Q after its update
            mean, log_std = self.actor(batch.obs, fixed, heads)
            act, log_prob = tanh_gaussian(mean, log_std, noise[1])
            q = self.min_q(batch.obs, act, fixed)
            alpha = self.log_alpha.detach().exp()
            soft_value = (q - alpha * log_prob).detach()

            if self.value is not None:
                v = self.value(with_condition(fixed, batch.obs)).float()
                optimizers.step("value", mse_loss(v, soft_value))
            self.follow()

            actor_loss = (alpha * log_prob - q).mean()
            penalty = config.mean_penalty * mean.square().mean()
            penalty = penalty + config.log_std_penalty * log_std.square().mean()
            optimizers.step("actor", actor_loss + penalty)
        if config.temperature is None:
            # J_alpha = log alpha (-log pi - H_T), H_T = -A
            entropy_gap = (-log_prob + self.act_size).detach()
            own = entropy_gap.mean(1, keepdim=True) if self.log_alpha.dim() else entropy_gap.mean()
            optimizers.step("alpha", (self.log_alpha * own).mean())
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "log_prob": log_prob.detach().mean(),
            "alpha": alpha,
        }

    @torch.no_grad()
    def follow(self) -> None:
        """target <- (1 - tau) target + tau network."""
        targets: list[Tensor] = list(self.targets.parameters())
        sources: list[Tensor] = list(self.followed.parameters())
        torch._foreach_lerp_(targets, sources, self.config.tau)

    def mixed_precision(self) -> AbstractContextManager[object]:
        """Matrix products in the configured precision."""
        enabled, device = self.config.precision == "bfloat16", self.log_alpha.device.type
        # no cache: it would keep the weights of Q from before their update
        return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)


def stacked(agents: Sequence[Sac]) -> Sac:
    """Agents of one configuration as one whose tasks have networks and temperatures of their own: (B, ...).

    Its losses are means over tasks: train it with `Optimizers(..., num_agents=B)`, and every task's step is that of
    its agent alone.
    """
    together = deepcopy(agents[0])
    with torch.no_grad():
        for name, parameter in together.named_parameters():
            parameter.data = torch.stack([agent.get_parameter(name) for agent in agents])
    together.log_alpha.data = together.log_alpha.data[:, None, None]
    return together


class Optimizers:
    """One Adam for each group of parameters. Where gradient steps are recorded, its learning rate is a tensor, which
    changes in place."""

    def __init__(
        self, groups: dict[str, list[nn.Parameter]], learning_rate: float, *, num_agents: int = 1
    ) -> None:
        """num_agents: whose own parameters a loss is the mean of; each is given the gradient of its own loss."""
        self.groups, self.num_agents, self._learning_rate = groups, num_agents, learning_rate
        self.adam: dict[str, torch.optim.Adam] = {}
        for name, parameters in groups.items():
            device = parameters[0].device
            records = device.type in RECORDERS
            self.adam[name] = torch.optim.Adam(parameters, learning_rate, fused=True, capturable=records)
            if records:
                rate = torch.full((), learning_rate, device=device, dtype=torch.float32)
                self.adam[name].param_groups[0]["lr"] = rate
        self._captured = CapturedSteps()

    def renewed(self, groups: dict[str, list[nn.Parameter]]) -> Optimizers:
        """The same, with their moments, for the same parameters where these are now."""
        new = Optimizers(groups, self._learning_rate, num_agents=self.num_agents)
        new.load_state_dict(self.state_dict())
        return new

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of all groups, from now on."""
        self._learning_rate = learning_rate
        for adam in self.adam.values():
            for group in adam.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(learning_rate)
                else:
                    group["lr"] = learning_rate

    def step(self, name: str, loss: Tensor) -> None:
        """One step of a group down its own gradient; no other gradient is computed or kept."""
        parameters = self.groups[name]
        loss = loss if self.num_agents == 1 else self.num_agents * loss
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient.contiguous()  # the fused kernel reads memory, not strides
        self.adam[name].step()

    def captured(
        self, name: str, module: nn.Module, step: Callable[..., dict[str, Tensor]], *inputs: Tensor
    ) -> dict[str, Tensor]:
        """step(*inputs), gradient steps on groups of the module, see `policy_opt.capture.CapturedSteps`."""
        return self._captured(name, module, self.adam.values(), step, *inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and counts as tensors by name."""
        return {
            f"{name}.{i}.{kind}": value
            for name, adam in self.adam.items()
            for i, moments in adam.state_dict()["state"].items()
            for kind, value in moments.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`; groups without a step yet have none."""
        for name, adam in self.adam.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                group, i, kind = key.rsplit(".", 2)
                if group == name:
                    state.setdefault(int(i), {})[kind] = value
            adam.load_state_dict({**adam.state_dict(), "state": state})
