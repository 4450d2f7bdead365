"""Probing: what the candidates of a population search are judged by.

All candidates are solved zero-shot in one batch, shortly, the model fitted meanwhile; each policy runs a few real
episodes, which join D and are counted. Three estimates of a gap (`SearchConfig.population_signal`):

    model-minus-real   return in the model - real return: what the model promises and the truth does not keep
    hindsight          best stored policy's return under the candidate's psi - real return (`admrl.solving.hindsight`)
    random             a random number: the candidates cost the same, and the choice among them is by chance
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.config.training import MetaTrainConfig
from admrl.jobs.reporter import Reporter
from admrl.solving.adaptation import zero_shot
from admrl.solving.hindsight import hindsight_bound, stored_returns
from admrl.solving.rollouts import episode_returns, real_rollout, report_unstable, virtual_rollout
from admrl.solving.solution import make_policy
from admrl.training.state import MetaState
from task_families.family import TaskFamily
from task_families.simulator import spawn_generators


@dataclass
class ModelProbing:
    """The prober of a `PopulationSearch` in meta-training: the model as it is when it is asked."""

    family: TaskFamily
    state: MetaState
    config: MetaTrainConfig
    num_threads: int
    reporter: Reporter

    def __call__(self, psi: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Estimated gaps (C,) of candidates (C, k), per episode; nan where nothing finite came of it.

        With their standard errors (C,), where the training may end by them.
        """
        generator, search = self.state.search_generator, self.config.search
        generators = spawn_generators(generator, len(psi))
        if not search.num_probe_episodes:
            return torch.rand(len(psi), generator=generator)
        in_model, real, (model_error, real_error) = self._returns(psi, generators)
        if search.population_signal == "random":
            return torch.where(real.isfinite(), torch.rand(len(psi), generator=generator), torch.nan)
        best, best_error = in_model, model_error
        if search.population_signal == "hindsight":
            bound = hindsight_bound(stored_returns(self.family, self.state.learner.data[0], psi))
            best, best_error = bound.value, bound.standard_error
        if search.min_gain is None:
            return best - real
        return best - real, torch.hypot(best_error, real_error)

    def _returns(
        self, psi: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Mean returns (C,) of the candidates' policies in the model and in the simulator, and their errors."""
        family, state, config = self.family, self.state, self.config
        learner, samples, search = state.learner, state.samples, config.search
        first = len(state.records) + 1
        self.reporter.phase(f"task {first}/{config.num_tasks}: probing {len(psi)} tasks")
        solution = zero_shot(
            family,
            learner.model,
            psi,
            make_policy(family, config),
            search.num_probe_iterations,
            replace(config.virtual, num_samples=search.num_probe_samples, patience=None),
            generators,
            learner=learner,
            reporter=self.reporter,
            samples=samples,
        )
        num_lanes = search.num_probe_samples // family.horizon
        in_model = virtual_rollout(family, learner.model, solution, num_lanes, generators)
        samples.virtual += in_model.num_samples
        real = real_rollout(
            family, solution, search.num_probe_episodes, generators, num_threads=self.num_threads
        )
        learner.add(real)
        report_unstable(real, self.reporter)
        samples.real += real.num_samples
        state.note_zero_shots(psi)
        self.reporter.advance(real_samples=samples.real, virtual_samples=samples.virtual)
        returns = [
            episode_returns(family, solution.psi, rollout).double().cpu() for rollout in (in_model, real)
        ]
        found = [torch.where(x.isfinite(), x, torch.nan).nanmean(1) for x in returns]
        return found[0], found[1], (standard_error(returns[0]), standard_error(returns[1]))


def standard_error(returns: Tensor) -> Tensor:
    """Of the mean of those of N returns (C, N) that are finite: (C,); nan where these are fewer than two."""
    known = returns.isfinite()
    num = known.sum(1).double()
    mean = torch.where(known, returns, 0.0).sum(1) / num
    square = torch.where(known, (returns - mean[:, None]).square(), 0.0).sum(1)
    return torch.where(num > 1, (square / (num - 1) / num).sqrt(), torch.nan)
