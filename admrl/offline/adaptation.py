"""MACAW's inner step and what its outer update differentiates (Mitchell et al. 2021, Alg. 1).

    phi'   = phi - eta_1 o grad L_V(phi, D_tr)                                                Alg. 1, line 5
    theta' = theta - alpha_1 o grad [L_AWR(theta, A^) + lambda L_ADV(theta, A^)](D_tr)        line 6
             A^ = G - V_phi'(s)
    outer:   mean over tasks of L_V(phi', D_ts), and of L_AWR(theta', A^), A^ = G - V_phi'(s) on D_ts     lines 8, 9

eta_1 and alpha_1 are softplus of a learned number for each tensor, lambda softplus of another. One task a function;
`torch.func.vmap` makes it M. The outer losses are differentiated through the inner step (second order).

G is the Monte-Carlo return to go. Where an episode was cut, not terminated, gamma^(T-t) V(s_T) is added to it, as
released: in line 5 nothing, in line 8 by a target network 0.9 phi + 0.1 phi', and in A^ by phi' itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, func
from torch.nn.functional import softplus

from admrl.offline.buffers import Batch
from admrl.offline.losses import advantage_loss, awr_loss, awr_weights, value_loss
from admrl.offline.networks import Head, Params, TransformNet


class MetaParameters(NamedTuple):
    """Everything that is learned, without axes of tasks."""

    value: Params  # phi
    policy: Params  # theta
    value_rates: Params  # softplus of each is the step size of the tensor of that name
    policy_rates: Params
    advantage_weight: Tensor  # softplus of it is lambda


class Adapted(NamedTuple):
    """Of one task."""

    value: Params  # phi'
    target: Params  # of the target network, a constant
    policy: Params  # theta'


@dataclass(frozen=True)
class Macaw:
    """Networks and constants of the losses; see the head of this page."""

    value: TransformNet
    policy: TransformNet
    head: Head
    temperature: float
    max_weight: float
    target_keep: float
    """Share of phi in the target network; the rest is of phi'."""

    def values(self, params: Params, obs: Tensor) -> Tensor:
        """V: (R, S) -> (R,)"""
        return self.value.output(self.value.layers(params), obs)[:, 0]

    def target(self, params: Params, batch: Batch) -> Tensor:
        """G + gamma^(T-t) V(s_T), the latter where the episode was cut: (R,)."""
        return batch.to_go + batch.last_discount * self.values(params, batch.last_obs)

    def advantage(self, value: Params, batch: Batch) -> Tensor:
        """A^ (R,), a constant of every derivative."""
        return (self.target(value, batch) - self.values(value, batch.obs)).detach()

    def policy_loss(
        self, policy: Params, batch: Batch, advantage: Tensor, advantage_weight: Tensor | None
    ) -> Tensor:
        """L_AWR, and lambda L_ADV with it where lambda is given."""
        layers = self.policy.layers(policy)
        hidden = self.policy.hidden(layers, batch.obs)
        log_prob = self.head.log_prob(self.policy.output_of(layers, hidden), batch.act)
        loss = awr_loss(log_prob, awr_weights(advantage, self.temperature, self.max_weight))
        if advantage_weight is None:
            return loss
        return loss + advantage_weight * advantage_loss(
            self.policy.head(layers, hidden, batch.act), advantage
        )

    def adapt(self, meta: MetaParameters, batch: Batch) -> Adapted:
        """The inner step of one task on D_tr."""
        # Alg. 1, line 5
        gradient = func.grad(lambda phi: value_loss(self.values(phi, batch.obs), batch.to_go))(meta.value)
        value = step(meta.value, meta.value_rates, gradient)
        keep = self.target_keep
        target = {name: (keep * meta.value[name] + (1 - keep) * value[name]).detach() for name in value}
        # line 6
        advantage, weight = self.advantage(value, batch), softplus(meta.advantage_weight)
        gradient = func.grad(lambda theta: self.policy_loss(theta, batch, advantage, weight))(meta.policy)
        return Adapted(value, target, step(meta.policy, meta.policy_rates, gradient))

    def outer_losses(self, meta: MetaParameters, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        """L_V(phi', D_ts) and L_AWR(theta', D_ts) of one task."""
        adapted = self.adapt(meta, inner)
        values = self.values(adapted.value, outer.obs)
        of_value = value_loss(values, self.target(adapted.target, outer).detach())  # line 8
        advantage = self.advantage(adapted.value, outer)
        return of_value, self.policy_loss(adapted.policy, outer, advantage, None)  # line 9


def step(params: Params, rates: Params, gradient: Params) -> Params:
    """params - softplus(rates) o gradient, a step size for each tensor."""
    return {name: params[name] - softplus(rates[name]) * gradient[name] for name in params}


def first_rates(params: Params, rate: float) -> Params:
    """Numbers whose softplus is a step size."""
    like = next(iter(params.values()))
    return {name: like.new_tensor(inverse_softplus(rate)) for name in params}


def inverse_softplus(y: float) -> float:
    """x with softplus(x) = y > 0. (The released code starts from ln y, which is the same to 0.05 % at 1e-3.)"""
    return y + math.log(-math.expm1(-y))
