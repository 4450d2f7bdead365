"""MBPO-style inner method (Janner et al. 2019, Alg. 2): SAC on short branches of the model from real states.

    1: for n iterations
    2:   fit the model on D, n_model steps
    3:   for n_policy updates
    4:     D_model <- branches of k steps in the model under pi, from states drawn uniformly from D
    5:     for G gradient steps
    6:       SAC on a batch of D_model and, for a share of it, of D with rewards of psi

Each task has networks and a temperature of its own, trained in one batch (`admrl.solving.sac.stacked`), so that no
task depends on the others; as rewards are known functions, all of them learn from the same D.

Differs from the paper:
1. One real sampling for many updates, as in SLBO's stages; the paper alternates single real steps with updates.
2. D_model holds the branches of one update; the paper keeps those of the last four model fits. So a checkpoint needs
   none of them.
3. A branch lives in one member of the ensemble, and after a termination goes on from a first state; the paper draws a
   member for every step, and ends there. k is constant.
4. The ensemble is that of the configuration, by default with members that predict the mean alone; the paper's is
   `config.dynamics.predicts` gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from admrl.config.sac import SacConfig
from admrl.config.training import MbpoConfig, MetaTrainConfig, VirtualTrainingConfig, check_branches
from admrl.jobs.reporter import Reporter, Silent
from admrl.solving.health import MIN_SHARE, fit_or_restore, usable_steps
from admrl.solving.rollouts import branched_rollout
from admrl.solving.sac import Batch, Optimizers, Sac, stacked, tanh_gaussian
from admrl.solving.samples import SampleCounts
from admrl.solving.solution import check_tasks
from admrl.solving.virtual_training import OnStep
from dynamics.dataset import TransitionData
from dynamics.ensemble import DynamicsEnsemble
from dynamics.learner import ModelLearner
from task_families.family import TaskFamily
from task_families.rollout import Rollout
from task_families.simulator import ActionBounds


@dataclass(frozen=True, eq=False)
class Agents:
    """M policies, one per task, with all that SAC trains (`admrl.solving.solution.Policies`)."""

    psi: Tensor  # (M, k)
    sac: Sac  # with (M, ...) parameters, float32
    optimizers: Optimizers
    bounds: ActionBounds

    @property
    def act_size(self) -> int:
        """See `Policies`."""
        return self.sac.act_size

    def actor(self, noise: Tensor) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """See `Policies`; without noise the mode before the tanh."""

        @torch.no_grad()
        def act(t: int, obs: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_std = self.sac.actor(obs.float(), self.told())
            unit, log_prob = tanh_gaussian(mean, log_std, noise[t].float())
            return self.bounds.from_unit(unit.to(obs)), log_prob[..., 0].to(obs)

        return act

    def scaled(self, unit: Tensor) -> Tensor:
        """See `Policies`."""
        return self.bounds.scale.to(unit) * unit

    def told(self) -> Tensor:
        """What the networks are told of their task, of which each is for one: (M, 0)."""
        return torch.zeros(len(self.psi), 0, dtype=torch.float32)

    def copy(self) -> Agents:
        """Independent networks and moments."""
        sac, optimizers = deepcopy((self.sac, self.optimizers))
        return replace(self, sac=sac, optimizers=optimizers)

    def tensors(self) -> list[Tensor]:
        """Everything that training changes, (M, ...) each, but Adam's common count of steps."""
        moments = self.optimizers.state_dict()
        kept = [moments[name] for name in sorted(moments) if not name.endswith(".step")]
        return [*self.sac.parameters(), *kept]


@dataclass(frozen=True)
class Mbpo:
    """See the head of this page and `admrl.solving.inner_method.InnerMethod`."""

    adds_noise: ClassVar[bool] = False
    is_tested_by_mean: ClassVar[bool] = True

    family: TaskFamily
    config: MbpoConfig
    virtual: VirtualTrainingConfig
    num_branches: int

    @classmethod
    def make(
        cls, family: TaskFamily, config: MetaTrainConfig, virtual: VirtualTrainingConfig, name: str
    ) -> Mbpo:
        """Of a configuration's settings, with another `virtual`, whose number of samples has that name.

        Raises:
            ValueError: the number of samples is no whole number of branches in every member.
        """
        num_branches = check_branches(name, virtual.num_samples, config.mbpo.rollout_length, config)
        return cls(family, config.mbpo, virtual, num_branches)

    def begin(self, model: DynamicsEnsemble, psi: Tensor, generators: Sequence[torch.Generator]) -> Agents:
        """See `InnerMethod`."""
        check_tasks(psi, generators)
        family, config = self.family, sac_config(self.config)
        sizes = (family.obs_size, family.act_size, 0)
        sac = stacked([Sac(*sizes, config, family.gamma, g) for g in generators])
        optimizers = Optimizers(sac.parameter_groups(), config.learning_rate, num_agents=len(psi))
        return Agents(psi.to(model.weights[0]), sac, optimizers, family.action_bounds)

    def solve(
        self,
        learner: ModelLearner,
        solution: Agents,
        num_iterations: int,
        generators: Sequence[torch.Generator],
        *,
        fits: bool,
        reporter: Reporter | None = None,
        samples: SampleCounts | None = None,
        num_done: int = 0,
        on_step: OnStep | None = None,
    ) -> Agents:
        """See `InnerMethod`."""
        reporter, samples, virtual = reporter or Silent(), samples or SampleCounts(), self.virtual
        per_iteration = virtual.num_policy_updates
        for step in range(num_done, num_iterations * per_iteration):
            fit: dict[str, float] = {}
            if fits and virtual.num_model_steps > 0 and step % per_iteration == 0:
                fit = {"model_loss": fit_or_restore(learner, virtual.num_model_steps, reporter)}
            rollout = branched_rollout(
                self.family,
                learner.model,
                learner.data,
                solution,
                self.num_branches,
                self.config.rollout_length,
                generators,
                precision=virtual.rollout_precision,
            )
            samples.virtual += rollout.num_samples
            solution, rejected = self._update(learner, solution, rollout, generators)
            if num := int(rejected.sum()):
                reporter.event(
                    f"SAC in the model: {num} updates of single tasks broke down and were left out"
                )
            reporter.advance(
                real_samples=samples.real,
                virtual_samples=samples.virtual,
                rejected=int(rejected.sum()),
                **fit,
            )
            if on_step is not None:
                on_step(step + 1, solution)
        return solution

    def refreshed(self, solution: Agents, model: DynamicsEnsemble) -> Agents:
        """See `InnerMethod`: its networks see observations as they are."""
        return solution

    def _update(
        self, learner: ModelLearner, before: Agents, rollout: Rollout, generators: Sequence[torch.Generator]
    ) -> tuple[Agents, Tensor]:
        """G gradient steps of every task; and which tasks (M,) bool are as before, because too little of their
        branches was usable or something was not finite."""
        after, count = before.copy(), self.config.num_gradient_steps
        pool, usable = self._pool(learner.model, before.psi, rollout)
        real = self._real(learner.data, before.psi, generators)
        num_real = real.reward.shape[1] // count
        num_virtual = self.config.batch_size - num_real
        virtual = _drawn(pool, usable, num_virtual * count, generators)
        noise = torch.stack(
            [torch.randn(count, 2, self.config.batch_size, before.act_size, generator=g) for g in generators],
            2,
        )  # (G, 2, M, N, A)
        with torch.enable_grad():
            for step in range(count):
                parts = (_rows(real, num_real, step), _rows(virtual, num_virtual, step))
                columns = zip(*(vars(part).values() for part in parts), strict=True)
                batch = Batch(*(torch.cat(pair, dim=1) for pair in columns))
                after.sac.step(after.optimizers, batch, after.told(), noise[step])
        broken = usable.double().mean(1) < MIN_SHARE
        for tensor in after.tensors():
            broken = broken | ~tensor.isfinite().flatten(1).all(1)
        if bool(broken.any()):
            _put_back(after, before, broken)
        return after, broken

    def _pool(self, model: DynamicsEnsemble, psi: Tensor, rollout: Rollout) -> tuple[Batch, Tensor]:
        """The branches' transitions (M, N k, .), and which are usable (M, N k) bool."""
        reward = self.family.reward(psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
        usable = usable_steps(rollout, reward, model, slice(None))
        columns = (rollout.obs, rollout.act, reward, rollout.next_obs, rollout.terminated)
        return self._batch(*(column.flatten(1, 2) for column in columns)), usable.flatten(1)

    def _real(
        self, data: Sequence[TransitionData], psi: Tensor, generators: Sequence[torch.Generator]
    ) -> Batch:
        """Real transitions (M, G n, .) for all gradient steps of an update, with each task's rewards."""
        num = self.config.num_gradient_steps * round(self.config.real_share * self.config.batch_size)
        sources = data if len(data) == len(generators) else [data[0] for _ in generators]
        rows = [torch.randint(len(d), (num,), generator=g) for d, g in zip(sources, generators, strict=True)]
        obs, act, next_obs = (
            torch.stack([getattr(d, name)[r] for d, r in zip(sources, rows, strict=True)]).to(psi)
            for name in ("obs", "act", "next_obs")
        )
        reward = self.family.reward(psi[:, None], obs, act, next_obs)
        return self._batch(obs, act, reward, next_obs, self.family.terminated(next_obs))

    def _batch(self, obs: Tensor, act: Tensor, reward: Tensor, next_obs: Tensor, ends: Tensor) -> Batch:
        """As SAC sees them: unit actions, float32."""
        unit = self.family.action_bounds.clamped_to_unit(act)(act)
        columns = (obs, unit, reward[..., None], next_obs, ends[..., None])
        return Batch(*(column.float() for column in columns))


def sac_config(config: MbpoConfig) -> SacConfig:
    """SAC as the paper has it: second version, the temperature adjusted until the entropy is -A."""
    return SacConfig(
        hidden_sizes=config.hidden_sizes,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        reward_scale=1.0,
        temperature=None,
        use_value=False,
        mean_penalty=0.0,
        log_std_penalty=0.0,
    )


def _drawn(pool: Batch, usable: Tensor, num: int, generators: Sequence[torch.Generator]) -> Batch:
    """Transitions (M, num, .) drawn uniformly with replacement from the usable ones of each task."""
    first = usable.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # the usable ones, in order
    share = torch.stack([torch.rand(num, generator=g, dtype=torch.float64) for g in generators])
    index = first.gather(1, (share * usable.sum(1, keepdim=True)).long())[..., None]
    return Batch(*(c.gather(1, index.expand(-1, -1, c.shape[-1])) for c in vars(pool).values()))


def _rows(batch: Batch, num: int, step: int) -> Batch:
    """Of one gradient step."""
    return Batch(*(column[:, step * num : (step + 1) * num] for column in vars(batch).values()))


@torch.no_grad()
def _put_back(after: Agents, before: Agents, tasks: Tensor) -> None:
    """Parameters and moments of some tasks (M,) bool as they were; moments that did not exist yet are 0."""
    now, then = after.tensors(), before.tensors()
    then += [torch.zeros_like(tensor) for tensor in now[len(then) :]]
    for tensor, old in zip(now, then, strict=True):
        tensor.copy_(torch.where(tasks.view(-1, *[1] * (tensor.dim() - 1)), old, tensor))
