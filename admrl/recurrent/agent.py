"""RecurrentAgent: a GRU over what happened, a policy and a value on its state; Memory: what it carries.

    x_t = [o_t, a_{t-1}, r_{t-1}, d_{t-1}]         a, r, d = 0 at the first step of a trial      (Duan et al., 2.2)
    h_t = GRU(x_t, h_{t-1})                        h = 0 before a trial
    pi(. | h_t) = head(W h_t + b),  V(h_t) = value_scale (w h_t + c)

d_{t-1} says that o_t begins an episode; the memory lasts over episodes. a is in units of the policy, o and r are not
normalised, as released.

Shapes: M tasks, N lanes, T steps, B = M N trials, H units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from admrl.devices.transfer import on_device
from admrl.recurrent.config import RecurrentConfig
from admrl.recurrent.heads import head_of
from admrl.solving.sac import uniform
from task_families.family import TaskFamily
from task_families.rollout import Rollout

POLICY_RANGE = (
    0.01  # first weights of the policy's output, in units of the others': all choices are alike [ours]
)


@dataclass(frozen=True, eq=False)
class Memory:
    """The state of B lanes between two steps: h_{t-1}, a_{t-1}, r_{t-1}, d_{t-1}. Never changed in place."""

    hidden: Tensor  # (B, H)
    act: Tensor  # (B, A) in units of the policy
    reward: Tensor  # (B,)
    ended: Tensor  # (B,) 1 where an episode has just ended

    def repeated(self, num_lanes: int) -> Memory:
        """Each row for so many lanes: (M, .) -> (M num_lanes, .)."""
        return Memory(*(getattr(self, f.name).repeat_interleave(num_lanes, 0) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Sequence:
    """T steps of B lanes, time first, as the network reads them."""

    inputs: Tensor  # x (T, B, I)
    act: Tensor  # (T, B, A) in units of the policy
    reward: Tensor  # (T, B), 0 where the simulation broke down
    ended: Tensor  # (T, B) bool
    sound: Tensor  # (T, B) bool, False where the simulation broke down

    def to(self, device: torch.device) -> Sequence:
        """The same on a device, by few copies."""
        return Sequence(**on_device(vars(self), device))


class RecurrentAgent(nn.Module):
    """See the head of this page."""

    value_scale: Tensor  # () unit of the value head; the training keeps it near the spread of returns

    def __init__(self, family: TaskFamily, config: RecurrentConfig, generator: torch.Generator) -> None:
        """First weights U(+-1/sqrt H); of the policy's output `POLICY_RANGE` times as large; no output biases."""
        super().__init__()
        self.config, size, act_size = config, config.hidden_size, family.act_size
        self.gamma = family.gamma if config.gamma is None else config.gamma
        self.head = head_of(family, config.action_scale)
        with torch.device("meta"):  # torch would draw first weights from its global generator
            self.gru = nn.GRU(family.obs_size + act_size + 2, size, dtype=torch.float32)
            self.policy = nn.Linear(size, act_size, dtype=torch.float32)
            self.value = nn.Linear(size, 1, dtype=torch.float32)
        for layer in (self.gru, self.policy, self.value):
            layer.to_empty(device=generator.device)
        bound = 1 / math.sqrt(size)
        for weight in self.gru.parameters():
            uniform(weight, bound, generator)
        uniform(self.policy.weight, POLICY_RANGE * bound, generator)
        uniform(self.value.weight, bound, generator)
        nn.init.zeros_(self.policy.bias)
        nn.init.zeros_(self.value.bias)
        self.register_buffer("value_scale", torch.ones((), dtype=torch.float32))

    def empty_memory(self, num_lanes: int) -> Memory:
        """Of the beginning of a trial."""
        zeros = self.value_scale.new_zeros
        return Memory(
            zeros(num_lanes, self.config.hidden_size),
            zeros(num_lanes, self.policy.out_features),
            zeros(num_lanes),
            zeros(num_lanes),
        )

    def step(self, obs: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """h_t (B, H) and the policy's output (B, A) at observations (B, S)."""
        x = torch.cat([obs, memory.act, memory.reward[:, None], memory.ended[:, None]], dim=-1)
        weight_x, weight_h, bias_x, bias_h = self.gru.all_weights[0]
        hidden = torch.gru_cell(x, memory.hidden, weight_x, weight_h, bias_x, bias_h)
        return hidden, self.policy(hidden)

    def unroll(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """h_1 ... h_T (T, B, H) of inputs x (T, B, I) from h_0 (B, H)."""
        states: Tensor = self.gru(inputs, hidden[None].contiguous())[0]
        return states

    def outputs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's output (..., A) and V (...) of states (..., H)."""
        return self.policy(states), self.value_scale * self.value(states)[..., 0]

    def sequence(self, memory: Memory, rollout: Rollout, reward: Tensor) -> Sequence:
        """What lanes see who begin a rollout with a memory; rewards (M, N, T)."""
        sound = _time_first(rollout.next_obs.isfinite().all(-1))
        ended = _time_first(rollout.terminated | rollout.truncated)
        act = _time_first(self.head.to_unit(rollout.act))
        reward = torch.where(sound, _time_first(reward), 0.0)
        before = (
            torch.cat([memory.act[None], act[:-1]]),
            torch.cat([memory.reward[None], reward[:-1]])[..., None],
            torch.cat([memory.ended[None], ended[:-1].to(reward)])[..., None],
        )
        inputs = torch.cat([_time_first(rollout.obs), *before], dim=-1)
        return Sequence(inputs, act, reward, ended, sound)

    def after(self, memory: Memory, sequence: Sequence) -> Memory:
        """The memory at the end of a sequence that began with another one."""
        hidden = self.unroll(sequence.inputs, memory.hidden)[-1]
        last = (sequence.act[-1], sequence.reward[-1], sequence.ended[-1].to(hidden))
        return Memory(hidden, *last)


def joined(parts: Iterable[Sequence]) -> Sequence:
    """Sequences one after the other, as one."""
    columns = zip(*([getattr(part, f.name) for f in fields(Sequence)] for part in parts), strict=True)
    return Sequence(*(torch.cat(column) for column in columns))


def _time_first(x: Tensor) -> Tensor:
    """(M, N, T, ...) -> (T, M N, ...)"""
    return x.flatten(0, 1).movedim(1, 0)
