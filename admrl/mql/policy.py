"""HistoryPolicy: an actor that reads the newest tuples (a, r, s) of the episode in which it acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.evaluation.adapter import Listener
from admrl.mql.networks import Agent, ContextActor
from task_families.simulator import ActionBounds


@dataclass(frozen=True, eq=False)
class HistoryPolicy:
    """M policies; see `admrl.evaluation.adapter.Policy`."""

    network: ContextActor  # common weights, or those of every task (M, ...)
    history_length: int
    bounds: ActionBounds  # the network's -1 and 1
    deviation: float = 0.0
    """Standard deviation of the noise on unit actions, which are clipped to their limits."""

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Listener:
        """See `Policy.actor`."""
        return _HistoryActor(self, noise)


def policy_of(agent: Agent, deviation: float = 0.0) -> HistoryPolicy:
    """The agent's policies, of all tasks or of those that it is stacked for."""
    return HistoryPolicy(agent.actor, agent.config.history_length, agent.bounds, deviation)


class _HistoryActor:
    """One rollout's memory: a `Listener`."""

    def __init__(self, policy: HistoryPolicy, noise: Tensor) -> None:
        self._policy, self._noise = policy, noise
        self._history: Tensor | None = None  # (M, N, L, W)
        self._present: tuple[Tensor, Tensor] | None = (
            None  # unit action and observation of the step that runs
        )

    @torch.no_grad()
    def __call__(self, t: int, obs: Tensor) -> Tensor:
        policy, obs = self._policy, obs.float()
        if self._history is None:
            width = self._noise.shape[-1] + 1 + obs.shape[-1]
            self._history = obs.new_zeros(*obs.shape[:2], policy.history_length, width)
        unit = policy.network(obs, self._history)
        if policy.deviation:
            unit = (unit + policy.deviation * self._noise[t].to(unit)).clamp(-1, 1)
        self._present = unit, obs
        return policy.bounds.from_unit(unit)

    def hear(self, reward: Tensor, ended: Tensor) -> None:
        """See `Listener`: the step joins the history; an episode's end empties it."""
        assert self._history is not None and self._present is not None  # it acts before it hears
        unit, obs = self._present
        newest = torch.cat([unit, reward[..., None].to(unit), obs], dim=-1)
        joined = torch.cat([self._history[:, :, 1:], newest[:, :, None]], dim=2)
        self._history = torch.where(ended[..., None, None], 0.0, joined)
