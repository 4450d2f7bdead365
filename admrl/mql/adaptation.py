"""How MQL adapts to new tasks (MQL section 3.2 and Alg. 1), all of them at once, from the meta-trained weights.

    c(x)      what the meta-trained actor's GRU says before a transition x; with s, where `has_obs`
    f         logistic regression: snapshots of the training tasks against the task's own transitions
    lambda    1 - ESS of beta = exp(-f) on these snapshots, or a constant
    snap      num_snap_steps TD3 steps on the task's own transitions, all of them in each
    main      num_main_steps TD3 steps on the replay of the meta-training, weighted by beta, with
              lambda |theta - theta_meta|^2

The meta-trained weights are never written to, so that they need not be rolled back.

Differs from the paper: the penalty stands in the second phase alone, as released. A task has as many samples as it is
given; each adaptation begins at the meta-trained weights and uses all of them. Histories begin with zeros; the
released test began them with a random action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.mql.config import AdaptConfig, MqlConfig
from admrl.mql.networks import Agent, stacked
from admrl.mql.propensity import Propensity, effective_sample_size, fit_propensity
from admrl.mql.replay import Batch, Episodes, PooledReplay
from admrl.mql.td3 import Penalty, td3_step
from admrl.solving.sac import Optimizers


@dataclass(frozen=True, eq=False)
class OwnData:
    """Transitions of B new tasks."""

    episodes: Episodes  # of all tasks, one after the other
    index: Tensor  # (B, n) row numbers; a row that broke down is replaced by a sound one

    @classmethod
    def make(cls, rows: Tensor, position: Tensor, is_sound: Tensor, obs_size: int) -> OwnData:
        """Of rows (B, n, .), positions and soundness (B, n); see `rows_of`."""
        b, n = position.shape
        own = torch.where(is_sound, torch.arange(n), is_sound.int().argmax(1, keepdim=True))
        episodes = Episodes(rows.flatten(0, 1), position.flatten(), obs_size)
        return cls(episodes, own + n * torch.arange(b)[:, None])


@dataclass(frozen=True, eq=False)
class Adapted:
    """What an adaptation ends with."""

    agent: Agent  # weights (B, ...)
    propensity: Propensity
    ess: Tensor  # (B,)


def adapt(
    agent: Agent,
    replay: PooledReplay,
    own: OwnData,
    config: MqlConfig,
    generators: Sequence[torch.Generator],
) -> Adapted:
    """Agents of B tasks; see the head of this page.

    Args:
        agent: the meta-trained one, on the CPU.
        replay: wherever it is.
        generators: one per task.
    """
    td3, settings, num_tasks = config.td3, config.adapt, len(own.index)
    propensity, ess = _compare(agent, replay, own, config, generators)
    adapted = stacked([agent] * num_tasks)
    optimizers = Optimizers(adapted.parameter_groups(), settings.learning_rate, num_agents=num_tasks)

    def step(number: int, batch: Batch, **weighted: Any) -> None:
        moves_actor = number % td3.policy_delay == 0
        with torch.enable_grad():
            noise = _noise(batch, generators)
            td3_step(adapted, optimizers, batch, noise, moves_actor=moves_actor, **weighted)

    own_batch, device = own.episodes.batch(own.index, td3.history_length), own.index.device
    for k in range(settings.num_snap_steps):
        step(k + 1, own_batch)

    penalty, size = _penalty(agent, ess, settings), settings.batch_factor * td3.batch_size
    for k in range(settings.num_main_steps):
        index = torch.stack([replay.draw(size, config.replay_size, g) for g in generators])
        batch = replay.episodes.batch(index, td3.history_length).to(device)
        beta = propensity.weights(_features(agent, batch.obs, batch.history, settings), settings)
        weight = beta[..., None].to(batch.obs)
        step(settings.num_snap_steps + k + 1, batch, weight=weight, penalty=penalty)
    return Adapted(adapted, propensity, ess)


@torch.no_grad()
def _features(agent: Agent, obs: Tensor, history: Tensor, config: AdaptConfig) -> Tensor:
    """What the regression sees (B, N, d)."""
    context = agent.actor.context(history)
    return torch.cat([context, obs], dim=-1) if config.has_obs else context


def _compare(
    agent: Agent,
    replay: PooledReplay,
    own: OwnData,
    config: MqlConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Propensity, Tensor]:
    """The regression, and the ESS (B,) of the snapshots' transitions that were in it."""
    settings, length, num = config.adapt, config.td3.history_length, own.index.shape[1]
    snapshot = replay.snapshot(settings.num_snapshot)
    drawn = torch.stack([snapshot[torch.randint(len(snapshot), (num,), generator=g)] for g in generators])
    of_meta, of_task = (
        _features(agent, batch.obs, batch.history, settings)
        for batch in (
            replay.episodes.batch(drawn, length).to(own.index.device),
            own.episodes.batch(own.index, length),
        )
    )
    propensity = fit_propensity(of_meta, of_task, settings.inverse_penalty)
    return propensity, effective_sample_size(propensity.weights(of_meta, settings))


def _penalty(agent: Agent, ess: Tensor, config: AdaptConfig) -> Penalty:
    proximity = 1 - ess if config.proximity == "ess" else torch.full_like(ess, config.constant_proximity)
    anchor = {
        name: [p.detach().clone() for p in parameters]
        for name, parameters in agent.parameter_groups().items()
    }
    return Penalty(proximity.float(), anchor)


def _noise(batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
    """Of the target actions (B, N, A), each task's from its own generator."""
    shape = batch.act.shape[1:]
    return torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])
