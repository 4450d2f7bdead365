"""Meta-training of RL2 (Duan et al. 2016, Alg. of section 2.2; PPO as in ProMP's released RL2).

    for every iteration:
      draw meta_batch tasks, uniform in the box
      num_trials trials of every task, each trial_episodes episodes from an empty memory
      value_scale follows the spread of the trials' returns to go
      one update on all of these samples (`ppo_update`)

A step, after which the training can stop and go on bit-identically, is an iteration.

Differs from the papers: families with published training tasks draw from the whole set of tasks, too; for those of
two directions that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.evaluator import adapt_and_score
from admrl.evaluation.scoring import telling
from admrl.jobs.reporter import Reporter, Silent
from admrl.recurrent.adapter import RecurrentAdapter
from admrl.recurrent.agent import Memory, RecurrentAgent, Sequence
from admrl.recurrent.config import TITLES, RecurrentConfig, check_recurrent
from admrl.recurrent.policy import RecurrentActor
from admrl.recurrent.ppo import ppo_update, trial_batch
from admrl.solving.rollouts import gaussian_noise
from admrl.streams import Purpose, stream
from policy_opt.advantage import gae
from task_families.family import TaskFamily
from task_families.rollout import Rollout, collect
from task_families.simulator import spawn_generators

TASK_SEED = 1337  # of the test tasks, as for the other baselines
NUM_TEST_EPISODES = 4  # of every task and point of the learning curve
SCALE_RATE = 0.1  # with which value_scale^2 follows the mean square of returns to go [ours]
SMALLEST_SCALE = 1e-6
OnStep = Callable[["RecurrentState"], None]


@dataclass
class CurvePoint:
    """A point of the learning curve."""

    iteration: int
    real_samples: int
    first_return: float  # A_0, mean over test tasks
    adapted_return: float  # of the last episode of a trial of the trained length


@dataclass
class RecurrentState:
    """Everything that changes while a method trains."""

    algorithm: str
    family: TaskFamily
    config: RecurrentConfig
    seed: int
    agent: RecurrentAgent
    optimizer: torch.optim.Adam
    generator: torch.Generator
    test_psi: Tensor  # (K, k)
    step: int = 0  # iterations that are done
    real_samples: int = 0
    num_updates: int = 0  # gradient steps
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.step >= self.config.num_iterations


def new_recurrent(family: TaskFamily, algorithm: str, config: RecurrentConfig, seed: int) -> RecurrentState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_recurrent`.
    """
    check_recurrent(config)
    agent = RecurrentAgent(family, config, stream(seed, Purpose.NETWORKS))
    published = family.published_tasks(TASK_SEED)
    test_psi = family.box.fixed(config.num_test_tasks, TASK_SEED) if published is None else published[1]
    return RecurrentState(
        algorithm=algorithm,
        family=family,
        config=config,
        seed=seed,
        agent=agent,
        optimizer=torch.optim.Adam(agent.parameters(), lr=config.ppo.learning_rate),
        generator=stream(seed, Purpose.BASELINE),
        test_psi=test_psi[: config.num_test_tasks],
    )


def train_recurrent(
    state: RecurrentState,
    *,
    reporter: Reporter | None = None,
    num_threads: int = 1,
    on_step: OnStep | None = None,
) -> None:
    """Go on until the training is finished; calls on_step after every iteration.

    Raises:
        FloatingPointError: the network is no longer finite.
    """
    reporter, config = reporter or Silent(), state.config
    while not state.finished:
        reporter.phase(f"iteration {state.step + 1}/{config.num_iterations}")
        trials, metrics = sample_trials(state, num_threads)
        metrics |= _update(state, trials)
        state.step += 1
        if state.step % config.test_every == 0:
            metrics |= _test(state, num_threads)
        reporter.advance(real_samples=state.real_samples, **metrics)
        if on_step is not None:
            on_step(state)


def sample_trials(state: RecurrentState, num_threads: int = 1) -> tuple[Sequence, dict[str, float]]:
    """The trials of an iteration, whole ones, and the mean return of their first and last episodes."""
    family, config, agent = state.family, state.config, state.agent
    psi = family.box.sample(config.meta_batch, "uniform", state.generator)
    memory = agent.empty_memory(config.meta_batch * config.num_trials)
    parts: list[Sequence] = []
    for _ in range(config.trial_episodes):
        rollout = _episode(state, memory, psi, num_threads)
        told = psi.to(rollout.obs)[:, None, None]
        reward = family.reward(told, rollout.obs, rollout.act, rollout.next_obs)
        parts.append(agent.sequence(memory, rollout, reward))
        with torch.no_grad():
            memory = agent.after(memory, parts[-1])
        state.real_samples += rollout.num_samples
    first, last = (float(part.reward.sum(0).mean()) for part in (parts[0], parts[-1]))
    names = ("inputs", "act", "reward", "ended", "sound")
    joined = Sequence(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    return joined, {"return_real_noisy": last, "return_first_noisy": first}


def _episode(state: RecurrentState, memory: Memory, psi: Tensor, num_threads: int) -> Rollout:
    """One horizon of every lane."""
    family, shape = state.family, (len(psi), state.config.num_trials)
    generators = spawn_generators(state.generator, len(psi))
    noise = gaussian_noise(shape, family.horizon, family.act_size, generators, memory.hidden)
    act = RecurrentActor(state.agent, memory, noise)
    simulator = family.make_simulator(shape, num_threads=num_threads, psi=psi)
    withheld = torch.full(shape, torch.nan, dtype=torch.float32)  # `trial_batch` computes it from the actions
    return collect(
        simulator,
        family,
        lambda t, obs: (act(t, obs), withheld),
        family.horizon,
        generators,
        on_step=telling(family, psi, act),
    )


def _update(state: RecurrentState, trials: Sequence) -> dict[str, float]:
    """One update; what it reports."""
    agent, config = state.agent, state.config
    _follow_scale(state, trials)
    batch = trial_batch(agent, trials, config.gae_lambda)
    report = asdict(ppo_update(agent, state.optimizer, batch, config.ppo, state.generator))
    state.num_updates += config.ppo.num_epochs * config.ppo.num_minibatches
    broken = [name for name, value in report.items() if not math.isfinite(value)]
    if broken or not all(bool(p.isfinite().all()) for p in agent.parameters()):
        raise FloatingPointError(
            f"{broken[0] if broken else 'the network'} is not finite in iteration {state.step + 1}; the last "
            "checkpoint is sound. Try a smaller `config.ppo.learning_rate`"
        )
    return report


def _follow_scale(state: RecurrentState, trials: Sequence) -> None:
    """value_scale: the root mean square of returns to go, of the first iteration, then a moving mean."""
    agent, reward = state.agent, trials.reward.T
    nothing, end = torch.zeros_like(reward), torch.zeros_like(reward, dtype=torch.bool)
    to_go = gae(reward, nothing, nothing, end, end, gamma=agent.gamma, gae_lambda=1.0)
    square = to_go.square().mean().clamp_min(SMALLEST_SCALE**2)
    rate = 1.0 if state.step == 0 else SCALE_RATE
    agent.value_scale.copy_((agent.value_scale.square() + rate * (square - agent.value_scale.square())).sqrt())


def _test(state: RecurrentState, num_threads: int) -> dict[str, float]:
    """A point of the learning curve: the test protocol on the test tasks, one trial of the trained length."""
    num_before = state.config.trial_episodes - 1
    config = EvaluationConfig(
        num_policy_seeds=1,
        num_episodes=NUM_TEST_EPISODES,
        num_stages=min(num_before, 1),
        num_stage_samples=max(num_before, 1) * state.family.horizon,
    )
    adapter = RecurrentAdapter(state.agent, name=TITLES[state.algorithm])
    adapted = adapt_and_score(
        state.family, adapter, state.test_psi, config, state.seed, num_threads=num_threads
    )
    returns = np.nanmean(adapted.episode_return, axis=(0, 1, 3))
    point = CurvePoint(state.step, state.real_samples, float(returns[0]), float(returns[-1]))
    state.curve.append(point)
    return {"test_return": point.adapted_return, "test_return_0": point.first_return}
