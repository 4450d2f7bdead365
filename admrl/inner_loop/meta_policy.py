"""MetaPolicy: what is meta-learned. AdaptedPolicy: policies of tasks, as they act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from admrl.devices import transfer
from admrl.evaluation.adapter import Act
from admrl.inner_loop.adaptation import Batch
from admrl.inner_loop.advantages import make_batch
from admrl.inner_loop.config import InnerLoopConfig
from admrl.inner_loop.meta_problem import MetaProblem
from admrl.methods.tasks import TrainingTasks
from policy_opt.categorical_policy import CategoricalPolicy
from policy_opt.gaussian_policy import GaussianPolicy
from policy_opt.policy import Policy
from task_families.family import TaskFamily
from task_families.rollout import Rollout


class MetaPolicy(nn.Module):
    """theta and alpha; shapes and units of the policy; what it is told of a task.

    Its observations are not normalised, as released. Differs from the released code: the first weights are "normc"
    (`policy_opt.mlp.Mlp.init`), and the standard deviation has no floor of 1e-6.
    """

    step_size: Tensor  # (p,)

    def __init__(
        self,
        family: TaskFamily,
        config: InnerLoopConfig,
        generator: torch.Generator,
        *,
        tasks: TrainingTasks,
        sees_psi: bool,
    ) -> None:
        """sees_psi: MAML-MT."""
        super().__init__()
        self.config, self.sees_psi, self.box, self.tasks = config, sees_psi, family.box, tasks
        self.gamma = family.gamma if config.gamma is None else config.gamma
        obs_size = family.obs_size + (family.box.size if sees_psi else 0)
        self.policy = make_policy(family, obs_size, config)
        theta = self.policy.init([generator])[0]
        step_size = torch.full_like(theta, config.step_size)
        self.meta = nn.Parameter(torch.cat([theta, step_size]) if config.learn_step_sizes else theta)
        self.register_buffer("step_size", step_size, persistent=False)

    def theta(self, num_tasks: int) -> Tensor:
        """Every task's policy before adaptation (M, p), a copy."""
        theta: Tensor = self.meta.detach()[: self.policy.num_params]
        return theta.repeat(num_tasks, 1)

    def alpha(self) -> Tensor:
        """The step sizes (p,), a copy."""
        p = self.policy.num_params
        learned = self.meta.detach()[p:]
        return (learned if self.config.learn_step_sizes else self.step_size).clone()

    def known(self, psi: Tensor) -> Tensor:
        """What the policy is told of tasks psi (M, k): unit coordinates, or nothing (M, 0)."""
        return self.box.to_unit(psi).float() if self.sees_psi else _nothing(len(psi))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tasks of an iteration (M, k), and what the policy is told of them (M, c)."""
        psi = self.tasks.sample(self.config.meta_batch, generator)
        return psi, self.known(psi)

    def start(self, known: Tensor) -> Tensor:
        """Where the inner loop of such tasks starts: theta (M, p)."""
        return self.theta(len(known))

    def acting(self, theta: Tensor, known: Tensor, generator: torch.Generator) -> AdaptedPolicy:
        """Policies theta (M, p) of tasks of which they are told known (M, c), for sampling. Draws nothing."""
        return AdaptedPolicy(self.policy, theta, known)

    def batch(self, acting: AdaptedPolicy, rollout: Rollout, reward: Tensor) -> Batch:
        """What the policies that acted learn from their rollout; see `make_batch`."""
        return acting.batch(rollout, reward, self.gamma, self.config)

    def problem(self, batches: Sequence[Batch], known: Tensor) -> MetaProblem:
        """Of the samples of an iteration."""
        fixed = None if self.config.learn_step_sizes else self.step_size
        return MetaProblem(self.policy.in_units(), batches, self.config.inner_loss, self.config.order, fixed)


def make_policy(family: TaskFamily, obs_size: int, config: InnerLoopConfig) -> Policy:
    """One that chooses, where only the largest number of an action counts; else Gaussian, in units of the actions."""
    if family.picks_largest:
        return CategoricalPolicy(obs_size, family.act_size, config.hidden_sizes)
    bounds, policy = family.action_bounds, GaussianPolicy(obs_size, family.act_size, config.hidden_sizes)
    return policy.with_action_units(bounds.center.float(), (bounds.scale / config.action_scale).float())


def told(obs: Tensor, known: Tensor) -> Tensor:
    """Observations (M, ..., S) with known (M, c), or of every lane (M, N, c), behind them."""
    shape = (*known.shape[:-1], *[1] * (obs.dim() - known.dim()), known.shape[-1])
    return torch.cat([obs, known.to(obs).view(shape).expand(*obs.shape[:-1], -1)], dim=-1)


def _nothing(num_tasks: int) -> Tensor:
    return torch.zeros(num_tasks, 0, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class AdaptedPolicy:
    """M stochastic policies; see `admrl.evaluation.adapter.Policy`."""

    policy: Policy
    theta: Tensor  # (M, p)
    known: Tensor  # (M, c), or of every lane (M, N, c)

    def on_host(self) -> Self:
        """The same on the CPU, where the simulator is."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = transfer.on_host({k: x for k, x in held.items() if isinstance(x, Tensor)})
        return replace(self, **tensors)

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        actor = self.policy.actor(self.theta, noise)

        @torch.no_grad()
        def act(t: int, obs: Tensor) -> Tensor:
            return actor(t, told(obs, self.known))

        return act

    def batch(self, rollout: Rollout, reward: Tensor, gamma: float, config: InnerLoopConfig) -> Batch:
        """What these policies learn from their rollout and its rewards (M, N, T); see `make_batch`."""
        return make_batch(
            self.policy,
            self.theta,
            told(rollout.obs, self.known),
            rollout,
            reward,
            gamma=gamma,
            gae_lambda=config.gae_lambda,
            ridge=config.ridge,
        )
