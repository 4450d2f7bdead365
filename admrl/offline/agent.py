"""MacawAgent: everything that is meta-learned, and policies of tasks as they act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, func, nn

from admrl.evaluation.adapter import Act
from admrl.offline.adaptation import Adapted, Macaw, MetaParameters, first_rates, inverse_softplus
from admrl.offline.behaviour import Recorder
from admrl.offline.buffers import ActionUnits, Batch
from admrl.offline.config import MacawConfig
from admrl.offline.networks import ChoiceHead, GaussianHead, Head, Layers, TransformNet
from task_families.family import TaskFamily


class MacawAgent(nn.Module):
    """phi, theta, their step sizes and lambda; and what it takes to adapt them."""

    def __init__(self, family: TaskFamily, config: MacawConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.gamma = family.gamma if config.gamma is None else config.gamma
        self.recorder = Recorder.of(family, config.sac, config.updates_per_sample)
        self.units: ActionUnits = self.recorder.units
        hidden, latent = config.hidden_sizes, config.latent_size
        head: Head = ChoiceHead() if family.picks_largest else GaussianHead(config.sigma)
        self.macaw = Macaw(
            value=TransformNet((family.obs_size, *hidden, 1), latent),
            policy=TransformNet(
                (family.obs_size, *hidden, family.act_size),
                latent,
                (hidden[-1] + family.act_size, config.head_size, 1),
            ),
            head=head,
            temperature=config.temperature,
            max_weight=config.max_weight,
            target_keep=config.target_keep,
        )
        value, policy = (net.init(generator) for net in (self.macaw.value, self.macaw.policy))
        self.value, self.policy = nn.ParameterDict(value), nn.ParameterDict(policy)
        self.value_rates = nn.ParameterDict(first_rates(value, config.inner_rate))
        self.policy_rates = nn.ParameterDict(first_rates(policy, config.inner_rate))
        weight = torch.tensor(inverse_softplus(config.advantage_weight), dtype=torch.float32)
        self.advantage_weight = nn.Parameter(weight)

    def meta(self) -> MetaParameters:
        """As `admrl.offline.adaptation` takes them."""
        return MetaParameters(
            value=dict(self.value.items()),
            policy=dict(self.policy.items()),
            value_rates=dict(self.value_rates.items()),
            policy_rates=dict(self.policy_rates.items()),
            advantage_weight=self.advantage_weight,
        )

    def outer_losses(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        """Of every task (B,), of V and of the policy, differentiable."""
        losses: tuple[Tensor, Tensor] = func.vmap(self.macaw.outer_losses, in_dims=(None, 0, 0))(
            self.meta(), inner, outer
        )
        return losses

    @torch.no_grad()
    def first_layers(self, num_tasks: int) -> Layers:
        """The policy of every task before adaptation (M, ...)."""
        layers = self.macaw.policy.layers(self.meta().policy)
        return {
            name: (w.expand(num_tasks, *w.shape).clone(), b.expand(num_tasks, *b.shape).clone())
            for name, (w, b) in layers.items()
        }

    @torch.no_grad()
    def adapted_layers(self, batch: Batch) -> Layers:
        """The policy of every task after an inner step on its batch (M, ...)."""

        def layers_of(meta: MetaParameters, one: Batch) -> Layers:
            adapted: Adapted = self.macaw.adapt(meta, one)
            return self.macaw.policy.layers(adapted.policy)

        found: Layers = func.vmap(layers_of, in_dims=(None, 0))(self.meta(), batch)
        return found

    def act_as(self, layers: Layers, *, is_stochastic: bool) -> MacawPolicy:
        """Policies of tasks (M, ...)."""
        return MacawPolicy(self.macaw.policy, self.macaw.head, layers, self.units, is_stochastic)


@dataclass(frozen=True, eq=False)
class MacawPolicy:
    """M policies; see `admrl.evaluation.adapter.Policy`."""

    net: TransformNet
    head: Head
    layers: Layers  # (M, ...)
    units: ActionUnits
    is_stochastic: bool
    """Otherwise the most likely action, as MACAW is scored."""

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""

        @torch.no_grad()
        def act(t: int, obs: Tensor) -> Tensor:
            output = self.net.output(self.layers, obs)
            unit = self.head.sample(output, noise[t]) if self.is_stochastic else self.head.most_likely(output)
            return self.units.back(unit)

        return act
