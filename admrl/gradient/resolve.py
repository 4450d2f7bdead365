"""`resolve`: finite differences of the real returns of policies that are solved again at psi +- delta.

    implicit . u  =  [ eta*(theta(psi + delta u), psi) - eta*(theta(psi - delta u), psi) ] / (2 delta)

theta(psi +- delta u) starts at theta_hat and takes `num_updates` TRPO updates in the model that trained theta_hat,
all policies in one batch, + and - with the same noise; their real episodes share starts and noise, too. It asks what
the training *does* when the task moves, so it needs neither stationarity nor a Hessian, and its error is that of a
mean of returns. Few updates measure the start of the response (small, precise), many its end (large, noisy).

At an edge of the box one of the two tasks lies outside by up to delta: a one-sided difference would be biased,
because eta*(theta(.), psi) has its maximum near psi. Every replicate has its own noise. For k <= `num_directions` the
directions are the axes of the unit box; for larger k every replicate draws its own random orthonormal directions
u_1 ... u_D, and k/D sum_j u_j (implicit . u_j) is unbiased for the difference quotient, so the cost does not grow
with k.

Differs from the paper:
1. The paper has no such estimator. Not differentiating the algorithm, it needs real samples; they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admrl.config.training import ResolveConfig, VirtualTrainingConfig
from admrl.gradient.control_variate import controlled_replicates, lane_statistics, replay, virtual_mean
from admrl.gradient.pathwise import natural_step, pathwise_return, polish
from admrl.solving.rollouts import real_rollout, virtual_rollout
from admrl.solving.solution import Solution
from admrl.solving.virtual_training import virtual_training
from dynamics.ensemble import DynamicsEnsemble
from policy_opt.trpo import fisher_product
from task_families.family import TaskFamily
from task_families.rollout import Rollout
from task_families.simulator import spawn_generators


@dataclass(frozen=True)
class Resolved:
    """The implicit part (M, R, k) of every replicate, in returns per step and unit-box coordinates."""

    replicates: Tensor
    rollout: Rollout
    """The real episodes: (M R D 2, episodes, T, .)."""
    num_virtual: int


def resolve(
    family: TaskFamily,
    theta_hat: Solution,
    config: ResolveConfig,
    virtual: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
    *,
    model: DynamicsEnsemble,
    updated_model: DynamicsEnsemble | None = None,
    num_threads: int = 1,
) -> Resolved:
    """See the head of this page.

    Args:
        virtual: the settings of the TRPO updates.
        generators: one per task.
        model: the one that trained theta_hat.
        updated_model: a model that has seen theta_hat's states since; serves as control variate.
    """
    psi, num_replicates = theta_hat.psi, config.num_replicates
    num_tasks, k = psi.shape
    num_directions = min(k, config.num_directions)
    batch = num_replicates * num_directions * 2  # policies per task

    seeds = [spawn_generators(g, num_replicates) for g in generators]
    u = torch.stack([torch.stack([_directions(k, num_directions, g) for g in row]) for row in seeds]).to(
        psi
    )  # (M, R, D, k)
    unit = family.box.to_unit(psi)[:, None, None, None]
    signs = torch.tensor([1.0, -1.0])[:, None].to(psi)
    moved = family.box.from_unit(unit + config.radius * signs * u[..., None, :])  # (M, R, D, 2, k)
    policies = _repeat(theta_hat, batch, moved.reshape(-1, k))
    common = _common(seeds, num_directions)
    policies, num_virtual = _solve_again(family, model, policies, config, virtual, common)

    # real episodes, scored by the reward of psi itself
    here = psi.repeat_interleave(batch, 0)
    score = [spawn_generators(g, num_replicates) for g in generators]
    score_generators = _common(score, num_directions)
    rollout = real_rollout(family, policies, config.num_episodes, score_generators, num_threads=num_threads)
    real = lane_statistics(family, here, rollout, slopes=False)
    replayed = mean = None
    if updated_model is not None:
        replayed = replay(family, updated_model, policies, rollout, here, slopes=False)
        lanes = updated_model.num_members * config.num_virtual_episodes
        again = _common([spawn_generators(g, num_replicates) for g in generators], num_directions)
        mean = virtual_mean(family, updated_model, policies, here, lanes, again, slopes=False)
        num_virtual += real.shape[0] * (real.shape[1] * updated_model.num_members + lanes) * family.horizon
    shape = (num_tasks, num_replicates, num_directions * 2)
    value = controlled_replicates(
        real.view(*shape, -1),
        None if replayed is None else replayed.view(*shape, -1),
        None if mean is None else mean.view(shape),
    ).view(num_tasks, num_replicates, num_directions, 2)

    slope = (value[..., 0] - value[..., 1]) / (2 * config.radius)
    gradient = (slope[..., None] * u).sum(2) * (k / num_directions)  # (M, R, k)
    return Resolved(gradient, rollout, num_virtual)


def _solve_again(
    family: TaskFamily,
    model: DynamicsEnsemble,
    policies: Solution,
    config: ResolveConfig,
    virtual: VirtualTrainingConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Solution, int]:
    """The policies after `num_updates` updates, and the virtual samples of one pass per update."""
    num_virtual = len(policies.theta) * config.num_updates * virtual.num_samples
    if config.solver == "trpo":
        settings = replace(virtual, num_model_steps=0, num_policy_updates=config.num_updates, patience=None)
        return virtual_training(family, model, policies, 1, settings, generators), num_virtual
    rollout = virtual_rollout(family, model, policies, virtual.num_samples // family.horizon, generators)
    eta = pathwise_return(family, model, policies, rollout, smoothing=0.0)
    x = policies.policy.normalize(rollout.obs).flatten(1, 2)
    fisher = fisher_product(policies.policy, policies.theta, x, virtual.trpo.fisher_fraction)

    def step(_: Tensor, gradient: Tensor) -> Tensor:
        return natural_step(fisher, gradient, virtual.trpo)

    theta = polish(lambda point: eta(point, policies.psi), step, policies.theta, config.num_updates)
    return replace(policies, theta=theta), num_virtual


def _directions(k: int, num_directions: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows (D, k): the axes, or a random subspace."""
    if num_directions == k:
        return torch.eye(k, dtype=torch.float32)
    q, _ = torch.linalg.qr(torch.randn(k, num_directions, generator=generator, dtype=torch.float32))
    return q.T


def _repeat(solution: Solution, times: int, psi: Tensor) -> Solution:
    """`times` copies of every task's policy, with tasks psi."""
    many = [x.repeat_interleave(times, 0) for x in (solution.theta, solution.weights)]
    policy, value = solution.policy, solution.value
    if value.obs_mean.dim() == 2:
        mean, std = (x.repeat_interleave(times, 0) for x in (value.obs_mean, value.obs_std))
        policy, value = policy.with_normalizer(mean, std), replace(value, obs_mean=mean, obs_std=std)
    return Solution(psi.to(solution.theta), policy, many[0], value, many[1])


def _common(seeds: list[list[torch.Generator]], num_directions: int) -> list[torch.Generator]:
    """One generator per policy: the directions and signs of a replicate all have the same state."""
    return [g.clone_state() for row in seeds for g in row for _ in range(num_directions * 2)]
