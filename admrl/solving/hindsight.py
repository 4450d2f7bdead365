"""Hindsight: what the real episodes of a training say about tasks that they were not collected for.

No episode stores rewards, so the return of every stored policy *under any psi* is known without a new sample, and

    max over policies p of  E[return of p under psi]  <=  A*(psi)

The largest of noisy means is too large. Therefore the bound is cross-fitted: a policy's episodes are dealt into two
halves in turn; the policy is chosen by one half and its return is taken from the other, both ways round:

    bound = (mean of half 2 of the best on half 1 + mean of half 1 of the best on half 2) / 2

Given the choice, that is an unbiased return of a stored policy, so its expectation is at most A*(psi), however many
policies there are, as far as policies and psi do not depend on those episodes (later policies of a training learned
from earlier ones' episodes). Policies with a single episode do not count. Shapes: M tasks, n episodes, P policies.

(Regret of a level by its own best return so far: MaxMC of robust PLR, Jiang et al. 2021, "Replay-guided adversarial
environment design". Here every policy counts for every task, because rewards can be recomputed.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.dataset import TransitionData
from task_families.family import TaskFamily

ROWS_AT_ONCE = 500_000  # rewards that are computed together
PRIOR_DEGREES = (
    4  # a policy's variance is moderated by that of all, with the weight of so many degrees of freedom
)


@dataclass(frozen=True, eq=False)
class Stored:
    """Returns of stored episodes under M tasks."""

    returns: Tensor  # (M, n) undiscounted, float64
    policy: Tensor  # (n,) which of P policies made each, 0 to P - 1
    number: Tensor  # (P,) the policies' numbers in the data, ascending

    @property
    def rank(self) -> Tensor:
        """(n,) each episode's place among those of its policy, from 0."""
        order = self.policy.argsort(stable=True)
        count = torch.bincount(self.policy, minlength=len(self.number))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - (count.cumsum(0) - count)[self.policy[order]]
        return rank

    def means(self, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean return (M, P) of every policy over the chosen episodes (n,) bool, nan without any, and their number
        (P,)."""
        used = torch.ones_like(self.policy, dtype=torch.bool) if chosen is None else chosen
        count = torch.bincount(self.policy[used], minlength=len(self.number))
        total = self.returns.new_zeros(len(self.returns), len(self.number))
        total.index_add_(1, self.policy[used], self.returns[:, used])
        return total / count, count

    def variance(self) -> Tensor:
        """(M, P) of a policy's episodes, moderated by the variance of all (nan if no policy has two episodes)."""
        mean, count = self.means()
        square = (self.returns - mean[:, self.policy]).square()
        total = torch.zeros_like(mean).index_add_(1, self.policy, square)
        degrees = count - 1
        pooled = total.sum(1, keepdim=True) / degrees.sum()
        return (total + PRIOR_DEGREES * pooled) / (degrees + PRIOR_DEGREES)


@dataclass(frozen=True, eq=False)
class HindsightBound:
    """A lower bound of A*(psi) of M tasks; see the head of this page. nan where no policy has two episodes."""

    value: Tensor  # (M,)
    standard_error: Tensor  # (M,) of the chosen policies' returns
    policy: Tensor  # (M, 2) numbers of the policies that were chosen by each half; -1: none


def stored_returns(family: TaskFamily, data: TransitionData, psi: Tensor) -> Stored:
    """The returns of all stored episodes under tasks psi (M, k)."""
    number, start, length = data.episodes.unbind(1)
    numbers, policy = number.unique(return_inverse=True)
    of_row = torch.arange(len(length)).repeat_interleave(length)  # (R,)
    rows = torch.arange(len(of_row)) - (length.cumsum(0) - length)[of_row] + start[of_row]
    there = rows.to(data.obs.device)
    obs, act, next_obs = data.obs[there], data.act[there], data.next_obs[there]
    returns = torch.zeros(len(psi), len(length), dtype=torch.float64)
    at_once = max(1, ROWS_AT_ONCE // max(1, len(rows)))
    for first in range(0, len(psi), at_once):
        some = psi[first : first + at_once].to(obs)
        reward = family.reward(some[:, None], obs[None], act[None], next_obs[None])  # (m, R)
        returns[first : first + at_once].index_add_(1, of_row, reward.double().cpu())
    return Stored(returns, policy, numbers)


@dataclass(frozen=True, eq=False)
class _Choice:
    """What one half of the episodes chose, and the other half says of it."""

    known: Tensor  # (M,) some policy has episodes in both halves
    best: Tensor  # (M,) row of the chosen policy
    chosen_by: Tensor  # (M,) its mean on the half that chose it, and
    chosen_error: Tensor  # (M,) its standard error
    mean: Tensor  # (M,) on the other half, and
    error: Tensor  # (M,) its standard error


def _choices(stored: Stored, least: int = 1) -> list[_Choice]:
    """By the first half of every policy's episodes, and by the second; there is a policy. Those with fewer than
    `least` episodes in a half do not count."""
    rank = stored.rank
    halves = [stored.means(rank % 2 == half) for half in (0, 1)]
    enough = torch.minimum(halves[0][1], halves[1][1]) >= least
    both = (halves[0][0] + halves[1][0]).isfinite() & enough  # (M, P)
    variance, choices = stored.variance(), []
    for (by, by_count), (mean, count) in (halves, halves[::-1]):
        best = torch.where(both, by, -torch.inf).argmax(1)  # (M,)
        column = best[:, None]
        of_best = [x.gather(1, column)[:, 0] for x in (by, mean, variance)]
        errors = [(of_best[2] / n[best]).sqrt() for n in (by_count, count)]
        choices.append(_Choice(both.any(1), best, of_best[0], errors[0], of_best[1], errors[1]))
    return choices


def hindsight_bound(stored: Stored) -> HindsightBound:
    """The cross-fitted best return of a stored policy; see the head of this page."""
    num_tasks = len(stored.returns)
    if not len(stored.number):
        unknown = torch.full((num_tasks,), torch.nan, dtype=torch.float64)
        return HindsightBound(unknown, unknown, torch.full((num_tasks, 2), -1))
    first, second = _choices(stored)
    value = torch.where(first.known, (first.mean + second.mean) / 2, torch.nan)
    error = torch.where(first.known, torch.hypot(first.error, second.error) / 2, torch.nan)
    policy = [torch.where(c.known, stored.number[c.best], -1) for c in (first, second)]
    return HindsightBound(value, error, torch.stack(policy, dim=1))


@dataclass(frozen=True, eq=False)
class StoredCandidate:
    """The best stored policy as a candidate of A*, by the half of its episodes that chose it."""

    name: str
    worth: Tensor
    """(2, M) by what it competes: the mean on the half that chose it, less sqrt(2 ln P) standard errors, about what
    the luckiest of P gains. -inf: there is none."""
    episodes: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    """(2, M) of returns on the other half: what it counts for."""


def stored_candidate(name: str, stored: Stored) -> StoredCandidate | None:
    """Of stored episodes under M tasks; None if there are none. One episode in a half shows no spread, so that A*'s
    standard error would leave its noise out: a candidate has two in each."""
    if not len(stored.number):
        return None
    luck = math.sqrt(2 * math.log(len(stored.number)))
    rank, worth, episodes = stored.rank, [], []
    for half, choice in enumerate(_choices(stored, least=2)):
        score = choice.chosen_by - luck * choice.chosen_error
        worth.append(torch.where(choice.known, score, -torch.inf))
        others = [(stored.policy == best) & (rank % 2 != half) for best in choice.best]
        episodes.append([row[use] for row, use in zip(stored.returns, others, strict=True)])
    return StoredCandidate(name, torch.stack(worth), (tuple(episodes[0]), tuple(episodes[1])))
