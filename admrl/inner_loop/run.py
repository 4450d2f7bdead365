"""The run folder of an inner-loop method: `"kind": "inner-loop"` in config.json.

A checkpoint holds theta (and alpha) and Adam's state; no data outlives an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Adapter
from admrl.inner_loop.config import TITLES, InnerLoopConfig, check_budget, check_inner_loop
from admrl.inner_loop.training import InnerLoopState, new_inner_loop
from admrl.jobs.reporter import Reporter
from admrl.methods.run import MethodInfo, MethodRun
from admrl.runs.config_file import INNER_LOOP
from admrl.solving.solution_file import dump_moments, dump_weights, load_moments, load_weights
from task_families.family import TaskFamily

OPTIMIZER = "optimizer"  # of one parameter, so that no name follows


@dataclass(frozen=True)
class InnerLoopInfo(MethodInfo):
    """What a run was asked to do."""

    config: InnerLoopConfig


class InnerLoopRun(MethodRun[InnerLoopState]):
    """A run folder of `admrl train-baseline` in memory, of a method with an inner loop."""

    kind, settings, info_type, titles = INNER_LOOP, InnerLoopConfig, InnerLoopInfo, TITLES
    columns = (
        "test_return",
        "test_return_0",
        "return_first_noisy",
        "return_real_noisy",
        "objective",
        "improvement",
        "kl",
        "step_fraction",
        "real_samples",
    )
    new_training = staticmethod(new_inner_loop)

    @classmethod
    def check_settings(cls, config: InnerLoopConfig, algorithm: str, family: TaskFamily) -> None:
        """See `MethodRun`."""
        check_inner_loop(config, family, algorithm)

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `MethodRun`."""
        agent, adam = self.state.agent, self.state.optimizer
        return dump_weights("", agent) | dump_moments(adam, {OPTIMIZER: agent.meta}), {}

    def set_learned(self, tensors: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """See `MethodRun`."""
        agent, adam = self.state.agent, self.state.optimizer
        load_weights("", tensors, agent)
        load_moments(tensors, adam, {OPTIMIZER: agent.meta})

    @property
    def stage_samples(self) -> int:
        """One inner step."""
        return self.info.config.num_adapt_samples

    # -- as the evaluation sees it (`admrl.evaluation.evaluable_run`) -----------------------------------------------

    def adapter(
        self,
        config: EvaluationConfig | None = None,
        *,
        name: str | None = None,
        reporter: Reporter | None = None,
    ) -> Adapter:
        """See `MethodRun`.

        Raises:
            ValueError: the stages of config are no whole inner steps.
        """
        if config is not None:
            check_budget(self.info.config, config.num_stages, config.num_stage_samples)
        return super().adapter(config, name=name, reporter=reporter)

    def num_steps(self, config: EvaluationConfig) -> int:
        """Steps of an evaluation are inner steps."""
        return config.num_stages * config.num_stage_samples // self.stage_samples
