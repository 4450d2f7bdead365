"""Virtual training, AdMRL Alg. 2: fit the model, then TRPO inside it; M tasks at once.

1: procedure VirtualTraining(theta, phi, psi, D, n)
2:   for n iterations
3:     optimise the model over phi with data from D, n_model steps
4:     for n_policy iterations
5:       D' <- n_trpo samples from the learned dynamics
6:       optimise pi_theta by TRPO on D'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.config import VirtualTrainingConfig, check_lanes
from admrl.health import MIN_SHARE, UpdateReport, cut, fit_or_restore, usable_steps
from admrl.reporting import Reporter, Silent
from dynamics.config import RolloutPrecision
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from dynamics.virtual_env import VirtualEnv
from policy_opt.advantage import gae
from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.trpo import STATES_PER_BLOCK, trpo_step
from policy_opt.value import ValueFunction
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect

OnStep = Callable[[int, "Solution"], None]


@dataclass(frozen=True, eq=False)
class Solution:
    """M policies, one per task, with the value functions that trained them."""

    psi: Tensor  # (M, k)
    policy: GaussianPolicy
    theta: Tensor  # (M, p)
    value: ValueFunction
    weights: Tensor  # (M, F)

    def tasks(self, index: slice | Tensor) -> Solution:
        """The solution of some tasks."""
        policy, value = self.policy, self.value
        if value.obs_mean.dim() == 2:
            mean, std = value.obs_mean[index], value.obs_std[index]
            policy, value = policy.with_normalizer(mean, std), replace(value, obs_mean=mean, obs_std=std)
        return Solution(self.psi[index], policy, self.theta[index], value, self.weights[index])


def new_solution(
    model: DynamicsEnsemble,
    psi: Tensor,
    policy: GaussianPolicy,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> Solution:
    """Random policies (Alg. 1, line 3) and zero value functions, with the model's present normaliser."""
    mean, std = _normalizer(model)
    policy, value = policy.with_normalizer(mean, std), ValueFunction.make(mean, std, config.value)
    theta = policy.init(generators, dtype=mean.dtype).to(mean.device)
    return Solution(psi.to(mean), policy, theta, value, value.init(len(psi)))


def refresh_normalizer(solution: Solution, model: DynamicsEnsemble) -> Solution:
    """The same parameters with the model's present normaliser, after new data has moved it."""
    mean, std = _normalizer(model)
    value = replace(solution.value, obs_mean=mean, obs_std=std)
    return replace(solution, policy=solution.policy.with_normalizer(mean, std), value=value)


@torch.no_grad()
def virtual_rollout(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    num_lanes: int,
    generators: Sequence[torch.Generator],
    *,
    precision: RolloutPrecision = "full",
) -> Rollout:
    """num_lanes x horizon virtual samples of the solution's policies for each task, restarting."""
    shape = (len(solution.theta), num_lanes)
    env = VirtualEnv(model, family, shape, precision=precision, derivatives="none")
    actor = stochastic_actor(solution, shape, family.horizon, generators)
    return collect(env, family, actor, family.horizon, generators)


def stochastic_actor(
    solution: Solution,
    shape: tuple[int, int],
    num_steps: int,
    generators: Sequence[torch.Generator],
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """The policies as the `act` of `collect`. All noise is drawn ahead, each task's from its own generator."""
    policy, theta = solution.policy, solution.theta
    noise = gaussian_noise(shape, num_steps, policy.act_size, generators, theta)
    deviation, log_prob = (x.unbind() for x in policy.deviations(theta, noise))  # T of (M, N, A), (M, N)
    mean = policy.mean_function(theta)

    def act(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        return mean(obs) + deviation[t], log_prob[t]

    return act


def gaussian_noise(
    shape: tuple[int, int], num_steps: int, size: int, generators: Sequence[torch.Generator], like: Tensor
) -> Tensor:
    """Standard normal (T, M, N, size) of like's dtype and device."""
    draws = [
        torch.randn(num_steps, shape[1], size, generator=g, dtype=like.dtype, device=g.device)
        for g in generators
    ]
    return torch.stack(draws, dim=1).to(like.device)


@torch.no_grad()
def virtual_training(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    num_iterations: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
    *,
    learner: ModelLearner | None = None,
    reporter: Reporter | None = None,
    num_done: int = 0,
    on_step: OnStep | None = None,
) -> Solution:
    """n iterations of Alg. 2 for all tasks of the solution.

    One step is one policy update, with the fit of the model before an iteration's first.

    Args:
        model: T_phi; one model for all tasks, or one per task.
        learner: fits the model in every iteration (line 3); None keeps it frozen.
        generators: one per task.
        num_done: steps that are done already; solution, model and generators are as they were after those.
        on_step: called after every step, with the number of steps done and the solution.

    Returns:
        The improved solution. Each task's result does not depend on the others of the batch, up to the rounding of
        the model's products.
    """
    reporter = reporter or Silent()
    num_lanes = check_lanes("virtual.num_samples", config.num_samples, family.horizon, model.num_members)
    for step in range(num_done, num_iterations * config.num_policy_updates):
        fit: dict[str, float] = {}
        if learner is not None and config.num_model_steps > 0 and step % config.num_policy_updates == 0:
            fit = {"model_loss": fit_or_restore(learner, config.num_model_steps, reporter)}  # Alg. 2, line 3
        solution, report = virtual_update(family, model, solution, num_lanes, config, generators)
        if trouble := report.describe():
            reporter.event(f"virtual training: {trouble}")
        reporter.advance(
            return_model=report.mean_return,
            virtual_samples=len(report.returns) * config.num_samples,
            rejected=int((~report.accepted).sum()),
            **fit,
        )
        if on_step is not None:
            on_step(step + 1, solution)
    return solution


@torch.no_grad()
def virtual_update(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    num_lanes: int,
    config: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Solution, UpdateReport]:
    """One TRPO update of every task on fresh virtual samples (Alg. 2, lines 5-6).

    Lanes and tasks in which something is not finite are handled as `admrl.health` says.
    """
    rollout = virtual_rollout(
        family, model, solution, num_lanes, generators, precision=config.rollout_precision
    )
    # in blocks of tasks, because the features of all tasks at once leave the cache and fill the memory
    per_block = max(1, STATES_PER_BLOCK // (num_lanes * family.horizon))
    blocks = [slice(i, i + per_block) for i in range(0, len(solution.theta), per_block)]
    parts = [_improve(family, model, solution.tasks(b), rollout.tasks(b), b, config) for b in blocks]
    thetas, weights, reports = zip(*parts, strict=True)
    names = UpdateReport.__dataclass_fields__
    report = UpdateReport(**{name: torch.cat([getattr(r, name) for r in reports]) for name in names})
    return replace(solution, theta=torch.cat(thetas), weights=torch.cat(weights)), report


def _improve(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Solution,
    rollout: Rollout,
    tasks: slice,
    config: VirtualTrainingConfig,
) -> tuple[Tensor, Tensor, UpdateReport]:
    """New theta (M, p) and weights (M, F) of a block of tasks, and how it went."""
    reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    usable = usable_steps(rollout, reward, model, tasks)  # (M, N, T)
    episode_usable = (usable | ~rollout.first_episode()).all(-1)  # (M, N)
    returns = torch.where(rollout.first_episode(), reward, 0.0).sum(-1)  # (M, N)
    mean_returns = returns.mean(-1)
    theta, weights, accepted = _update(family, solution, rollout, reward, config)
    skipped = torch.zeros_like(accepted)
    # a task with broken lanes is done again, alone: its neighbours' numbers stay what they are, bit for bit
    for m in (~usable).flatten(1).any(1).nonzero()[:, 0].tolist():
        one = slice(m, m + 1)
        mean_returns[m] = returns[m][episode_usable[m]].mean()
        if usable[m].double().mean() < MIN_SHARE:
            theta[m], weights[m] = solution.theta[m], solution.weights[m]
            accepted[m], skipped[m] = False, True
            continue
        shorter = cut(rollout.tasks(one), usable[one])
        theta[one], weights[one], accepted[one] = _update(
            family, solution.tasks(one), shorter, reward[one], config, usable[one]
        )
    value_kept = ~weights.isfinite().all(1)
    weights = torch.where(value_kept[:, None], solution.weights, weights)
    cut_lanes = (~usable).any(-1).sum(-1)
    return theta, weights, UpdateReport(mean_returns, accepted, cut_lanes, skipped, value_kept)


def _update(
    family: TaskFamily,
    solution: Solution,
    rollout: Rollout,
    reward: Tensor,
    config: VirtualTrainingConfig,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """TRPO and the fit of V on the steps that are usable (1, N, T; None: all): theta, weights, accepted."""
    obs, act = rollout.obs, rollout.act
    advantage, target, features = advantages(family, solution, rollout, reward, config)
    if usable is not None:
        obs, act, features, advantage, target = (
            x[usable][None] for x in (obs, act, features, advantage, target)
        )
    theta, report = trpo_step(solution.policy, solution.theta, obs, act, advantage, config.trpo)
    return theta, solution.value.fit(features, target), report.accepted


def advantages(
    family: TaskFamily,
    solution: Solution,
    rollout: Rollout,
    reward: Tensor,
    config: VirtualTrainingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised advantages (M, N, T), lambda-returns (M, N, T), and the value function's features (M, N, T, F)."""
    value, weights = solution.value, solution.weights
    features = value.features(rollout.obs)
    v = value.predict(weights, features)
    # V(next_obs): the next row's V within an episode, unused after a termination, evaluated at the cut
    v_cut = value(weights, rollout.next_obs[:, :, -1:])
    advantage = gae(
        reward,
        v,
        torch.cat([v[:, :, 1:], v_cut], dim=-1),
        rollout.terminated,
        rollout.truncated,
        gamma=family.gamma,
        gae_lambda=config.value.gae_lambda,
    )
    return advantage, advantage + v, features


def _normalizer(model: DynamicsEnsemble) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observations: (S,) for one model, (K, S) for one per task."""
    mean, std = model.obs_normalizer.mean, model.obs_normalizer.std
    return (mean[0].clone(), std[0].clone()) if model.num_models == 1 else (mean.clone(), std.clone())
