"""Rollouts of a solution, in the model and in the simulator, and the returns of their episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admrl.config.training import SlboConfig
from admrl.devices.transfer import on_device
from admrl.jobs.reporter import Reporter
from admrl.solving.captured_rollouts import can_be_captured, captured_rollout
from admrl.solving.lanes import Lanes
from admrl.solving.solution import Policies, Solution
from dynamics.config import RolloutPrecision
from dynamics.dataset import TransitionData
from dynamics.ensemble import DynamicsEnsemble
from dynamics.virtual_env import VirtualEnv
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect, start_pool
from task_families.simulator import Simulator


@torch.no_grad()
def virtual_rollout(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Policies,
    num_lanes: int,
    generators: Sequence[torch.Generator],
    *,
    precision: RolloutPrecision = "full",
    draws_steps: bool = True,
) -> Rollout:
    """num_lanes x horizon virtual samples of the solution's policies for each task, restarting.

    Args:
        draws_steps: of gaussian members; False: every step is their mean.
    """
    shape, noisy = (len(solution.psi), num_lanes), generators if draws_steps else None
    env = VirtualEnv(model, family, shape, precision=precision, derivatives="none", generators=noisy)
    if can_be_captured(solution, model, draws_steps):
        noise = gaussian_noise(shape, family.horizon, solution.act_size, generators, solution.psi)
        return captured_rollout(family, model, solution, noise, start_pool(env, generators), precision)
    actor = stochastic_actor(solution, shape, family.horizon, generators)
    return collect(env, family, actor, family.horizon, generators)


@torch.no_grad()
def branched_rollout(
    family: TaskFamily,
    model: DynamicsEnsemble,
    data: Sequence[TransitionData],
    solution: Policies,
    num_branches: int,
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    precision: RolloutPrecision = "full",
) -> Rollout:
    """num_steps virtual steps of every task from num_branches states of the data, drawn uniformly with replacement.

    Args:
        data: of all tasks, or one for each.
    """
    shape = (len(solution.psi), num_branches)
    env = VirtualEnv(model, family, shape, precision=precision, derivatives="none", generators=generators)
    sources = data if len(data) == len(generators) else [data[0] for _ in generators]
    starts = torch.stack(
        [
            d.obs[torch.randint(len(d), (num_branches,), generator=g).to(d.obs.device)]
            for d, g in zip(sources, generators, strict=True)
        ]
    ).to(solution.psi)
    all_lanes = torch.ones(shape, dtype=torch.bool, device=starts.device)
    env.reset(all_lanes, starts)
    actor = stochastic_actor(solution, shape, num_steps, generators)
    return collect(env, family, actor, num_steps, generators, goes_on=(~all_lanes, starts))


@torch.no_grad()
def virtual_continuation(
    family: TaskFamily,
    model: DynamicsEnsemble,
    solution: Policies,
    lanes: Lanes,
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    precision: RolloutPrecision = "full",
) -> Rollout:
    """The next num_steps virtual steps of every lane."""
    num_tasks, num_lanes = lanes.starts.shape
    shape = (num_tasks, num_lanes)
    env = VirtualEnv(model, family, shape, precision=precision, derivatives="none", generators=generators)
    if can_be_captured(solution, model, draws_steps=True):
        noise = gaussian_noise(shape, num_steps, solution.act_size, generators, solution.psi)
        pool, goes_on = start_pool(env, generators), (lanes.starts, lanes.obs)
        return captured_rollout(family, model, solution, noise, pool, precision, goes_on)
    env.reset(torch.ones_like(lanes.starts), lanes.obs)
    return continuation(env, family, solution, lanes, num_steps, generators)


@torch.no_grad()
def continuation(
    simulator: Simulator,
    family: TaskFamily,
    solution: Policies,
    lanes: Lanes,
    num_steps: int,
    generators: Sequence[torch.Generator],
) -> Rollout:
    """The next num_steps of every lane of a simulator whose lanes are where `lanes` says."""
    actor = stochastic_actor(solution, simulator.shape, num_steps, generators)
    return collect(simulator, family, actor, num_steps, generators, goes_on=(lanes.starts, lanes.obs))


def stochastic_actor(
    solution: Policies,
    shape: tuple[int, int],
    num_steps: int,
    generators: Sequence[torch.Generator],
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """The policies as the `act` of `collect`. All noise is drawn ahead, each task's from its own generator."""
    return solution.actor(gaussian_noise(shape, num_steps, solution.act_size, generators, solution.psi))


@dataclass(frozen=True, eq=False)
class SolutionPolicy:
    """The policies of a solution for the evaluation (`admrl.evaluation.adapter.Policy`)."""

    solution: Policies
    noise: SlboConfig | None = None
    """Adds this configuration's exploration noise to the (already stochastic) actions."""
    is_mean: bool = False
    """Acts without noise of its own."""

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Callable[[int, Tensor], Tensor]:
        """See `Policy.actor`; the policies act where the noise is."""
        act = moved(self.solution, noise.device).actor(torch.zeros_like(noise) if self.is_mean else noise)
        if self.noise is not None and self.noise.noise_scale > 0:
            num_steps, *shape, act_size = noise.shape
            drive = gaussian_noise((shape[0], shape[1]), num_steps, act_size, generators, noise)
            act = _disturbed(self.solution, act, ornstein_uhlenbeck(self.noise, drive))
        return lambda t, obs: act(t, obs)[0]


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
def real_rollout(
    family: TaskFamily,
    solution: Policies,
    num_lanes: int,
    generators: Sequence[torch.Generator],
    *,
    num_threads: int = 1,
    noise: SlboConfig | None = None,
) -> Rollout:
    """Real samples of the solution's policies: num_lanes x horizon steps for each task, restarting.

    The simulator, and with it the policies, run on the CPU, wherever the solution is; the rollout is brought to it.

    Args:
        noise: adds this configuration's exploration noise to the (already stochastic) actions.
    """
    device, solution = solution.psi.device, moved(solution, torch.device("cpu"))
    shape = (len(solution.psi), num_lanes)
    simulator = family.make_simulator(
        shape, num_threads=num_threads, dtype=solution.psi.dtype, psi=solution.psi
    )
    act = stochastic_actor(solution, shape, family.horizon, generators)
    if noise is not None and noise.noise_scale > 0:
        act = _with_noise(act, solution, shape, family.horizon, noise, generators)
    return brought(collect(simulator, family, act, family.horizon, generators), device)


def brought(rollout: Rollout, device: torch.device) -> Rollout:
    """A rollout of the simulator on a device, by few copies; itself, if it is there."""
    return Rollout(**on_device(vars(rollout), device))


def moved(solution: Policies, device: torch.device) -> Policies:
    """On a device; MBPO's agents are on the CPU alone."""
    return solution.to(device) if isinstance(solution, Solution) else solution


def report_unstable(rollout: Rollout, reporter: Reporter) -> None:
    """Say how many simulations broke down; their last transitions never enter the data."""
    if rollout.num_unstable:
        reporter.event(f"{rollout.num_unstable} simulations became unstable; those episodes ended there")


def _with_noise(
    act: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    solution: Policies,
    shape: tuple[int, int],
    num_steps: int,
    config: SlboConfig,
    generators: Sequence[torch.Generator],
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """Adds exploration noise."""
    drive = gaussian_noise(shape, num_steps, solution.act_size, generators, solution.psi)
    return _disturbed(solution, act, ornstein_uhlenbeck(config, drive))


def _disturbed(
    solution: Policies,
    act: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    disturbance: Callable[[int], Tensor],
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """Adds a disturbance in units of the policy's action limits."""

    def noisy(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = act(t, obs)
        return action + solution.scaled(disturbance(t)), torch.full_like(log_prob, torch.nan)

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


def rewards(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Of every step: psi (M, k) -> (M, N, T)."""
    return family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)


def episode_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Undiscounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = rewards(family, psi, rollout)
    return torch.where(rollout.first_episode(), reward, 0.0).sum(-1)


def mean_return(family: TaskFamily, psi: Tensor, rollout: Rollout) -> float:
    """Of `episode_returns`, without simulations that broke down."""
    returns = episode_returns(family, psi, rollout)
    return float(returns[returns.isfinite()].mean())


def discounted_returns(family: TaskFamily, psi: Tensor, rollout: Rollout) -> Tensor:
    """Discounted return of the first episode of every lane: psi (M, k) -> (M, N)."""
    reward = rewards(family, psi, rollout)
    discount = family.gamma ** torch.arange(reward.shape[-1], device=reward.device).to(reward)
    return torch.where(rollout.first_episode(), discount * reward, 0.0).sum(-1)
