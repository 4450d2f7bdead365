"""MaesnPolicy: what MAESN learns. MaesnAdapter: its test protocol, n / num_adapt_samples steps of the latent alone.

In a test every task begins with z ~ N(0, I). A step moves mu and log sigma by the learned alpha, on fresh episodes;
after `num_full_steps` each is `later_step_factor` times the one before. The policy's weights stay. Scoring draws a
fresh z for every lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admrl.evaluation.adapter import Act, Experience, Exploration, Tasks
from admrl.inner_loop.adaptation import gradients
from admrl.inner_loop.adapter import check_stages
from admrl.inner_loop.advantages import advantages
from admrl.inner_loop.config import InnerLoopConfig
from admrl.inner_loop.maesn import LatentBatch, LatentProblem, latent_loss
from admrl.inner_loop.meta_policy import AdaptedPolicy, make_policy
from admrl.methods.adapter import MethodAdapter
from admrl.methods.tasks import TASK_SEED
from policy_opt.policy import Policy
from task_families.family import TaskFamily
from task_families.rollout import Rollout


class MaesnPolicy(nn.Module):
    """theta, alpha and the distributions of z of the training tasks; see `admrl.inner_loop.maesn`."""

    learned: Tensor  # (q,)
    train_psi: Tensor  # (N, k), of the simulator: it stays on the CPU

    def __init__(self, family: TaskFamily, config: InnerLoopConfig, generator: torch.Generator) -> None:
        """The distributions begin with sigma 1 and means drawn from N(0, I), as released."""
        super().__init__()
        self.config, self.size = config, config.latent.size
        self.gamma = family.gamma if config.gamma is None else config.gamma
        self.policy = make_policy(family, family.obs_size + self.size, config)
        theta = self.policy.init([generator])[0]
        of_policy = torch.full_like(theta, config.step_size if config.latent.adapt_policy else 0.0)
        alpha = torch.cat([of_policy, theta.new_full((2 * self.size,), config.latent.step_size)])
        learned = torch.ones_like(alpha)
        learned[: len(theta)] = float(config.latent.adapt_policy and config.learn_step_sizes)
        self.register_buffer("learned", learned, persistent=False)
        self.train_psi = training_tasks(family, config.latent.num_tasks)
        mean = torch.randn(len(self.train_psi), self.size, generator=generator, dtype=theta.dtype)
        latents = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        self.meta = nn.Parameter(torch.cat([theta, alpha, latents.flatten()]))

    def theta(self, num_tasks: int) -> Tensor:
        """Every task's policy (M, p), a copy."""
        theta: Tensor = self.meta.detach()[: self.policy.num_params]
        return theta.repeat(num_tasks, 1)

    def alpha(self) -> Tensor:
        """The step sizes of theta, mu and l (q,), a copy."""
        p = self.policy.num_params
        return self.meta.detach()[p : p + len(self.learned)].clone()

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tasks of an iteration (M, k), different ones of the training tasks, and their numbers (M,)."""
        index = torch.randperm(len(self.train_psi), generator=generator)[: self.config.meta_batch]
        return self.train_psi[index], index

    def start(self, index: Tensor) -> Tensor:
        """Where the inner loop of training tasks (M,) starts: x (M, q)."""
        return self.problem([], index).spread(self.meta.detach())[0]

    def acting(self, x: Tensor, index: Tensor, generator: torch.Generator) -> LanePolicy:
        """Policies x (M, q), for sampling, with a z of every lane, which are drawn."""
        shape = (len(x), self.config.num_episodes, self.size)
        eps = torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)
        return LanePolicy.make(self.policy, *self.problem([], index).split(x), eps)

    def batch(self, acting: LanePolicy, rollout: Rollout, reward: Tensor) -> LatentBatch:
        """What the policies that acted learn from their rollout."""
        config = self.config
        batch = acting.batch(rollout, reward, self.gamma, config)
        settings = {"gamma": self.gamma, "gae_lambda": config.gae_lambda, "ridge": config.ridge}
        first, _ = advantages(rollout.obs, rollout, reward, **settings)
        return LatentBatch.make(batch, first, acting.eps, acting.known)

    def problem(self, batches: Sequence[LatentBatch], index: Tensor) -> LatentProblem:
        """Of the samples of an iteration."""
        config = self.config
        return LatentProblem(
            self.policy.in_units(),
            batches,
            config.inner_loss,
            config.order,
            None,
            self.learned,
            index.to(self.meta.device),
            len(self.train_psi),
            self.size,
            config.latent.kl_weight,
            config.latent.adapt_policy,
        )


def training_tasks(family: TaskFamily, num_tasks: int) -> Tensor:
    """psi (N, k): the published training tasks, at most so many, or drawn once."""
    published = family.published_tasks(TASK_SEED)
    psi = family.box.fixed(num_tasks, TASK_SEED + 1) if published is None else published[0]
    return psi[:num_tasks]


@dataclass(frozen=True, eq=False)
class LanePolicy(AdaptedPolicy):
    """Policies with a z of every lane (M, N, L), which they are told."""

    eps: Tensor  # (M, N, L), of which z was made

    @classmethod
    def make(cls, policy: Policy, theta: Tensor, mean: Tensor, log_std: Tensor, eps: Tensor) -> LanePolicy:
        """z = mu + sigma eps: mean and log_std (M, L)."""
        return cls(policy, theta, mean[:, None] + log_std.exp()[:, None] * eps, eps)


@dataclass(frozen=True, eq=False)
class LatentPolicy:
    """M policies that draw a z for every lane of a rollout; see `admrl.evaluation.adapter.Policy`."""

    policy: Policy
    theta: Tensor  # (M, p)
    mean: Tensor  # (M, L)
    log_std: Tensor  # (M, L)

    def with_latents(self, num_lanes: int, generators: Sequence[torch.Generator]) -> LanePolicy:
        """With one z for each of so many lanes; one generator per task."""
        shape = (num_lanes, self.mean.shape[1])
        eps = torch.stack([torch.randn(shape, generator=g, dtype=self.mean.dtype) for g in generators])
        return LanePolicy.make(self.policy, self.theta, self.mean, self.log_std, eps)

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        return self.with_latents(noise.shape[2], generators).actor(noise, generators)


class MaesnAdapter(MethodAdapter):
    """See the head of this page."""

    _agent: MaesnPolicy

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: z ~ N(0, I) in every task.

        Raises:
            AdapterError: policies would be scored in the middle of a step.
        """
        check_stages(self._agent.config, tasks)
        self._tasks, self._num_steps = tasks, 0
        self._num_episodes = self._agent.config.num_adapt_samples // tasks.family.horizon
        self._theta = self._agent.theta(len(tasks))
        self._latent = self._theta.new_zeros(len(tasks), 2 * self._agent.size)  # mu, l

    def explore(self) -> Exploration:
        """See `Adapter`: the samples of one step."""
        generators = self._begun().fresh_generators(self._num_steps)
        self._acting = self.adapted().with_latents(self._num_episodes, generators)
        return Exploration(self._acting, self._num_episodes)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: one step of mu and log sigma."""
        self._begun()
        config = self._agent.config
        batch = self._agent.batch(self._acting, experience.rollout, self._rewards(experience))
        late = max(0, self._num_steps + 1 - config.latent.num_full_steps)
        alpha = config.later_step_factor**late * self._agent.alpha()[self._agent.policy.num_params :]
        size = self._agent.size
        gradient = gradients(lambda x: latent_loss(x[:, :size], x[:, size:], batch))(self._latent)
        self._latent = self._latent - alpha * gradient
        self._num_steps += 1

    def adapted(self) -> LatentPolicy:
        """See `Adapter`."""
        self._begun()
        return LatentPolicy(self._agent.policy, self._theta, *self._latent.chunk(2, dim=1))
