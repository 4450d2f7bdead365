"""A population of tasks: many candidates are tried cheaply each round, the worst distinct ones are trained on.

    candidates   fresh Sobol points; tasks just trained on; the worst of an archive of earlier candidates
    probe        an estimate of each candidate's gap, from a short solve and a few real episodes (`Prober`)
    choice       the worst ones at a least mutual distance, and a share of uniform ones
    the end      where the upper estimate of every candidate's gap is below what was asked for (`upper_gap`)

Estimates of an archived task are stale: the model has been trained since. A gap g that was measured a rounds ago, of
gaps with mean m and standard deviation s, is believed to be m + rho^a (g - m), give or take s sqrt(1 - rho^(2a)) (an
autoregressive process, rho = decay). Archived tasks are candidates again by the sum of both, and never chosen without
a new probe.

Related work: PAIRED (Dennis et al. 2020) maximises regret, estimated by a second agent; robust PLR (Jiang et al.
2021) replays levels by a regret that is bounded by their best return so far (MaxMC), mixed with staleness, and never
trains on levels that were not curated; ACCEL (Parker-Holder et al. 2022) edits the levels of high regret; RoML
(Greenberg et al. 2023) draws tasks towards the worst returns by the cross-entropy method. Here the estimate of choice
is what the learned *model* promises and the truth does not keep, because that is what training can mend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from admrl.search.base import Observations, Search, SobolPoints, no_tags, project_unit, unit_scale
from task_families.choices import whole_number
from task_families.task_space import TaskSpace

Prober = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""Candidates (C, k) -> estimated gaps (C,), in any unit; nan: not known. Or with their standard errors (C,)."""
UPPER = 1.645  # standard deviations: 95 % of a normal distribution lie below
SHARE_AGAIN = 6  # one candidate in so many was just trained on, and one comes from the archive
MERGE = 0.02  # embedded coordinates: tasks nearer than this are one entry of the archive
CAPACITY = 200  # entries of the archive


class PopulationSearch(Search):
    """See the head of this page. `prober` must be set before the second round, and is no part of the state.

    The first round, of which nothing can be known yet, is Sobol points.
    """

    follows_fallbacks = False
    added_state = frozenset({"upper"})

    def __init__(
        self,
        space: TaskSpace,
        generator: torch.Generator,
        first: Tensor | None = None,
        *,
        prober: Prober | None = None,
        num_candidates: int = 12,
        min_distance: float = 0.3,
        nominal_share: float = 0.2,
        decay: float = 0.7,
        polish_step: float | None = None,
    ) -> None:
        """
        Args:
            min_distance: between two tasks of a round, in unit coordinates; where candidates are too close together,
                it is halved until there are enough.
            nominal_share: of uniform tasks.
            decay: rho.
            polish_step: how far tasks that were just trained on are moved up their gradient, in unit coordinates;
                None: gradients are not used.

        Raises:
            ValueError: see `Search`; fewer than 3 candidates, a share or a decay outside [0, 1], a distance below
                0, a step that is not positive.
        """
        super().__init__(space, generator, first)
        self._num_candidates = whole_number("num_candidates", num_candidates, 3)
        for name, value in (("nominal_share", nominal_share), ("decay", decay)):
            if not 0 <= value <= 1:
                raise ValueError(f"PopulationSearch: expected {name} in [0, 1], got {value}")
        if not min_distance >= 0:
            raise ValueError(f"PopulationSearch: expected min_distance of 0 or more, got {min_distance}")
        if polish_step is not None and not polish_step > 0:
            raise ValueError(f"PopulationSearch: expected polish_step > 0, got {polish_step}")
        self.prober, self.uses_gradient = prober, polish_step is not None
        self._min_distance, self._share = min_distance, nominal_share
        self._decay, self._polish_step = decay, polish_step
        self._sobol = SobolPoints(space, generator)
        self._archive = torch.zeros(0, space.size, dtype=torch.float64)  # (A, k)
        self._gap = torch.zeros(0, dtype=torch.float64)  # (A,) as it was probed
        self._probed = torch.zeros(0, dtype=torch.long)  # (A,) round of the probe
        self._round, self._last = 0, 1  # of the probes; tasks of the last round
        self._upper = torch.full((), torch.nan, dtype=torch.float64)
        self.last_probe: tuple[Tensor, Tensor] | None = None
        """Candidates (C, k) and estimates (C,) of the latest choice; for display, no part of the state."""

    @property
    def num_starts(self) -> int:
        """Fresh points so far."""
        return int(self._sobol.state()[1])

    @property
    def upper(self) -> float | None:
        """`upper_gap` of the latest probing; None before the first, and where the prober states no errors."""
        return None if bool(self._upper.isnan()) else float(self._upper)

    def beliefs(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (A,) of the archived gaps today; see the head of this page."""
        if not len(self._gap):
            return self._gap, self._gap
        mean, spread = self._gap.mean(), self._gap.std(correction=0)
        kept = self._decay ** (self._round - self._probed).double()
        return mean + kept * (self._gap - mean), spread * (1 - kept.square()).sqrt()

    def candidates(self) -> Tensor:
        """(C, k) of the next round: just trained on, archived, fresh."""
        num_again = max(1, self._num_candidates // SHARE_AGAIN)
        recent = self._recent(num_again)
        chosen, (mean, spread) = list(recent), self.beliefs()
        for row in (mean + spread).argsort(descending=True, stable=True).tolist():
            if len(chosen) >= len(recent) + num_again:
                break
            if self._distance(self._archive[row], chosen) > MERGE:
                chosen.append(self._archive[row])
        fresh = self._sobol.draw(self._num_candidates - len(chosen))
        return torch.cat([task[None] for task in [*chosen, *fresh]])

    def _recent(self, num: int) -> Tensor:
        """The first told of the last round (num, k), moved up their gradients where these are used and known."""
        last = self.history[-self._last :][:num]
        if self._polish_step is None:
            return last.psi
        slope = last.gradient * unit_scale(self.space)
        norm = slope.norm(dim=-1, keepdim=True)
        step = torch.where(norm > 0, self._polish_step * slope / norm, 0.0)  # nan is not above 0
        return self.space.from_unit(project_unit(self.space, self.space.to_unit(last.psi) + step))

    def _distance(self, task: Tensor, others: list[Tensor]) -> float:
        """To the nearest of them, in embedded coordinates."""
        if not others:
            return torch.inf
        return float(torch.cdist(self.space.embed(task[None]), self.space.embed(torch.stack(others))).min())

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        if n > self._num_candidates:
            raise ValueError(
                f"n: expected at most {self._num_candidates} tasks, as many as there are candidates, got {n}"
            )
        if not len(self.history):
            psi = self._sobol.draw(n)
        else:
            before = self._sobol.state(), self.generator.get_state()
            try:
                psi = self._probed_and_uniform(n)
            except BaseException:
                self._sobol.load(before[0])
                self.generator.set_state(before[1])
                raise
        self._last = n
        return psi, no_tags(n)

    def _probed_and_uniform(self, n: int) -> Tensor:
        """n tasks (n, k): the worst candidates, the worst first, and the share of uniform ones."""
        num_uniform = int(self._share * n + float(torch.rand((), generator=self.generator)))
        tasks = [self._choose(n - num_uniform)] if num_uniform < n else []
        if num_uniform:
            tasks.append(self.space.sample(num_uniform, "uniform", self.generator).double())
        return torch.cat(tasks)

    def _choose(self, n: int) -> Tensor:
        """The n worst distinct candidates of one probing (n, k)."""
        if self.prober is None:
            raise ValueError(
                "PopulationSearch: prober is not set; pass prober=, a function of candidates (C, k) that returns the "
                "estimated gaps (C,)"
            )
        psi = self.candidates().to(self.space.low.dtype)
        answer = self.prober(psi)
        gap, error = answer if isinstance(answer, tuple) else (answer, None)
        gap = torch.as_tensor(gap).detach().double()
        for name, found in (("gaps", gap), ("standard errors", error)):
            if found is not None and found.shape != (len(psi),):
                raise ValueError(f"prober: expected ({len(psi)},) {name}, got {tuple(found.shape)}")
        known = gap.isfinite()
        if int(known.sum()) < n:
            raise ValueError(
                f"prober: {int((~known).sum())} of {len(psi)} candidates have no finite return; expected {n} others"
            )
        self.last_probe = (psi, gap)
        self._upper = torch.full_like(self._upper, torch.nan if error is None else upper_gap(gap, error))
        self._round += 1
        psi, gap = psi[known].double(), gap[known]
        self._store(psi, gap)
        return psi[self._worst_apart(psi, gap, n)]

    def _worst_apart(self, psi: Tensor, gap: Tensor, n: int) -> list[int]:
        """Rows of the n worst at a mutual distance; it is halved until there are so many."""
        order, least = gap.argsort(descending=True, stable=True).tolist(), self._min_distance
        while True:
            rows: list[int] = []
            for row in order:
                if len(rows) < n and self._distance(psi[row], [psi[r] for r in rows]) > least:
                    rows.append(row)
            if len(rows) == n:
                return rows
            least = (
                least / 2 if least > 1e-6 else -1.0
            )  # then equal tasks, too: a finite set may have no others

    def _store(self, psi: Tensor, gap: Tensor) -> None:
        """New estimates join the archive, in place of older ones of the same tasks; the least believed leave."""
        if len(self._archive):
            near = torch.cdist(self.space.embed(self._archive), self.space.embed(psi)).amin(1) <= MERGE
            self._archive, self._gap = self._archive[~near], self._gap[~near]
            self._probed = self._probed[~near]
        now = torch.full((len(gap),), self._round)
        self._archive, self._gap = torch.cat([self._archive, psi]), torch.cat([self._gap, gap])
        self._probed = torch.cat([self._probed, now])
        mean, spread = self.beliefs()
        stay = (mean + spread).argsort(descending=True, stable=True)[:CAPACITY].sort().values
        self._archive, self._gap, self._probed = self._archive[stay], self._gap[stay], self._probed[stay]

    def _learn(self, told: Observations, tags: Tensor) -> None:
        """What was told makes tasks candidates again; how large their gaps are now, the next probe says."""

    def _state(self) -> dict[str, Tensor]:
        return {
            "sobol": self._sobol.state(),
            "archive": self._archive,
            "gap": self._gap,
            "probed": self._probed,
            "round": torch.tensor([self._round, self._last]),
            "upper": self._upper,
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._sobol.load(state["sobol"])
        self._archive, self._gap = state["archive"], state["gap"]
        self._probed, (self._round, self._last) = state["probed"], state["round"].tolist()
        self._upper = state["upper"]


def upper_gap(gap: Tensor, error: Tensor) -> float:
    """The largest upper estimate of a candidate's gap, above what noise explains.

    The largest of C estimates is large by luck, too, so each is drawn to their mean by as much as their spread is
    noise (Morris 1983):

        g_c = m + t_c + noise of variance s^2,  t_c of variance t^2 = max(0, var(g) - s^2),  B = s^2 / (s^2 + t^2)
        t_c given g:  m + (1 - B) (g_c - m)  give or take the root of  t^2 B + B^2 (s^2 + t^2) / C

    s^2 is the mean of the squared errors, because few episodes know little of their own. If everything is noise, this
    is m + 1.645 s / sqrt(C); without noise, the largest estimate. A single outlier is drawn in by B (g_c - m), too.

    Args:
        gap, error: (C,) estimates and their standard errors; not finite: not known, left out.

    Returns:
        The largest one-sided 95 % bound; nan if fewer than two candidates are known.
    """
    known = gap.isfinite() & error.isfinite()
    gap, noise = gap[known].double(), error[known].double().square().mean()
    if len(gap) < 2:
        return math.nan
    spread = (gap.var() - noise).clamp_min(0.0)
    total = noise + spread
    share = torch.where(total > 0, noise / total, 0.0)  # B
    believed = gap.mean() + (1 - share) * (gap - gap.mean())
    variance = spread * share + share.square() * total / len(gap)
    return float(believed.max() + UPPER * variance.sqrt())
