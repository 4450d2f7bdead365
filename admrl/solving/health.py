"""Numerical health: what can break, how it is seen, what it may touch, and what is then done.

Where, how it is seen -> confined to: what is done

    model fit, one step: loss or gradient not finite
        -> member of the ensemble: leaves that step out (`dynamics.fit`)
    model fit, as a whole: parameters not finite; held-out loss not finite, or above 10 standard deviations of
    one-step differences and above 10 times what it was
        -> member: restored, with its moments, to before the fit
    rollout in the model: prediction or reward not finite, or a state at the limit of 100 standard deviations
        -> lane: shorter horizon, it ends before and V takes over there
        -> task, if less than half of its steps are left: the update is skipped
    TRPO: gradient or step not finite, or no step passes the line search
        -> task: the update is rejected (`policy_opt.trpo`)
    value function: weights not finite
        -> task: the old weights stay
    rollout in the simulator: observation not finite
        -> lane: the episode ends there and is left out of data and mean returns
    task gradient: not finite
        -> task: its implicit part is left out; if the rest is not finite either, the next task is drawn at random
    anything about to be saved: model, moments, policy or value function not finite
        -> run: it stops at its last good checkpoint

Each is reported as an event, with numbers (rejected updates as a column of the metrics, because a converged policy
has many). Nothing that is not finite is ever replaced by a number, and what is not affected stays bit-identical to
a run without the fault.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from admrl.jobs.reporter import Reporter
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from dynamics.normalizer import MIN_STD
from task_families.rollout import Rollout

DIVERGED = (
    10.0  # held-out loss, in standard deviations of one-step differences, and relative to before the fit
)
CHECK_ROWS = 512  # held-out rows that the check looks at; all of them would cost a tenth of the fit
MIN_SHARE = 0.5  # of a task's steps that must be left for an update
MOVED = 10 * MIN_STD  # a coordinate with a smaller standard deviation never moved: its limit means nothing


@dataclass(frozen=True)
class UpdateReport:
    """What one policy update in the model did, per task (M,)."""

    returns: Tensor  # undiscounted, per episode, before the update; over the lanes that were not cut
    accepted: Tensor  # bool, by TRPO
    cut_lanes: Tensor  # lanes that ended early, because the model or the reward broke down
    skipped: Tensor  # bool, too little was left
    value_kept: Tensor  # bool, the fit of the value function was not finite

    @property
    def mean_return(self) -> float:
        """Mean over the tasks that have a return; nan if none has."""
        return float(self.returns[self.returns.isfinite()].mean())

    def on_host(self) -> UpdateReport:
        """The report on the CPU, by one copy."""
        if self.returns.device.type == "cpu":
            return self
        columns = [getattr(self, f.name) for f in fields(self)]
        rows = torch.stack([column.double() for column in columns]).cpu()
        return UpdateReport(*(row.to(column.dtype) for row, column in zip(rows, columns, strict=True)))

    def describe(self) -> str | None:
        """What went wrong, in a sentence, or None."""
        parts = []
        if lanes := int(self.cut_lanes.sum()):
            parts.append(f"{lanes} lanes broke down and were cut short")
        if skipped := int(self.skipped.sum()):
            parts.append(f"{skipped} updates skipped, too few steps were left")
        if kept := int(self.value_kept.sum()):
            parts.append(f"{kept} value functions were not finite and stay as they were")
        num_tasks = len(self.returns)
        return f"{'; '.join(parts)} (of {num_tasks} tasks)" if parts else None


def usable_steps(rollout: Rollout, reward: Tensor, model: DynamicsEnsemble | None, tasks: slice) -> Tensor:
    """Steps of a rollout that come before anything broke down in their episode: (M, N, T) bool.

    Args:
        reward: (M, N, T).
        model: that the rollout is of, whose states have limits; None: it is of the simulator.
        tasks: which of the model's tasks the rollout shows, where there is one model for each.
    """
    state = rollout.next_obs
    if model is None:
        within = state.isfinite().all(-1)
    else:
        moved = (model.obs_normalizer.std > MOVED)[:, None, None]  # (K, 1, 1, S)
        low, high = model.state_limits()
        low, high = torch.where(moved, low, -torch.inf), torch.where(moved, high, torch.inf)
        if model.num_models > 1:
            low, high = low[tasks], high[tasks]
        within = ((state > low) & (state < high)).all(-1)  # false where it is not finite
    broken = ~(within & reward.isfinite())
    count = broken.long().cumsum(-1)
    starts = torch.ones_like(broken)
    starts[..., 1:] = rollout.terminated[..., :-1]
    before_episode = torch.where(starts, count - broken.long(), 0).cummax(-1).values
    return count == before_episode


def cut(rollout: Rollout, usable: Tensor) -> Rollout:
    """The rollout with every lane's last usable step marked as truncated, so that V takes over there."""
    truncated = rollout.truncated.clone()
    ends_early = usable[..., :-1] & ~usable[..., 1:] & ~rollout.terminated[..., :-1]
    truncated[..., :-1] |= ends_early
    return Rollout(
        rollout.obs, rollout.act, rollout.next_obs, rollout.log_prob, rollout.terminated, truncated
    )


def fit_or_restore(learner: ModelLearner, num_steps: int, reporter: Reporter) -> float:
    """Fit the model (Alg. 2, line 3); members that diverged go back to where they were. The mean loss."""
    saved = learner.members()
    report = learner.fit(num_steps)
    if skipped := int(report.num_skipped.sum()):
        reporter.event(f"model: {skipped} optimiser steps of single members were not finite and left out")
    diverged = ~_finite_members(learner)
    after = learner.held_out_loss(CHECK_ROWS)  # (K, E); nan also if nothing is held out
    suspect = has_held_out(learner) & ~(after <= DIVERGED)
    if bool(suspect.any()):
        reached = learner.members()
        learner.restore_members(saved, torch.ones_like(suspect))
        before = learner.held_out_loss(CHECK_ROWS)
        learner.restore_members(reached, torch.ones_like(suspect))
        # a loss that was not finite before cannot be the fit's fault
        diverged = diverged | (suspect & before.isfinite() & ~(after <= DIVERGED * before))
    if bool(diverged.any()):
        learner.restore_members(saved, diverged)
        reporter.event(
            f"model: the fit diverged in {int(diverged.sum())} of {diverged.numel()} members (held-out loss "
            f"{float(after[diverged].max()):.3g}); they are back at where they were before it"
        )
    return float(report.loss.mean())


def has_held_out(learner: ModelLearner) -> bool:
    """Whether there is data to check the model on."""
    return all(len(d.starts(learner.config.num_horizon, held_out=True)) for d in learner.data)


def _finite_members(learner: ModelLearner) -> Tensor:
    """Members all of whose parameters are finite: (K, E)."""
    return torch.stack([p.detach().isfinite().all(-1).all(-1) for p in learner.model.parameters()]).all(0)
