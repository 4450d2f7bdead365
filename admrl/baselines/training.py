"""Meta-training of a baseline: PEARL's loop of sampling and gradient steps, for all algorithms (CRL Alg. 1).

    first: num_initial_steps of every training task, z ~ prior (or constant actions)   -> context and replay
    for every iteration:
      draw tasks_per_iteration tasks with replacement; clear their contexts (clear_context)
      num_prior_steps with z ~ prior                                           -> context and replay
      num_posterior_steps with z ~ q(z|c), inferred anew for every episode     -> context and replay
      num_extra_steps with z ~ q(z|c)                                          -> replay alone
      num_updates gradient steps on meta-batches of all training tasks; contexts: the present ones, or (num_episodes)
        so many consecutive episodes of all that ever were in a context

A step, after which the training can stop and go on bit-identically, is the sampling of an iteration or
UPDATES_PER_STEP gradient steps. All tasks and episodes that do not depend on each other are simulated together.

Differs from the papers: a task that is drawn twice in an iteration keeps the context of both, because both are
simulated at once; the released code clears the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admrl.baselines.config import BaselineConfig, check_baseline
from admrl.baselines.crl import Crl, CrlAdapter
from admrl.baselines.multitask import MultiTaskSac, multitask_adapter
from admrl.baselines.pearl import Pearl, PearlAdapter
from admrl.baselines.replay import MultiTaskReplay
from admrl.evaluation.adapter import Act, Adapter, Policy
from admrl.methods.sampling import horizon_rollout
from admrl.methods.sizes import MethodSizes
from admrl.methods.state import ReplayState
from admrl.methods.tasks import task_sets
from admrl.solving.rollouts import mean_return, rewards
from admrl.solving.sac import Optimizers
from admrl.streams import Purpose, stream
from task_families.family import TaskFamily
from task_families.simulator import ActionBounds

Agent = Pearl | MultiTaskSac
NUM_PASSES = 7
"""Of a gradient step through networks of the size of Q, whose activations are kept; fitted to peaks that a profiler
saw, see `tests/admrl/methods/test_sizes.py`."""


def make_agent(
    algorithm: str, family: TaskFamily, config: BaselineConfig, generator: torch.Generator
) -> Agent:
    """A new agent with random weights."""
    psi, _ = task_sets(family, config)
    if algorithm in ("pearl", "pearl-mt"):
        return Pearl(family, config, psi, generator, sees_psi=algorithm == "pearl-mt")
    if algorithm == "crl":
        return Crl(family, config, psi, generator)
    return MultiTaskSac(family, config, psi, generator)


@dataclass(kw_only=True)
class BaselineState(ReplayState):
    """Everything that changes while a baseline trains."""

    rl_family: TaskFamily
    """Whose reward the critic learns from."""
    config: BaselineConfig
    agent: Agent
    optimizers: Optimizers
    replay: MultiTaskReplay
    unit = "gradient steps"
    remedy = "a smaller `config.sac.learning_rate` or `config.sac.reward_scale`"

    def renew_optimizers(self) -> None:
        """See `MethodState`."""
        self.optimizers = self.optimizers.renewed(self.agent.parameter_groups())

    def move_data(self, device: torch.device) -> None:
        """See `MethodState`."""
        self.replay.to(device)

    def sizes(self) -> MethodSizes:
        """See `MethodState`; Q1, Q2, V and the policy keep the activations of one or two passes."""
        config, sac = self.config, self.agent.sac
        layers = sac.q1.sizes
        num_rows = config.meta_batch * config.sac.batch_size
        numbers = NUM_PASSES * num_rows * sum(layers)
        if isinstance(self.agent, Pearl):
            numbers += (
                2 * config.meta_batch * config.context.num_transitions * sum(self.agent.encoder.net.sizes)
            )
        if isinstance(self.agent, Crl):
            numbers += 2 * config.meta_batch * config.crl.num_transitions * sum(self.agent.adapter.each.sizes)
        return MethodSizes(
            layers=layers,
            num_parameters=self.num_parameters,
            num_rows=num_rows,
            num_numbers=numbers,
            num_data=self.replay.capacity,
            of_networks=("config.sac.hidden_sizes",),
            of_step=("config.sac.batch_size", "config.meta_batch"),
            of_data=("config.num_iterations", "config.tasks_per_iteration", "config.num_extra_steps"),
        )

    def sample_all(self, num_threads: int) -> dict[str, float]:
        """See `ReplayState`."""
        num_lanes = self.config.num_initial_steps // self.family.horizon
        tasks = torch.arange(len(self.train_psi))
        if self.config.initial_actions == "constant":
            returns = _record(
                self,
                tasks,
                num_lanes,
                num_threads,
                ConstantActions(self.family.action_bounds),
                to_context=True,
            )
        else:
            returns = _episodes(self, tasks, num_lanes, num_threads, use_posterior=False)
        return {"return_real_noisy": returns}

    def sample_some(self, num_threads: int) -> dict[str, float]:
        """See `ReplayState`."""
        config, horizon = self.config, self.family.horizon
        tasks = torch.randint(len(self.train_psi), (config.tasks_per_iteration,), generator=self.generator)
        if config.clear_context:
            for task in tasks.tolist():
                self.replay.context.clear(task)
        returns = _episodes(self, tasks, config.num_prior_steps // horizon, num_threads, use_posterior=False)
        # one after the other, since each enters the context of the next
        for _ in range(config.num_posterior_steps // horizon):
            returns = _episodes(self, tasks, 1, num_threads, use_posterior=True)
        num_extra = config.num_extra_steps // horizon
        if num_extra:  # they leave the context as it is, so they may run together
            returns = _episodes(self, tasks, num_extra, num_threads, use_posterior=True, to_context=False)
        return {"return_real_noisy": returns}

    def update(self, num_updates: int) -> dict[str, float]:
        """See `ReplayState`."""
        if self.config.sac.learning_rate_decay == "linear":
            # at the resolution of a step, so that a training that goes on is the same
            left = 1 - self.num_updates / (self.config.num_iterations * self.config.num_updates)
            self.optimizers.set_learning_rate(left * self.config.sac.learning_rate)
        return super().update(num_updates)

    def gradient_step(self) -> dict[str, Tensor]:
        """See `ReplayState`."""
        return self.agent.update(self.replay, self.optimizers, self.generator)

    def take_test(self, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        num_samples = max(2, self.config.context.num_prior_episodes) * self.family.horizon
        psi = self.train_psi if self.config.task_input == "onehot" else self.test_psi
        return self.test(psi, num_samples, num_threads)

    def adapter(self, agent: Agent, *, name: str, provenance: dict[str, Any] | None = None) -> Adapter:
        """See `MethodState`."""
        if isinstance(agent, Crl):
            return CrlAdapter(agent, name=name, provenance=provenance)
        if isinstance(agent, Pearl):
            return PearlAdapter(agent, name=name, provenance=provenance)
        return multitask_adapter(agent, name, provenance)


def new_baseline(family: TaskFamily, algorithm: str, config: BaselineConfig, seed: int) -> BaselineState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_baseline`.
    """
    check_baseline(config, algorithm, family)
    weights, generator = stream(seed, Purpose.NETWORKS), stream(seed, Purpose.BASELINE)
    train_psi, test_psi = task_sets(family, config)
    agent = make_agent(algorithm, family, config, weights)
    iteration = config.num_prior_steps + config.num_posterior_steps + config.num_extra_steps
    capacity = len(train_psi) * config.num_initial_steps
    capacity += config.num_iterations * config.tasks_per_iteration * iteration
    return BaselineState(
        algorithm=algorithm,
        family=family,
        rl_family=type(family)(variant="dense") if config.train_on_dense else family,
        config=config,
        seed=seed,
        agent=agent,
        optimizers=Optimizers(agent.parameter_groups(), config.sac.learning_rate),
        replay=MultiTaskReplay(len(train_psi), capacity, family.obs_size, family.act_size),
        generator=generator,
        train_psi=train_psi,
        test_psi=test_psi,
    )


class ConstantActions:
    """A policy that holds one random action through each episode."""

    def __init__(self, bounds: ActionBounds) -> None:
        self._bounds = bounds

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`."""
        return lambda t, obs: self._bounds.from_unit(noise[0].clamp(-1, 1))


# -- sampling -----------------------------------------------------------------------------------------------------


def _episodes(
    state: BaselineState,
    tasks: Tensor,
    num_lanes: int,
    num_threads: int,
    *,
    use_posterior: bool,
    to_context: bool = True,
) -> float:
    """Real episodes of the agent's in tasks (M,), see `_record`."""
    policy = state.acting_agent().collection_policy(
        state.replay, tasks, num_lanes, state.generator, use_posterior=use_posterior
    )
    return _record(state, tasks, num_lanes, num_threads, policy, to_context=to_context)


def _record(
    state: BaselineState, tasks: Tensor, num_lanes: int, num_threads: int, policy: Policy, *, to_context: bool
) -> float:
    """Real episodes of tasks (M,) into the replay; their mean return."""
    psi = state.train_psi[tasks]
    rollout = horizon_rollout(state.family, policy, psi, num_lanes, state.generator, num_threads)
    shown = rewards(state.family, psi, rollout)
    reward = shown if state.rl_family is state.family else rewards(state.rl_family, psi, rollout)
    unit = state.family.action_bounds.to_unit(rollout.act)
    for m, task in enumerate(tasks.tolist()):
        columns = [
            x[m].flatten(0, 1)
            for x in (rollout.obs, unit, rollout.next_obs, reward, shown, rollout.terminated)
        ]
        sound = columns[2].isfinite().all(-1)  # the last step of a simulation that broke down is left out
        obs, act, next_obs, r, c, terminated = (x[sound] for x in columns)
        state.replay.add(task, obs, act, next_obs, r, c, terminated, to_context=to_context)
    state.real_samples += rollout.num_samples
    return mean_return(state.family, psi, rollout)
