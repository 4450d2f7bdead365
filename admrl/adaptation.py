"""Adaptation to M given tasks: zero-shot (virtual training alone) and SLBO (with real samples).

AdMRL Alg. 1, lines 3-6; both work on all tasks of the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from admrl.config import SlboConfig, VirtualTrainingConfig, check_lanes
from admrl.reporting import Reporter, Silent
from admrl.virtual_training import (
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
) -> Solution:
    """theta_star: SLBO from a solution (Alg. 1, lines 5-6); adds to the learner's data and trains its model.

    With one model, all tasks share it and pool their data; with one model per task (`ModelLearner.fork`) the
    tasks are independent.
    """
    reporter = reporter or Silent()
    num_lanes = check_lanes("slbo.num_samples", slbo.num_samples, family.horizon)
    for _ in range(slbo.num_stages):
        rollout = real_rollout(
            family, solution, num_lanes, generators, num_threads=num_threads, noise=slbo
        )  # Alg. 1, line 6: "using pi_theta with noise"
        learner.add(rollout)
        report_unstable(rollout, reporter)
        returns = episode_returns(family, solution.psi, rollout)
        reporter.advance(
            return_real_noisy=float(returns.mean()),
            real_samples=rollout.num_samples,
            held_out_loss=float(learner.held_out_loss().mean()),  # the old model on the new states, too
        )
        solution = refresh_normalizer(solution, learner.model)
        solution = virtual_training(
            family,
            learner.model,
            solution,
            slbo.num_iterations,
            virtual,
            generators,
            learner=learner,
            reporter=reporter,
        )
    return solution


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
    """Adds an Ornstein-Uhlenbeck process x <- (1 - decay) x + scale N(0, I), one for every lane.

    Differs from the paper: the released code drives all lanes with one process, which is less exploration.
    """
    drive = gaussian_noise(shape, num_steps, solution.policy.act_size, generators, solution.theta)
    x = torch.zeros_like(drive[0])

    def noisy(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal x
        x = (1 - config.noise_decay) * x + config.noise_scale * drive[t]
        action, log_prob = act(t, obs)
        return action + x, torch.full_like(log_prob, torch.nan)

    return noisy


def episode_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Undiscounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    return torch.where(rollout.first_episode(), reward, 0.0).sum(-1)


def discounted_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Discounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    discount = family.gamma ** torch.arange(reward.shape[-1]).to(reward)
    return torch.where(rollout.first_episode(), discount * reward, 0.0).sum(-1)
