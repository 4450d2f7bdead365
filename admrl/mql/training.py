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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Act, Policy
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.scoring import action_noise, simulate
from admrl.jobs.reporter import Reporter, Silent
from admrl.mql.adapter import MqlAdapter
from admrl.mql.config import MqlConfig, check_mql
from admrl.mql.networks import Agent
from admrl.mql.policy import policy_of
from admrl.mql.replay import PooledReplay, rows_of
from admrl.mql.td3 import td3_step
from admrl.solving.rollouts import episode_returns
from admrl.solving.sac import Optimizers
from admrl.streams import Purpose, stream
from task_families.family import TaskFamily
from task_families.simulator import ActionBounds, spawn_generators

UPDATES_PER_STEP = 50
TASK_SEED = 1337  # of the published task sets, and of those that are drawn here
NUM_TEST_EPISODES = 4  # of every task and point of the learning curve
OnStep = Callable[["MqlState"], None]


@dataclass
class CurvePoint:
    """A point of the learning curve."""

    iteration: int
    real_samples: int
    num_updates: int
    first_return: float  # A_0, mean over test tasks
    adapted_return: float  # A_n after num_test_samples


@dataclass
class MqlState:
    """Everything that changes while MQL trains."""

    family: TaskFamily
    config: MqlConfig
    seed: int
    agent: Agent
    optimizers: Optimizers
    replay: PooledReplay
    generator: torch.Generator
    train_psi: Tensor  # (K, k)
    test_psi: Tensor
    step: int = 0  # steps that are done, of `num_steps`
    real_samples: int = 0
    num_updates: int = 0  # steps of the critics
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.step >= num_steps(self.config)

    @property
    def iteration(self) -> int:
        """Iterations that are done, or the number of the present one, from 0."""
        return max(self.step - 1, 0) // steps_per_iteration(self.config)


def steps_per_iteration(config: MqlConfig) -> int:
    """The sampling, and blocks of TD3 steps."""
    return 1 + math.ceil(config.num_updates / UPDATES_PER_STEP)


def num_steps(config: MqlConfig) -> int:
    """Steps of a training; the first samples all tasks."""
    return 1 + config.num_iterations * steps_per_iteration(config)


def task_sets(family: TaskFamily, config: MqlConfig) -> tuple[Tensor, Tensor]:
    """Training and test tasks (n, k): published ones where there are, at most as many as configured."""
    published = family.published_tasks(TASK_SEED)
    if published is None:
        drawn = family.box.fixed(config.num_tasks + config.num_test_tasks, TASK_SEED)
        return drawn[: config.num_tasks], drawn[config.num_tasks :]
    train, test = published
    return train[: config.num_tasks], test[: config.num_test_tasks]


def new_mql(family: TaskFamily, config: MqlConfig, seed: int) -> MqlState:
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


def train_mql(
    state: MqlState,
    *,
    reporter: Reporter | None = None,
    num_threads: int = 1,
    on_step: OnStep | None = None,
) -> None:
    """Go on until the training is finished; calls on_step after every step.

    Raises:
        FloatingPointError: a loss is no longer finite.
    """
    reporter, config = reporter or Silent(), state.config
    per_iteration, told = steps_per_iteration(config), False
    while not state.finished:
        if state.step == 0:
            reporter.phase(f"sampling {len(state.train_psi)} training tasks")
            metrics = _sample_everything(state, num_threads)
        else:
            position = (state.step - 1) % per_iteration
            if position == 0 or not told:  # also where it goes on
                reporter.phase(f"iteration {state.iteration + 1}/{config.num_iterations}")
                told = True
            if position == 0:
                metrics = _sample_iteration(state, num_threads)
            else:
                done = (position - 1) * UPDATES_PER_STEP
                metrics = _update(state, min(UPDATES_PER_STEP, config.num_updates - done))
            ended = position == per_iteration - 1
            if ended and (state.iteration + 1) % config.test_every == 0:
                metrics |= _test(state, num_threads)
        state.step += 1
        reporter.advance(real_samples=state.real_samples, **metrics)
        if on_step is not None:
            on_step(state)


def _update(state: MqlState, num: int) -> dict[str, float]:
    """Some TD3 steps; the metrics of the last."""
    metrics: dict[str, Tensor] = {}
    config, replay = state.config, state.replay
    for _ in range(num):
        index = replay.draw(config.td3.batch_size, config.replay_size, state.generator)
        batch = replay.episodes.batch(index[None], config.td3.history_length)  # all tasks as one
        noise = torch.randn(batch.act.shape, generator=state.generator, dtype=torch.float32)
        state.num_updates += 1
        moves_actor = state.num_updates % config.td3.policy_delay == 0
        metrics |= td3_step(state.agent, state.optimizers, batch, noise, moves_actor=moves_actor)
    values = {name: float(value) for name, value in metrics.items()}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{broken[0]} is not finite after {state.num_updates} TD3 steps; the last checkpoint is sound. Try a "
            "smaller `config.td3.learning_rate`"
        )
    return values


def _test(state: MqlState, num_threads: int) -> dict[str, float]:
    """A point of the learning curve: the test protocol on the test tasks."""
    config = EvaluationConfig(
        num_policy_seeds=1,
        num_episodes=NUM_TEST_EPISODES,
        num_stages=1,
        num_stage_samples=state.config.num_test_samples,
    )
    adapter = MqlAdapter(state.agent, state.replay, state.config)
    adapted = adapt_and_score(
        state.family, adapter, state.test_psi, config, state.seed, num_threads=num_threads
    )
    first, last = np.nanmean(adapted.episode_return, axis=(0, 1, 3))
    point = CurvePoint(
        state.iteration + 1, state.real_samples, state.num_updates, float(first), float(last)
    )
    state.curve.append(point)
    return {"test_return": point.adapted_return, "test_return_0": point.first_return}


# -- sampling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UniformActions:
    """A policy that draws every action uniformly within its limits."""

    bounds: ActionBounds

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Act:
        """See `Policy.actor`: the noise is standard normal, so that its distribution function is uniform."""
        return lambda t, obs: self.bounds.from_unit(2 * torch.special.ndtr(noise[t]) - 1)


def _sample_everything(state: MqlState, num_threads: int) -> dict[str, float]:
    """The first samples of every training task."""
    num_lanes = state.config.num_initial_steps // state.family.horizon
    policy = UniformActions(state.family.action_bounds)
    return _record(state, torch.arange(len(state.train_psi)), num_lanes, policy, num_threads)


def _sample_iteration(state: MqlState, num_threads: int) -> dict[str, float]:
    """The samples of an iteration."""
    config = state.config
    tasks = torch.randint(len(state.train_psi), (config.tasks_per_iteration,), generator=state.generator)
    policy = policy_of(state.agent, config.td3.exploration_noise)
    return _record(state, tasks, 1, policy, num_threads)


def _record(
    state: MqlState, tasks: Tensor, num_lanes: int, policy: Policy, num_threads: int
) -> dict[str, float]:
    """Real episodes of tasks (M,) into the replay; what is reported of them."""
    family, psi, shape = state.family, state.train_psi[tasks], (len(tasks), num_lanes)
    generators = spawn_generators(state.generator, len(tasks))
    act = policy.actor(action_noise(family, shape, generators), generators)
    rollout = simulate(family, psi, shape, act, generators, num_threads, sees=frozenset({"rewards"}))
    at = psi.to(rollout.obs)[:, None, None]
    reward = family.reward(at, rollout.obs, rollout.act, rollout.next_obs)
    rows = rows_of(rollout, reward, family.action_bounds)
    for task, row, position, is_sound in zip(tasks.tolist(), *rows, strict=True):
        # the last step of a simulation that broke down is left out
        state.replay.add(task, row[is_sound], position[is_sound])
    state.real_samples += rollout.num_samples
    returns = episode_returns(family, psi, rollout)
    return {"return_real_noisy": float(returns[returns.isfinite()].mean())}
