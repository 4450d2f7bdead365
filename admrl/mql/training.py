"""Meta-training of MQL: TD3 on the pooled transitions of all training tasks (MQL section 3.1).

    first: num_initial_steps of every training task, uniform actions                           -> replay
    for every iteration:
      an episode of each of tasks_per_iteration tasks, drawn with replacement, with noise      -> replay
      num_updates TD3 steps on batches of all tasks together

A step, after which the training can stop and go on bit-identically, is the sampling of an iteration or
UPDATES_PER_STEP TD3 steps. The tasks of an iteration are simulated together.

Differs from the paper: all of the first samples have uniform actions, where the released code changes over to the
policy after 1e4 of them; and every iteration has num_updates steps, where it has fewer while the replay is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.evaluation.adapter import Act, Adapter, Policy
from admrl.evaluation.scoring import action_noise, simulate
from admrl.methods.sizes import MethodSizes
from admrl.methods.state import ReplayState
from admrl.methods.tasks import task_sets
from admrl.mql.adapter import MqlAdapter
from admrl.mql.config import MqlConfig, check_mql
from admrl.mql.networks import Agent
from admrl.mql.policy import policy_of
from admrl.mql.replay import Batch, PooledReplay, rows_of
from admrl.mql.td3 import td3_step
from admrl.solving.rollouts import mean_return, rewards
from admrl.solving.sac import Optimizers
from admrl.streams import Purpose, stream
from task_families.family import TaskFamily
from task_families.simulator import ActionBounds, spawn_generators

NUM_GATES, NUM_TUPLES, NUM_PASSES = 16, 6, 8
"""Numbers of a gradient step that are kept: of every tuple for each unit of the GRU and each of its inputs, of every
row for each unit of the critics; fitted to peaks that a profiler saw (`tests/admrl/methods/test_sizes.py`)."""


@dataclass(kw_only=True)
class MqlState(ReplayState):
    """Everything that changes while MQL trains."""

    config: MqlConfig
    agent: Agent
    optimizers: Optimizers
    replay: PooledReplay
    unit = "TD3 steps"
    remedy = "a smaller `config.td3.learning_rate`"

    def renew_optimizers(self) -> None:
        """See `MethodState`."""
        self.optimizers = self.optimizers.renewed(self.agent.parameter_groups())

    def move_data(self, device: torch.device) -> None:
        """See `MethodState`."""
        self.replay.to(device)

    def sizes(self) -> MethodSizes:
        """See `MethodState`; every tuple of a history keeps the gates of a GRU."""
        td3, layers = self.config.td3, self.agent.critic.q1.sizes
        tuple_size = self.agent.critic.context.input.in_features
        history = td3.history_length * (NUM_GATES * td3.context_size + NUM_TUPLES * tuple_size)
        return MethodSizes(
            layers=layers,
            num_parameters=self.num_parameters,
            num_rows=td3.batch_size,
            num_numbers=td3.batch_size * (history + NUM_PASSES * sum(layers)),
            num_data=self.replay.capacity,
            of_networks=("config.td3.hidden_sizes",),
            of_step=("config.td3.batch_size", "config.td3.history_length"),
            of_data=("config.num_iterations", "config.tasks_per_iteration"),
        )

    def sample_all(self, num_threads: int) -> dict[str, float]:
        """See `ReplayState`."""
        num_lanes = self.config.num_initial_steps // self.family.horizon
        policy = UniformActions(self.family.action_bounds)
        return _record(self, torch.arange(len(self.train_psi)), num_lanes, policy, num_threads)

    def sample_some(self, num_threads: int) -> dict[str, float]:
        """See `ReplayState`."""
        config = self.config
        tasks = torch.randint(len(self.train_psi), (config.tasks_per_iteration,), generator=self.generator)
        policy = policy_of(self.acting_agent(), config.td3.exploration_noise)
        return _record(self, tasks, 1, policy, num_threads)

    def gradient_step(self) -> dict[str, Tensor]:
        """See `ReplayState`; recorded where the device can, with the actor and without it."""
        config, agent, optimizers = self.config, self.agent, self.optimizers
        index = self.replay.draw(config.td3.batch_size, config.replay_size, self.generator)
        batch = self.replay.episodes.batch(index[None], config.td3.history_length)  # all tasks as one
        noise = torch.randn(batch.act.shape, generator=self.generator, dtype=torch.float32).to(self.device)
        moves_actor = (self.num_updates + 1) % config.td3.policy_delay == 0

        def step(noise: Tensor, *batch: Tensor) -> dict[str, Tensor]:
            return td3_step(agent, optimizers, Batch(*batch), noise, moves_actor=moves_actor)

        name = f"a TD3 step {'with' if moves_actor else 'without'} the actor"
        return optimizers.captured(name, agent, step, noise, *batch.tensors())

    def take_test(self, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        return self.test(self.test_psi, self.config.num_test_samples, num_threads)

    def adapter(self, agent: Agent, *, name: str, provenance: dict[str, Any] | None = None) -> Adapter:
        """See `MethodState`."""
        return MqlAdapter(agent, self.replay, self.config, name=name, provenance=provenance)


def new_mql(family: TaskFamily, algorithm: str, config: MqlConfig, seed: int) -> MqlState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_mql`.
    """
    check_mql(config, family)
    train_psi, test_psi = task_sets(family, config)
    agent = Agent(family, config.td3, stream(seed, Purpose.NETWORKS))
    capacity = len(train_psi) * config.num_initial_steps
    capacity += config.num_iterations * config.tasks_per_iteration * family.horizon
    return MqlState(
        algorithm=algorithm,
        family=family,
        config=config,
        seed=seed,
        agent=agent,
        optimizers=Optimizers(agent.parameter_groups(), config.td3.learning_rate),
        replay=PooledReplay(len(train_psi), capacity, family.obs_size, family.act_size),
        generator=stream(seed, Purpose.BASELINE),
        train_psi=train_psi,
        test_psi=test_psi,
    )


# -- sampling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UniformActions:
    """A policy that draws every action uniformly within its limits."""

    bounds: ActionBounds

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`: the noise is standard normal, so that its distribution function is uniform."""
        return lambda t, obs: self.bounds.from_unit(2 * torch.special.ndtr(noise[t]) - 1)


def _record(
    state: MqlState, tasks: Tensor, num_lanes: int, policy: Policy, num_threads: int
) -> dict[str, float]:
    """Real episodes of tasks (M,) into the replay; what is reported of them."""
    family, psi, shape = state.family, state.train_psi[tasks], (len(tasks), num_lanes)
    generators = spawn_generators(state.generator, len(tasks))
    act = policy.actor(action_noise(family, shape, generators), generators)
    rollout = simulate(family, psi, shape, act, generators, num_threads, sees=frozenset({"rewards"}))
    rows = rows_of(rollout, rewards(family, psi, rollout), family.action_bounds)
    for task, row, position, is_sound in zip(tasks.tolist(), *rows, strict=True):
        # the last step of a simulation that broke down is left out
        state.replay.add(task, row[is_sound], position[is_sound])
    state.real_samples += rollout.num_samples
    return {"return_real_noisy": mean_return(family, psi, rollout)}
