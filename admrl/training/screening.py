"""Screening in the model: which tasks would go wrong, without real samples.

All candidates are solved zero-shot in one batch in the present model; then the same policies run in each member of
the ensemble apart. Two scores (`SearchConfig.screen_by`; docs/search.md says how well each foretells a gap):

    return           minus the mean return over members: tasks of low return first, as in RoML, also those that pay
                     little whatever one does
    disagreement     spread + optimism: where members disagree about a return, the model knows least about it
        spread       standard deviation of the return over members
        optimism     return in the model that trained the policy (the mean over members), minus that of the worst one

Optionally, the best few candidates are corrected by one real episode each (|model's return - real return| is added to
the score; the episode joins the data and is counted), and the chosen candidate is moved up the gradient of its
score with its policy held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig
from admrl.jobs.reporter import Reporter, Silent
from admrl.search.base import project_unit, unit_scale
from admrl.solving.adaptation import Solution, zero_shot
from admrl.solving.rollouts import episode_returns, real_rollout, report_unstable, virtual_rollout
from admrl.solving.samples import SampleCounts
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily
from task_families.rollout import Rollout
from task_families.simulator import spawn_generators

POLISH_STEP = 0.05  # unit coordinates


@dataclass(frozen=True, eq=False)
class Screening:
    """What the ensemble says about the policies of C candidates; psi and returns are on the CPU."""

    psi: Tensor  # (C, k)
    solution: Solution
    rollouts: tuple[
        Rollout, ...
    ]  # E of (C, N) lanes: the same policies, start states and noise in each member
    member_return: Tensor  # (C, E) undiscounted
    by: str  # the kind of score: `SearchConfig.screen_by`

    @property
    def spread(self) -> Tensor:
        """(C,) standard deviation over members."""
        return self.member_return.std(-1)

    @property
    def optimism(self) -> Tensor:
        """(C,) mean over members minus the worst member."""
        return self.member_return.mean(-1) - self.member_return.amin(-1)

    @property
    def score(self) -> Tensor:
        """(C,) larger where more is expected to go wrong; see the head of this page."""
        return self.spread + self.optimism if self.by == "disagreement" else -self.member_return.mean(-1)


def member_returns(family: TaskFamily, psi: Tensor, rollouts: tuple[Rollout, ...]) -> Tensor:
    """(C, E) mean undiscounted returns under the rewards of psi (C, k); differentiable in psi."""
    return torch.stack([episode_returns(family, psi, rollout).mean(-1) for rollout in rollouts], dim=1)


@torch.no_grad()
def screen(
    family: TaskFamily,
    model: DynamicsEnsemble,
    policy: GaussianPolicy,
    psi: Tensor,
    config: MetaTrainConfig,
    generators: list[torch.Generator],
    *,
    episodes_per_member: int = 4,
    reporter: Reporter | None = None,
    samples: SampleCounts | None = None,
    name: str = "screening",
) -> Screening:
    """Solve and judge C candidates in one batch, in the frozen model.

    Args:
        psi: (C, k)
        generators: one per candidate.
        episodes_per_member: that a policy's return in a member is averaged over.
        samples: what is drawn is added to it.
        name: of the phase that is reported.

    Raises:
        ValueError: disagreement of a model with a single member.
    """
    reporter, samples, search = reporter or Silent(), samples or SampleCounts(), config.search
    check_members(model, search.screen_by)
    virtual = replace(
        config.virtual,
        num_model_steps=0,
        num_policy_updates=search.num_screen_updates,
        num_samples=search.num_screen_samples,
        patience=None,
    )
    reporter.phase(f"{name} {len(psi)} tasks")
    solution = zero_shot(
        family, model, psi, policy, 1, virtual, generators, reporter=reporter, samples=samples
    )
    rollouts = []
    for member in range(model.num_members):
        twins = [torch.Generator(g.device).set_state(g.get_state()) for g in generators]
        rollouts.append(
            virtual_rollout(family, single_member(model, member), solution, episodes_per_member, twins)
        )
        samples.virtual += rollouts[-1].num_samples
        reporter.advance(real_samples=samples.real, virtual_samples=samples.virtual)
    returns = member_returns(family, solution.psi, tuple(rollouts)).cpu()
    return Screening(solution.psi.cpu(), solution, tuple(rollouts), returns, search.screen_by)


def check_members(model: DynamicsEnsemble, screen_by: str) -> None:
    """Refuse the disagreement of a single member."""
    if screen_by == "disagreement" and model.num_members < 2:
        raise ValueError(
            "config.search.screen_by: disagreement needs at least 2 members, and the model has 1; set "
            "`config.dynamics.num_members` to 3, or `config.search.screen_by` to return"
        )


def single_member(model: DynamicsEnsemble, member: int) -> DynamicsEnsemble:
    """A model that is one member of an ensemble."""
    alone = model.clone()
    alone.num_members = 1
    for tensor in alone.parameters():
        tensor.data = tensor.data[:, member : member + 1].clone()
    return alone


def climb_score(
    family: TaskFamily, screening: Screening, row: int, num_steps: int, step: float = POLISH_STEP
) -> Tensor:
    """A candidate, moved num_steps steps of that length (unit coordinates) up the gradient of its score: (1, k).

    The policy and its trajectories stay; only their rewards follow psi.
    """
    space, psi = family.box, screening.psi[row : row + 1]
    rollouts = tuple(rollout.tasks(slice(row, row + 1)) for rollout in screening.rollouts)
    for _ in range(num_steps):
        leaf = psi.detach().clone().requires_grad_()
        with torch.enable_grad():
            score = replace(screening, member_return=member_returns(family, leaf, rollouts)).score
            (slope,) = torch.autograd.grad(score.sum(), leaf)
        direction = slope * unit_scale(space).to(slope)
        norm = direction.norm()
        if not bool(norm > 0):  # flat, or not finite: it stays where it is
            break
        psi = space.from_unit(project_unit(space, space.to_unit(psi) + step * direction / norm))
    return psi.detach()


@dataclass
class ModelScreening:
    """The scorer and polisher of a `ScreenedSearch` in meta-training: the model as it is when it is asked."""

    family: TaskFamily
    learner: ModelLearner
    policy: GaussianPolicy
    config: MetaTrainConfig
    generator: torch.Generator
    num_threads: int
    reporter: Reporter
    samples: SampleCounts  # of the training
    name: Callable[[], str]
    latest: Screening | None = None

    def score(self, psi: Tensor) -> Tensor:
        """Candidates (C, k) -> (C,); see the head of this page."""
        generators = spawn_generators(self.generator, len(psi))
        screening = screen(
            self.family,
            self.learner.model,
            self.policy,
            psi,
            self.config,
            generators,
            reporter=self.reporter,
            samples=self.samples,
            name=self.name(),
        )
        self.latest = screening
        score = screening.score.clone()
        num = min(self.config.search.num_corrected, len(psi))
        if num:
            best = score.argsort(descending=True)[:num]
            score[best] += self._real_error(screening, best, [generators[i] for i in best.tolist()])
        return score

    def _real_error(self, screening: Screening, rows: Tensor, generators: list[torch.Generator]) -> Tensor:
        """|return in the model - return of one real episode| of some candidates; the episodes join the data."""
        rollout = real_rollout(
            self.family, screening.solution.tasks(rows), 1, generators, num_threads=self.num_threads
        )
        self.learner.add(rollout)
        report_unstable(rollout, self.reporter)
        self.samples.real += rollout.num_samples
        self.reporter.advance(real_samples=self.samples.real, virtual_samples=self.samples.virtual)
        real = episode_returns(self.family, screening.psi[rows], rollout)[:, 0].cpu()
        return (screening.member_return[rows].mean(-1) - real).abs()

    def polish(self, psi: Tensor) -> Tensor:
        """The chosen candidate (1, k), moved up its score."""
        if self.latest is None or not self.config.search.num_polish_steps:
            return psi
        row = int((self.latest.psi - psi.to(self.latest.psi)).abs().sum(-1).argmin())
        return climb_score(self.family, self.latest, row, self.config.search.num_polish_steps)
