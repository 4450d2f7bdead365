"""Meta-training of RL2 (Duan et al. 2016, Alg. of section 2.2; PPO as in ProMP's released RL2).

    for every iteration:
      draw meta_batch tasks, uniform in the box, or of those that `TrainingTasks` leaves
      num_trials trials of every task, each trial_episodes episodes from an empty memory
      value_scale follows the spread of the trials' returns to go
      one update on all of these samples (`ppo_update`)

A step, after which the training can stop and go on bit-identically, is an iteration.

Differs from the papers: families with published training tasks draw from the whole set of tasks, too; for those of
two directions that is the same.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from admrl.evaluation.adapter import Adapter
from admrl.jobs.reporter import Reporter
from admrl.methods.sampling import horizon_rollout
from admrl.methods.sizes import MethodSizes
from admrl.methods.state import MethodState
from admrl.methods.tasks import TrainingTasks, test_tasks
from admrl.recurrent.adapter import RecurrentAdapter
from admrl.recurrent.agent import RecurrentAgent, Sequence, joined
from admrl.recurrent.config import RecurrentConfig, check_recurrent
from admrl.recurrent.policy import RecurrentPolicy
from admrl.recurrent.ppo import AGENT, ppo_update, trial_batch
from admrl.solving.rollouts import mean_return, rewards
from admrl.solving.sac import Optimizers
from admrl.streams import Purpose, stream
from policy_opt.advantage import gae
from task_families.family import TaskFamily

SCALE_RATE = 0.1  # with which value_scale^2 follows the mean square of returns to go [ours]
SMALLEST_SCALE = 1e-6
NUM_GATES, NUM_OUTPUTS = 14, 20
"""Numbers of a step that are kept, for every unit and every output; fitted to peaks that a profiler saw, see
`tests/admrl/methods/test_sizes.py`."""


@dataclass(kw_only=True)
class RecurrentState(MethodState):
    """Everything that changes while RL2 trains."""

    config: RecurrentConfig
    agent: RecurrentAgent
    optimizers: Optimizers
    tasks: TrainingTasks

    def renew_optimizers(self) -> None:
        """See `MethodState`."""
        self.optimizers = self.optimizers.renewed({AGENT: list(self.agent.parameters())})

    def sizes(self) -> MethodSizes:
        """See `MethodState`; every step of a trial keeps the gates of its GRU."""
        config, agent = self.config, self.agent
        input_size, num_trials = agent.gru.input_size, config.meta_batch * config.num_trials
        num_steps = config.trial_episodes * self.family.horizon
        at_once = -(-num_trials // config.ppo.num_minibatches)
        width = input_size + NUM_GATES * config.hidden_size + NUM_OUTPUTS * agent.policy.out_features
        return MethodSizes(
            layers=(input_size, config.hidden_size, agent.policy.out_features),
            num_parameters=self.num_parameters,
            num_rows=at_once * num_steps,
            num_numbers=at_once * num_steps * width,
            num_data=2 * num_trials * num_steps * (input_size + agent.policy.out_features + 6),
            of_networks=("config.hidden_size",),
            of_step=("config.meta_batch", "config.num_trials"),
            of_data=("config.meta_batch", "config.num_trials"),
        )

    def take_step(self, reporter: Reporter, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        reporter.phase(f"iteration {self.step + 1}/{self.num_steps}")
        trials, metrics = sample_trials(self, num_threads)
        return metrics | _update(self, trials)

    def take_test(self, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        num_samples = (self.config.trial_episodes - 1) * self.family.horizon
        return self.test(self.test_psi, num_samples, num_threads)

    def adapter(
        self, agent: RecurrentAgent, *, name: str, provenance: dict[str, Any] | None = None
    ) -> Adapter:
        """See `MethodState`."""
        return RecurrentAdapter(agent, name=name, provenance=provenance)


def new_recurrent(family: TaskFamily, algorithm: str, config: RecurrentConfig, seed: int) -> RecurrentState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_recurrent`.
    """
    check_recurrent(config, family)
    agent = RecurrentAgent(family, config, stream(seed, Purpose.NETWORKS))
    return RecurrentState(
        algorithm=algorithm,
        family=family,
        config=config,
        seed=seed,
        agent=agent,
        tasks=TrainingTasks.make(family, config, seed),
        optimizers=Optimizers({AGENT: list(agent.parameters())}, config.ppo.learning_rate),
        generator=stream(seed, Purpose.BASELINE),
        test_psi=test_tasks(family, config.num_test_tasks),
    )


def sample_trials(state: RecurrentState, num_threads: int = 1) -> tuple[Sequence, dict[str, float]]:
    """The trials of an iteration, whole ones, and the mean return of their first and last episodes."""
    family, config, agent = state.family, state.config, state.acting_agent()
    psi = state.tasks.sample(config.meta_batch, state.generator)
    psi = psi.repeat_interleave(config.num_trials, 0)  # a lane is a trial
    memory = agent.empty_memory(len(psi))
    parts: list[Sequence] = []
    returns: list[float] = []
    for _ in range(config.trial_episodes):
        policy = RecurrentPolicy(agent, memory)
        rollout = horizon_rollout(family, policy, psi, 1, state.generator, num_threads)
        parts.append(agent.sequence(memory, rollout, rewards(family, psi, rollout)))
        with torch.no_grad():
            memory = agent.after(memory, parts[-1])
        returns.append(mean_return(family, psi, rollout))
        state.real_samples += rollout.num_samples
    return joined(parts).to(state.device), {
        "return_real_noisy": returns[-1],
        "return_first_noisy": returns[0],
    }


def _update(state: RecurrentState, trials: Sequence) -> dict[str, float]:
    """One update; what it reports."""
    agent, config = state.agent, state.config
    _follow_scale(state, trials)
    batch = trial_batch(agent, trials, config.gae_lambda)
    report = asdict(ppo_update(agent, state.optimizers, batch, config.ppo, state.generator))
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
    agent.value_scale.copy_(
        (agent.value_scale.square() + rate * (square - agent.value_scale.square())).sqrt()
    )
