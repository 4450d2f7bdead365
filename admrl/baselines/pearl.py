"""PEARL (Rakelly et al. 2019): soft actor-critic conditioned on a latent z that is inferred from transitions.

    c = {(s, a, r[, s'])_i}        context of a task; near on-policy, from a buffer of its own
    q(z|c) = prod_i Psi(z|c_i)     `admrl.baselines.context`
    critic and encoder   mean (Q1 - y)^2 + mean (Q2 - y)^2 + lambda sum KL(q(z|c) || N(0, I)),  y with z fixed
    policy, V            with z fixed

PEARL-MT (AdMRL section 5) is the same with psi, in unit coordinates, beside z.

Choices as released: the KL is a sum over the meta-batch, so its weight grows with it; rewards are scaled, the
temperature is 1; the policy that is tested is deterministic; the context of a task is cleared before the task is
sampled anew.
[ours] PEARL-MT tells psi to policy, Q and V, but not to the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from admrl.baselines.actor_policy import ActorPolicy
from admrl.baselines.config import TITLES, BaselineConfig
from admrl.baselines.context import Encoder, Posterior
from admrl.baselines.replay import MultiTaskReplay, context_rows
from admrl.evaluation.adapter import Experience, Exploration, Policy, Tasks
from admrl.methods.adapter import MethodAdapter
from admrl.solving.sac import Batch, Optimizers, Sac
from task_families.family import TaskFamily

STEP = "a gradient step of encoder, critics and policy"


class Pearl(nn.Module):
    """Networks and the gradient step."""

    uses_context = True
    train_known: Tensor  # (K, c)

    def __init__(
        self,
        family: TaskFamily,
        config: BaselineConfig,
        psi: Tensor,
        generator: torch.Generator,
        *,
        sees_psi: bool,
    ) -> None:
        """
        Args:
            psi: (K, k) training tasks.
            sees_psi: PEARL-MT.
        """
        super().__init__()
        self.config, self.sees_psi = config, sees_psi
        self.box, self.bounds, self.num_tasks = family.box, family.action_bounds, len(psi)
        episodes, horizon = config.context.num_episodes, family.horizon
        self.window = None if episodes is None else (episodes * horizon, horizon)  # of training contexts
        self.register_buffer("train_known", self.known(psi), persistent=False)
        sizes = family.obs_size, family.act_size
        row_size = sizes[0] + sizes[1] + 1 + (sizes[0] if config.context.has_next_obs else 0)
        self.encoder = Encoder(row_size, config.context, generator)
        condition_size = config.context.latent_size + self.train_known.shape[1]
        self.sac = Sac(*sizes, condition_size, config.sac, family.gamma, generator)

    def known(self, psi: Tensor) -> Tensor:
        """What the policy is told of tasks psi (M, k): unit coordinates, or nothing (M, 0)."""
        return (
            self.box.to_unit(psi).float() if self.sees_psi else torch.zeros(len(psi), 0, dtype=torch.float32)
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains: the critic's loss trains the encoder through z."""
        groups = self.sac.parameter_groups()
        groups["critic"] += list(self.encoder.parameters())
        return groups

    # -- training ------------------------------------------------------------------------------------------------

    def update(
        self, replay: MultiTaskReplay, optimizers: Optimizers, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One gradient step on a meta-batch of tasks, drawn with replacement."""
        config, device = self.config, self.train_known.device
        tasks = torch.randint(self.num_tasks, (config.meta_batch,), generator=generator)
        rows = self.sample_rows(replay, tasks, generator, window=self.window)
        draws = torch.randn(len(tasks), config.context.latent_size, generator=generator, dtype=torch.float32)
        batch = replay.sample(tasks, config.sac.batch_size, generator)
        noise = torch.randn(2, *batch.act.shape, generator=generator, dtype=torch.float32)

        def step(
            tasks: Tensor, rows: Tensor, draws: Tensor, noise: Tensor, *batch: Tensor
        ) -> dict[str, Tensor]:
            posterior = self.posterior(rows)
            z, kl = posterior.draw(draws), posterior.kl_to_prior()  # one z for each task
            metrics = self.sac.step(
                optimizers,
                Batch(*batch),
                torch.cat([z, self.train_known[tasks]], dim=-1),
                noise,
                heads=self.train_heads(tasks),
                extra_loss=config.context.kl_weight * kl,
            )
            return metrics | {"kl": kl.detach() / len(tasks)}

        inputs = (tasks.to(device), rows, draws.to(device), noise.to(device), *batch.tensors())
        return optimizers.captured(STEP, self, step, *inputs)

    def sample_rows(
        self,
        replay: MultiTaskReplay,
        tasks: Tensor,
        generator: torch.Generator,
        *,
        window: tuple[int, int] | None = None,
    ) -> Tensor:
        """Random contexts (B, n, .) of tasks (B,); window: see `MultiTaskReplay.sample_context`."""
        context = self.config.context
        return replay.sample_context(
            tasks, context.num_transitions, generator, has_next_obs=context.has_next_obs, window=window
        ).to(self.train_known.device)  # of an agent that acts on the CPU, while the replay is elsewhere

    def posterior(self, rows: Tensor) -> Posterior:
        """q(z|c) of contexts (B, n, .)."""
        with self.sac.mixed_precision():
            return self.encoder.posterior(rows)

    def train_heads(self, tasks: Tensor) -> Tensor | None:
        """Output layers of training tasks; PEARL has one for all."""
        return None

    @torch.no_grad()
    def collection_policy(
        self,
        replay: MultiTaskReplay,
        tasks: Tensor,
        num_lanes: int,
        generator: torch.Generator,
        *,
        use_posterior: bool,
    ) -> ActorPolicy:
        """Stochastic policies for sampling training tasks (M,): a z of its own for each lane.

        Args:
            use_posterior: z ~ q(z|c), each lane's from a random context of its own; otherwise z ~ N(0, I).
        """
        size = self.config.context.latent_size
        q = Posterior.prior(len(tasks) * num_lanes, size)
        if use_posterior:
            q = self.posterior(self.sample_rows(replay, tasks.repeat_interleave(num_lanes), generator))
        mean, std = (x.view(len(tasks), num_lanes, size) for x in (q.mean, q.variance.sqrt()))
        heads = self.train_heads(tasks)
        return ActorPolicy(
            self.sac.actor, mean, std, self.train_known[tasks], self.bounds, heads, deterministic=False
        )


class PearlAdapter(MethodAdapter):
    """PEARL's test protocol.

    Episodes with z from the prior come first; from then on z is drawn from the posterior of everything seen, before
    every episode. All actions are deterministic. Scoring draws a z for every episode, too (or takes the mean).
    """

    _agent: Pearl

    def __init__(
        self, agent: Pearl, *, name: str = TITLES["pearl"], provenance: dict[str, Any] | None = None
    ) -> None:
        super().__init__(agent, name=name, provenance=provenance)
        self.sees = frozenset({"rewards", "psi"} if agent.sees_psi else {"rewards"})

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`: an empty context."""
        self._tasks = tasks
        known = (
            self._agent.known(tasks.psi)
            if self._agent.sees_psi
            else torch.zeros(len(tasks), 0, dtype=torch.float32)
        )
        self._known, self._num_episodes = known, 0
        self._rows: Tensor | None = None  # (M, n, .)

    def explore(self) -> Exploration:
        """See `Adapter`: one episode, with z from the prior at first."""
        context = self._agent.config.context
        q = self._prior() if self._num_episodes < context.num_prior_episodes else self._posterior()
        deterministic = context.test_exploration == "deterministic"
        return Exploration(self._policy(q, sample=True, deterministic=deterministic), 1)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`: the context grows."""
        rollout, reward = experience.rollout, self._rewards(experience)
        next_obs = rollout.next_obs if self._agent.config.context.has_next_obs else None
        act = self._agent.bounds.to_unit(rollout.act)
        rows = context_rows(rollout.obs, act, reward[..., None], next_obs).flatten(1, 2).float()
        finite = rows.isfinite().all(
            -1
        )  # a simulation that broke down says nothing: a sound row counts twice
        sound = rows[torch.arange(len(rows)), finite.int().argmax(1)][:, None]
        rows = torch.where(finite[..., None], rows, sound)
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows], dim=1)
        self._num_episodes += rollout.obs.shape[1]

    def adapted(self) -> Policy:
        """See `Adapter`."""
        return self._policy(self._posterior(), sample=self._agent.config.context.test_latent == "sample")

    def context(self) -> Tensor | None:
        """What the posterior is inferred from: (M, n, .), evenly spread over all rows if there are too many."""
        if self._rows is None:
            return None
        config = self._agent.config.context
        wanted, seen = config.max_test_transitions or config.num_transitions, self._rows.shape[1]
        if seen <= wanted:
            return self._rows
        return self._rows[:, torch.linspace(0, seen - 1, wanted, dtype=torch.float32).round().long()]

    def _prior(self) -> Posterior:
        return Posterior.prior(len(self._known), self._agent.config.context.latent_size)

    @torch.no_grad()
    def _posterior(self) -> Posterior:
        """q(z|c); the prior if nothing was seen."""
        context = self.context()
        return self._prior() if context is None else self._agent.encoder.posterior(context)

    def _policy(self, q: Posterior, *, sample: bool, deterministic: bool = True) -> Policy:
        std = q.variance.sqrt() if sample else torch.zeros_like(q.variance)
        agent = self._agent
        return ActorPolicy(
            agent.sac.actor,
            q.mean,
            std,
            self._known,
            agent.bounds,
            self._heads(),
            deterministic=deterministic,
        )

    def _heads(self) -> Tensor | None:
        """Output layers of the test tasks; PEARL has one for all."""
        return None
