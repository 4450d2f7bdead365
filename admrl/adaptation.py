"""Adaptation to M given tasks: zero-shot (virtual training alone) and SLBO (with real samples).

AdMRL Alg. 1, lines 3-6; both work on all tasks of the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from admrl.config import SlboConfig, VirtualTrainingConfig, check_lanes
from admrl.reporting import Reporter, Silent
from admrl.virtual_training import (
    OnStep,
    Solution,
    gaussian_noise,
    new_solution,
    refresh_normalizer,
    stochastic_actor,
    virtual_training,
)
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from policy_opt.gaussian_policy import GaussianPolicy
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect


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
    allow_outside: bool = False,
) -> Solution:
    """theta_hat(psi): the policy that is optimal under the model, without any real sample (Alg. 1, lines 3-4).

    Args:
        psi: (M, k) tasks; several rows may be the same task with different generators (policy seeds).
        policy: shapes; every task starts from its own random parameters.
        num_iterations: n_zeroshot.
        learner: keeps fitting the model to the data meanwhile (as in meta-training); None freezes it.
        allow_outside: accept tasks outside the box, for out-of-distribution evaluation.

    Raises:
        ValueError: psi has the wrong shape or is outside the box.
    """
    psi = family.box.check(psi, allow_outside=allow_outside)
    solution = new_solution(model, psi, policy, config, generators)
    return virtual_training(
        family, model, solution, num_iterations, config, generators, learner=learner, reporter=reporter
    )


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
    num_done: int = 0,
    on_step: OnStep | None = None,
) -> Solution:
    """theta_star: SLBO from a solution (Alg. 1, lines 5-6); adds to the learner's data and trains its model.

    With one model, all tasks share it and pool their data; with one model per task (`ModelLearner.fork`) the
    tasks are independent. One step is the real sampling of a stage or a policy update; see `num_slbo_steps`.

    Args:
        num_done, on_step: see `virtual_training`.
    """
    reporter = reporter or Silent()
    num_lanes = check_lanes("slbo.num_samples", slbo.num_samples, family.horizon)
    per_stage = num_slbo_steps(slbo, virtual) // slbo.num_stages
    for stage in range(num_done // per_stage, slbo.num_stages):
        before = stage * per_stage
        if num_done <= before:
            solution = _sample(family, learner, solution, num_lanes, slbo, generators, num_threads, reporter)
            if on_step is not None:
                on_step(before + 1, solution)
        solution = virtual_training(
            family,
            learner.model,
            solution,
            slbo.num_iterations,
            virtual,
            generators,
            learner=learner,
            reporter=reporter,
            num_done=max(num_done - before - 1, 0),
            on_step=None if on_step is None else partial(_later, on_step, before + 1),
        )
    return solution


def num_slbo_steps(slbo: SlboConfig, virtual: VirtualTrainingConfig) -> int:
    """Steps of `slbo_adapt`: in every stage the sampling and the policy updates."""
    return slbo.num_stages * (1 + slbo.num_iterations * virtual.num_policy_updates)


def _later(on_step: OnStep, before: int, num_done: int, solution: Solution) -> None:
    """Counts the steps of a part as those of the whole."""
    on_step(before + num_done, solution)


def _sample(
    family: TaskFamily,
    learner: ModelLearner,
    solution: Solution,
    num_lanes: int,
    slbo: SlboConfig,
    generators: Sequence[torch.Generator],
    num_threads: int,
    reporter: Reporter,
) -> Solution:
    """Alg. 1, line 6, "using pi_theta with noise"; the solution with the normaliser of all data."""
    rollout = real_rollout(family, solution, num_lanes, generators, num_threads=num_threads, noise=slbo)
    learner.add(rollout)
    report_unstable(rollout, reporter)
    returns = episode_returns(family, solution.psi, rollout)
    reporter.advance(
        return_real_noisy=float(returns[returns.isfinite()].mean()),
        real_samples=rollout.num_samples,
        held_out_loss=float(learner.held_out_loss().mean()),  # the old model on the new states, too
    )
    return refresh_normalizer(solution, learner.model)


@torch.no_grad()
def real_rollout(
    family: TaskFamily,
    solution: Solution,
    num_lanes: int,
    generators: Sequence[torch.Generator],
    *,
    num_threads: int = 1,
    noise: SlboConfig | None = None,
) -> Rollout:
    """Real samples of the solution's policies: num_lanes x horizon steps for each task, restarting.

    Args:
        noise: adds this configuration's exploration noise to the (already stochastic) actions.
    """
    shape = (len(solution.theta), num_lanes)
    simulator = family.make_simulator(
        shape, num_threads=num_threads, dtype=solution.theta.dtype, psi=solution.psi
    )
    act = stochastic_actor(solution, shape, family.horizon, generators)
    if noise is not None and noise.noise_scale > 0:
        act = _with_noise(act, solution, shape, family.horizon, noise, generators)
    return collect(simulator, family, act, family.horizon, generators)


def report_unstable(rollout: Rollout, reporter: Reporter) -> None:
    """Say how many simulations broke down; their last transitions never enter the data."""
    if rollout.num_unstable:
        reporter.event(f"{rollout.num_unstable} simulations became unstable; those episodes ended there")


def _with_noise(
    act: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    solution: Solution,
    shape: tuple[int, int],
    num_steps: int,
    config: SlboConfig,
    generators: Sequence[torch.Generator],
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """Adds exploration noise."""
    drive = gaussian_noise(shape, num_steps, solution.policy.act_size, generators, solution.theta)
    disturbance = ornstein_uhlenbeck(config, drive)

    def noisy(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = act(t, obs)
        return action + disturbance(t), torch.full_like(log_prob, torch.nan)

    return noisy


def ornstein_uhlenbeck(config: SlboConfig, drive: Tensor) -> Callable[[int], Tensor]:
    """The process x <- (1 - decay) x + scale N(0, I), one for every lane: to be called with t = 0, 1, 2, ...

    Differs from the paper: the released code drives all lanes with one process, which is less exploration.

    Args:
        drive: standard normal (T, M, N, A).
    """
    x = torch.zeros_like(drive[0])

    def step(t: int) -> Tensor:
        nonlocal x
        x = (1 - config.noise_decay) * x + config.noise_scale * drive[t]
        return x

    return step


def episode_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Undiscounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    return torch.where(rollout.first_episode(), reward, 0.0).sum(-1)


def discounted_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Discounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    discount = family.gamma ** torch.arange(reward.shape[-1]).to(reward)
    return torch.where(rollout.first_episode(), discount * reward, 0.0).sum(-1)
