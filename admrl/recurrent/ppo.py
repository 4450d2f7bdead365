"""Proximal policy optimisation of whole trials (Schulman et al. 2017), as RL2 uses it.

    maximise  mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) - c_v mean ((V - V_target) / value_scale)^2 + c_e mean H
    rho = pi(a_t | h_t) / pi_old(a_t | h_t),   h_t = GRU(x_t, h_{t-1}) from h_0 = 0: backpropagation through the trial

(PPO Eq. 7 and 9.) A are generalised advantages over the trial, which does not end where an episode does: the return
that counts is the trial's (Duan et al., section 2.2). There is no value beyond the trial. Means leave out steps of a
simulation that broke down. A minibatch is some of the trials, all steps of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from admrl.devices.transfer import on_host
from admrl.recurrent.agent import RecurrentAgent, Sequence
from admrl.recurrent.config import PpoConfig
from admrl.solving.sac import Optimizers
from policy_opt.advantage import gae

SMALLEST_STD = 1e-8
AGENT = "agent"  # the one group of the optimiser
STEP = "a gradient step of PPO"


@dataclass(frozen=True, eq=False)
class TrialBatch:
    """T steps of B trials, time first."""

    inputs: Tensor  # x (T, B, I)
    act: Tensor  # (T, B, A) in units of the policy
    log_prob: Tensor  # (T, B) of the policy that acted
    advantage: Tensor  # (T, B) mean 0, standard deviation 1
    target: Tensor  # (T, B) of V
    sound: Tensor  # (T, B) bool, steps that count

    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return self.inputs, self.act, self.log_prob, self.advantage, self.target, self.sound

    def trials(self, index: Tensor) -> TrialBatch:
        """Some of the trials."""
        return TrialBatch(*(x[:, index] for x in self.tensors()))


@dataclass(frozen=True)
class PpoReport:
    """Means over the minibatches of an update, each before its own step."""

    objective: float  # clipped
    kl: float  # mean of log pi_old - log pi, nats
    entropy: float  # nats
    value_error: float  # root mean square, in units of the return


@torch.no_grad()
def trial_batch(agent: RecurrentAgent, sequence: Sequence, gae_lambda: float) -> TrialBatch:
    """What an update learns from whole trials, which the agent itself has just acted in."""
    states = agent.unroll(sequence.inputs, agent.empty_memory(sequence.inputs.shape[1]).hidden)
    output, value = agent.outputs(states)
    end = torch.zeros_like(sequence.ended)
    end[-1] = True
    columns = (x.T for x in (sequence.reward, value, value.roll(-1, 0), end, end))
    advantage = gae(*columns, gamma=agent.gamma, gae_lambda=gae_lambda).T
    return TrialBatch(
        sequence.inputs,
        sequence.act,
        agent.head.distribution(output).log_prob(sequence.act),
        normalized(advantage, sequence.sound),
        advantage + value,
        sequence.sound,
    )


def normalized(advantage: Tensor, sound: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the sound steps of all trials (ProMP's RL2)."""
    kept = advantage[sound]
    return (advantage - kept.mean()) / (kept.std(correction=0) + SMALLEST_STD)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(rho A, clip(rho, 1 - eps, 1 + eps) A), elementwise (PPO Eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def ppo_objective(
    agent: RecurrentAgent, batch: TrialBatch, config: PpoConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of the head of this page, differentiable in the agent's parameters; and its parts."""
    states = agent.unroll(batch.inputs, agent.empty_memory(batch.inputs.shape[1]).hidden)
    output, value = agent.outputs(states)
    distribution = agent.head.distribution(output)
    log_prob = distribution.log_prob(batch.act)
    weight = batch.sound.to(value) / batch.sound.sum()

    def mean(x: Tensor) -> Tensor:
        return (weight * x).sum()

    surrogate = mean(clipped_surrogate(torch.exp(log_prob - batch.log_prob), batch.advantage, config.clip))
    error = mean((value - batch.target).square())
    entropy = mean(distribution.entropy())
    objective = (
        surrogate - config.value_weight * error / agent.value_scale.square() + config.entropy_weight * entropy
    )
    kl = mean(batch.log_prob - log_prob)
    return objective, {"objective": surrogate, "kl": kl, "entropy": entropy, "value_error": error}


def ppo_update(
    agent: RecurrentAgent,
    optimizers: Optimizers,
    batch: TrialBatch,
    config: PpoConfig,
    generator: torch.Generator,
) -> PpoReport:
    """num_epochs x num_minibatches gradient steps; the agent changes."""
    optimizer = optimizers.adam[AGENT]

    def step(*columns: Tensor) -> dict[str, Tensor]:
        objective, parts = ppo_objective(agent, TrialBatch(*columns), config)
        optimizer.zero_grad()
        (-objective).backward()
        clip_grad_norm_(agent.parameters(), config.max_grad_norm)
        optimizer.step()
        return {name: part.detach() for name, part in parts.items()}

    zero = torch.zeros((), dtype=torch.float64, device=batch.act.device)
    sums = dict.fromkeys(("objective", "kl", "entropy", "value_error"), zero)
    for _ in range(config.num_epochs):
        order = torch.randperm(batch.act.shape[1], generator=generator).to(batch.act.device)
        for index in order.tensor_split(config.num_minibatches):
            parts = optimizers.captured(STEP, agent, step, *batch.trials(index).tensors())
            for name, part in parts.items():
                sums[name] = sums[name] + part
    num_steps = config.num_epochs * config.num_minibatches
    means = {name: float(total) / num_steps for name, total in on_host(sums).items()}
    return PpoReport(**(means | {"value_error": means["value_error"] ** 0.5}))
