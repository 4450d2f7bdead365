"""The gap of a run as a function of the task, for `find_worst`: zero-shot policies against a reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from admrl.config import EvaluationConfig
from admrl.evaluate_runs import run_reference
from admrl.evaluation import best_known_returns
from admrl.protocol import zero_shot_returns
from admrl.reporting import Reporter
from admrl.run_store import Run
from admrl.search.objective import scaled_gap
from admrl.test_sets import TaskList

CALLS_APART = 7919  # between the seeds of two calls


class RunGap:
    """psi (n, k) -> gaps (n, R) for R policy seeds; a `Gap` of admrl.search.worst.

    All n tasks are solved in one batch: zero-shot in the frozen model, and by the reference run, SLBO on these n
    tasks together. A* is the best known of both, chosen and scored on different episodes (`best_known_returns`).
    Every call has policies and episodes of its own, so that a task asked for twice says something new.
    """

    def __init__(
        self,
        run: Run,
        config: EvaluationConfig,
        seed: int,
        *,
        scale: str = "absolute",
        num_threads: int = 1,
        reporter: Reporter | None = None,
    ) -> None:
        self._run, self._config, self._seed, self._scale = run, config, seed, scale
        self._num_threads, self._reporter = num_threads, reporter
        self.num_calls = 0
        self.num_policies = 0
        self.real_samples = 0

    def __call__(self, psi: Tensor) -> Tensor:
        """See the class."""
        run, config, seed = self._run, self._config, self._seed + CALLS_APART * self.num_calls
        self.num_calls += 1
        episodes = zero_shot_returns(  # (R, n, N)
            run.family,
            run.state.learner,
            run.policy,
            psi,
            run.info.config.virtual,
            config,
            seed,
            num_threads=self._num_threads,
            reporter=self._reporter,
        )
        candidates = {str(run.path): episodes}
        reference = run_reference(
            [run],
            TaskList("search", psi),
            config,
            seed,
            num_threads=self._num_threads,
            reporter=self._reporter,
        )
        if reference is not None:
            candidates["reference: SLBO on these tasks"] = reference
            self.real_samples += len(psi) * config.num_reference_stages * config.num_reference_samples
            self.real_samples += reference.size * run.family.horizon
        self.num_policies += len(psi) * config.num_policy_seeds
        self.real_samples += episodes.size * run.family.horizon
        optimal = torch.from_numpy(best_known_returns(candidates)[0])[:, None]
        return scaled_gap(optimal, torch.from_numpy(episodes.mean(-1).T.copy()), self._scale)


def replay_command(run: Run, psi: Sequence[float], seed: int, num_updates: int, out: str) -> str:
    """What to type to film the zero-shot policy of a task."""
    task = " ".join(f"{x:.6g}" for x in psi)
    return f"admrl render --run {run.path} --psi {task} --seed {seed} --num-updates {num_updates} --out {out}"
