"""The oracle: a run's own optimiser in the true simulator, for the parts of a gap.

    gap = (A* - A_oracle) + (A_oracle - A_n)        the optimisation's part, the model's part

A_oracle is the real return of a policy that had the same updates, samples per update, horizon, initial parameters and
noise as the run's zero-shot policy, but drew its samples in the simulator. No choice of training tasks can lower the
first part: with a perfect model, A_n would be A_oracle. (Minimax regret stalls where part of the regret is
irreducible: Beukman et al. 2024.)

Its samples are those of a ruler: they belong to no method, join no data, and are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from admrl.config.checks import check_lanes
from admrl.config.evaluation import EvaluationConfig, evaluation_virtual
from admrl.evaluation.adapter import AdapterError, Experience, Exploration, Policy, Tasks
from admrl.evaluation.evaluable_run import ModelSource
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.health import UpdateReport
from admrl.solving.rollouts import SolutionPolicy, continuation, moved, real_rollout
from admrl.solving.solution import Solution, new_solution
from admrl.solving.virtual_training import continued_update, new_lanes, policy_update


class OracleAdapter:
    """The oracle of a run as an adapter of the evaluator; it has no stages, and its updates count as "virtual"."""

    name, sees = "oracle", frozenset({"psi", "reward function"})

    def __init__(
        self, run: ModelSource, config: EvaluationConfig, *, reporter: Reporter | None = None
    ) -> None:
        """
        Args:
            run: whose optimiser, policies and normaliser of observations are used.
            config: updates and samples of the zero-shot training.

        Raises:
            ValueError: a sample count that does not fit the family's horizon and the members of the run's model, or a
                simulator that cannot roll out.
        """
        self._run, self._reporter = run, reporter or Silent()
        self._virtual = evaluation_virtual(run.virtual, config)
        members = run.learner.model.num_members
        self._num_lanes = check_lanes("config.num_samples", config.num_samples, run.family.horizon, members)
        check_simulator(run)

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: the training in the simulator."""
        run, virtual = self._run, self._virtual
        self._reporter.phase(f"in the simulator, {len(tasks)} policies")
        psi = run.family.box.check(tasks.psi, allow_outside=tasks.allow_outside)
        # random numbers come in the order of the zero-shot training's
        solution = new_solution(run.learner.model, psi, run.policy, virtual, tasks.generators)
        update = self._updates(solution, tasks.generators)
        for _ in range(virtual.num_policy_updates):
            solution, report = update(solution)
            if trouble := report.describe():
                self._reporter.event(f"in the simulator: {trouble}")
            self._reporter.advance(rejected=int((~report.accepted).sum()))
        self._solution = replace(solution, lanes=None)

    def _updates(
        self, solution: Solution, generators: Sequence[torch.Generator]
    ) -> Callable[[Solution], tuple[Solution, UpdateReport]]:
        """One update on steps in the simulator, whose lanes go on where those in the model would."""
        family, virtual, num_steps = self._run.family, self._virtual, self._virtual.steps_per_lane
        if num_steps is None:

            def on_episodes(now: Solution) -> tuple[Solution, UpdateReport]:
                rollout = real_rollout(family, now, self._num_lanes, generators)
                return policy_update(family, None, now, rollout, virtual)

            return on_episodes
        start = new_lanes(solution, family, self._run.learner.model.num_members, virtual)
        simulator = family.make_simulator(
            (len(solution.theta), start.starts.shape[1]), dtype=solution.theta.dtype, psi=solution.psi.cpu()
        )
        host, device = torch.device("cpu"), solution.theta.device

        def on_steps(now: Solution) -> tuple[Solution, UpdateReport]:
            lanes = now.lanes or start
            rollout = continuation(
                simulator, family, moved(now, host), lanes.to(host), num_steps, generators
            ).to(device)
            return continued_update(family, None, now, lanes, rollout, virtual)

        return on_steps

    def explore(self) -> Exploration:
        """See `Adapter`; there is nothing to explore."""
        raise AdapterError("oracle: its policies do not adapt; evaluate it with num_stages 0")

    def observe(self, experience: Experience) -> None:
        """See `Adapter`."""
        raise AdapterError("oracle: its policies do not adapt; evaluate it with num_stages 0")

    def adapted(self) -> Policy:
        """See `Adapter`."""
        return SolutionPolicy(replace(self._solution, theta=self._solution.theta.clone()))

    def spent(self) -> dict[str, Any]:
        """See `Adapter`: the simulator's samples that the updates drew, of each task."""
        return {"virtual": self._virtual.num_policy_updates * self._virtual.num_samples}

    def provenance(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {}


def check_simulator(run: ModelSource) -> None:
    """Refuse a family whose simulator cannot roll out, by one step of one lane.

    Raises:
        ValueError: says what went wrong.
    """
    family = run.family
    try:
        psi = family.first_psi[None]
        simulator = family.make_simulator((1, 1), psi=psi)
        states = simulator.start_states(1, torch.Generator().manual_seed(0))
        simulator.reset(torch.ones(1, 1, dtype=torch.bool), states)
        next_obs = simulator.step(torch.zeros(1, 1, family.act_size))
        if next_obs.shape != (1, 1, family.obs_size):
            raise ValueError(f"observations of shape {tuple(next_obs.shape)}")
    except Exception as error:
        raise ValueError(
            f"decompose: the simulator of {family.name} cannot roll out ({type(error).__name__}: {error!s:.200}), "
            "and the optimisation's part of a gap is measured by training in it; evaluate without `decompose`"
        ) from error
