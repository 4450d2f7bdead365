"""Multi-task SAC: one soft actor-critic on the data of all training tasks; it does not adapt.

    sac         told nothing of the task (CRL's SAC), or its number as a one-hot code, or psi
    mt-joint    pi(a | s, psi), jointly on all training tasks (AdMRL section 5)

A one-hot code exists for training tasks alone, so such a policy is tested on those.

Differs from the paper: AdMRL does not state the optimiser of MT-joint; here it is SAC, [ours].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from admrl.baselines.actor_policy import ActorPolicy
from admrl.baselines.config import BaselineConfig
from admrl.baselines.replay import MultiTaskReplay
from admrl.baselines.static import StaticAdapter
from admrl.evaluation.adapter import Policy, Tasks
from admrl.solving.sac import Batch, Optimizers, Sac
from task_families.family import TaskFamily

STEP = "a gradient step of critics and policy"


class MultiTaskSac(nn.Module):
    """Networks and the gradient step."""

    uses_context = False
    train_psi: Tensor  # (K, k)
    train_known: Tensor  # (K, c)

    def __init__(
        self, family: TaskFamily, config: BaselineConfig, psi: Tensor, generator: torch.Generator
    ) -> None:
        """psi: (K, k) training tasks."""
        super().__init__()
        self.config, self.box, self.num_tasks = config, family.box, len(psi)
        self.bounds = family.action_bounds
        self.register_buffer("train_psi", psi.double(), persistent=False)
        self.register_buffer("train_known", self.known(psi), persistent=False)
        size = self.train_known.shape[1]
        self.sac = Sac(family.obs_size, family.act_size, size, config.sac, family.gamma, generator)

    def known(self, psi: Tensor) -> Tensor:
        """What the policy is told of tasks psi (M, k): (M, c).

        Raises:
            ValueError: a one-hot code for a task that is no training task.
        """
        if self.config.task_input == "none":
            return torch.zeros(len(psi), 0, dtype=torch.float32)
        if self.config.task_input == "psi":
            return self.box.to_unit(psi).float()
        unit, trained = self.box.to_unit(psi.double()), self.box.to_unit(self.train_psi)
        distance, number = torch.cdist(unit, trained).min(1)
        if bool((distance > 1e-6).any()):
            far = psi[int(distance.argmax())].tolist()
            raise ValueError(
                f"config.task_input: onehot: {far} is no training task, so it has no code; evaluate on the training "
                "tasks, or train with `config.task_input` psi"
            )
        return one_hot(number, self.num_tasks).float()

    @property
    def sees_psi(self) -> bool:
        """Whether psi is needed to act."""
        return self.config.task_input != "none"

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains."""
        return self.sac.parameter_groups()

    def update(
        self, replay: MultiTaskReplay, optimizers: Optimizers, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One gradient step on a meta-batch of tasks, drawn with replacement."""
        tasks = torch.randint(self.num_tasks, (self.config.meta_batch,), generator=generator)
        batch = replay.sample(tasks, self.config.sac.batch_size, generator)
        noise = torch.randn(2, *batch.act.shape, generator=generator, dtype=torch.float32)

        def step(tasks: Tensor, noise: Tensor, *batch: Tensor) -> dict[str, Tensor]:
            return self.sac.step(optimizers, Batch(*batch), self.train_known[tasks], noise)

        device = batch.act.device
        return optimizers.captured(STEP, self, step, tasks.to(device), noise.to(device), *batch.tensors())

    def collection_policy(
        self,
        replay: MultiTaskReplay,
        tasks: Tensor,
        num_lanes: int,
        generator: torch.Generator,
        *,
        use_posterior: bool,
    ) -> ActorPolicy:
        """Stochastic policies for sampling training tasks (M,)."""
        return self._policy(self.train_known[tasks], deterministic=False)

    def _policy(self, known: Tensor, *, deterministic: bool) -> ActorPolicy:
        nothing = torch.zeros(len(known), 0, dtype=torch.float32)
        return ActorPolicy(self.sac.actor, nothing, nothing, known, self.bounds, deterministic=deterministic)


def multitask_adapter(
    agent: MultiTaskSac, name: str, provenance: dict[str, Any] | None = None
) -> StaticAdapter:
    """The deterministic policy; A_n is the same for every n."""

    def policy(tasks: Tasks) -> Policy:
        known = agent.known(tasks.psi) if agent.sees_psi else torch.zeros(len(tasks), 0, dtype=torch.float32)
        return agent._policy(known, deterministic=True)

    sees = frozenset({"psi"}) if agent.sees_psi else frozenset()
    return StaticAdapter(name, policy, sees=sees, provenance=provenance)
