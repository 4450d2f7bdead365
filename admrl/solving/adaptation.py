"""Adaptation to M given tasks: zero-shot (virtual training alone) and SLBO (with real samples).

AdMRL Alg. 1, lines 3-6; both work on all tasks of the batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from admrl.config.checks import check_lanes
from admrl.config.training import SlboConfig, VirtualTrainingConfig
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.inner_method import InnerMethod, S, Slbo
from admrl.solving.rollouts import mean_return, real_rollout, report_unstable
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import Policies, Solution, new_solution
from admrl.solving.virtual_training import OnStep, virtual_training
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily
from task_families.rollout import Rollout


def zero_shot(
    family: TaskFamily,
    model: DynamicsEnsemble,
    psi: Tensor,
    policy: GaussianPolicy,
    num_iterations: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
    *,
    learner: ModelLearner | None = None,
    reporter: Reporter | None = None,
    samples: SampleCounts | None = None,
    allow_outside: bool = False,
) -> Solution:
    """theta_hat(psi): the policy that is optimal under the model, without any real sample (Alg. 1, lines 3-4).

    Args:
        psi: (M, k) tasks; several rows may be the same task with different generators (policy seeds).
        policy: shapes; every task starts from its own random parameters.
        num_iterations: n_zeroshot.
        learner: keeps fitting the model to the data meanwhile (as in meta-training); None freezes it.
        samples: what is drawn is added to it.
        allow_outside: accept tasks outside the box, for out-of-distribution evaluation.

    Raises:
        ValueError: psi has the wrong shape or is outside the box.
    """
    psi = family.box.check(psi, allow_outside=allow_outside)
    solution = new_solution(model, psi, policy, config, generators)
    return virtual_training(
        family,
        model,
        solution,
        num_iterations,
        config,
        generators,
        learner=learner,
        reporter=reporter,
        samples=samples,
    )


def adapt(
    method: InnerMethod[S],
    family: TaskFamily,
    learner: ModelLearner,
    solution: S,
    slbo: SlboConfig,
    num_updates: int,
    generators: Sequence[torch.Generator],
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    samples: SampleCounts | None = None,
    num_done: int = 0,
    on_step: OnStep | None = None,
) -> S:
    """theta_star: stages of real samples and of solving in the model (Alg. 1, lines 5-6); adds to the learner's data.

    With one model, all tasks share it and pool their data; with one model per task (`ModelLearner.fork`) the
    tasks are independent. One step is the real sampling of a stage or a policy update; see `num_slbo_steps`.

    Args:
        num_updates: of the policies per iteration.
        samples, num_done, on_step: see `virtual_training`.
    """
    reporter, samples = reporter or Silent(), samples or SampleCounts()
    num_lanes = check_lanes("slbo.num_samples", slbo.num_samples, family.horizon)
    per_stage = 1 + slbo.num_iterations * num_updates
    for stage in range(num_done // per_stage, slbo.num_stages):
        before = stage * per_stage
        if num_done <= before:
            noise = slbo if method.adds_noise else None
            rollout = real_rollout(  # Alg. 1, line 6, "using pi_theta with noise"
                family, solution, num_lanes, generators, num_threads=num_threads, noise=noise
            )
            samples.real += rollout.num_samples
            _learn_from(family, learner, solution, rollout, samples, reporter)
            solution = method.refreshed(solution, learner.model)
            if on_step is not None:
                on_step(before + 1, solution)
        solution = method.solve(
            learner,
            solution,
            slbo.num_iterations,
            generators,
            fits=True,
            reporter=reporter,
            samples=samples,
            num_done=max(num_done - before - 1, 0),
            on_step=None if on_step is None else partial(_later, on_step, before + 1),
        )
    return solution


def slbo_adapt(
    family: TaskFamily,
    learner: ModelLearner,
    solution: Solution,
    slbo: SlboConfig,
    virtual: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
    *,
    num_threads: int = 1,
    reporter: Reporter | None = None,
    samples: SampleCounts | None = None,
    num_done: int = 0,
    on_step: OnStep | None = None,
) -> Solution:
    """`adapt` by SLBO itself: TRPO in the model."""
    return adapt(
        Slbo(family, solution.policy, virtual),
        family,
        learner,
        solution,
        slbo,
        virtual.num_policy_updates,
        generators,
        num_threads=num_threads,
        reporter=reporter,
        samples=samples,
        num_done=num_done,
        on_step=on_step,
    )


def num_slbo_steps(slbo: SlboConfig, virtual: VirtualTrainingConfig) -> int:
    """Steps of `slbo_adapt`: in every stage the sampling and the policy updates."""
    return slbo.num_stages * (1 + slbo.num_iterations * virtual.num_policy_updates)


def _later(on_step: OnStep, before: int, num_done: int, solution: Policies) -> None:
    """Counts the steps of a part as those of the whole."""
    on_step(before + num_done, solution)


def _learn_from(
    family: TaskFamily,
    learner: ModelLearner,
    solution: Policies,
    rollout: Rollout,
    samples: SampleCounts,
    reporter: Reporter,
) -> None:
    """Real samples join the data."""
    learner.add(rollout)
    report_unstable(rollout, reporter)
    reporter.advance(
        return_real_noisy=mean_return(family, solution.psi, rollout),
        real_samples=samples.real,
        virtual_samples=samples.virtual,
        held_out_loss=float(learner.held_out_loss().mean()),  # the old model on the new states, too
    )
