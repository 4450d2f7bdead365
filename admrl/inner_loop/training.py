"""Meta-training of the inner-loop methods (MAML Alg. 3, ProMP Alg. 1).

    for every iteration:
      draw meta_batch tasks, uniform in the box, or of those that `TrainingTasks` leaves
      for j = 0 .. k-1: num_episodes of every task by theta_j, its linear baseline and advantages; an inner step
      num_episodes of every task by theta_k
      one outer update on all of these samples: `maml_trpo_step` (maml-trpo, maml-mt, maesn), `promp_step` (promp,
      maml-ppo)

A step, after which the training can stop and go on bit-identically, is an iteration.

Differs from the papers: families with published training tasks draw from the whole set of tasks, too; for those of
two directions that is the same.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from admrl.devices.transfer import on_device
from admrl.evaluation.adapter import Adapter
from admrl.inner_loop.adaptation import gradients
from admrl.inner_loop.adapter import InnerLoopAdapter
from admrl.inner_loop.config import InnerLoopConfig, check_inner_loop
from admrl.inner_loop.maesn_policy import MaesnAdapter, MaesnPolicy
from admrl.inner_loop.maml_trpo import maml_trpo_step
from admrl.inner_loop.meta_policy import MetaPolicy
from admrl.inner_loop.meta_problem import MetaProblem
from admrl.inner_loop.promp import promp_step
from admrl.jobs.reporter import Reporter
from admrl.methods.sampling import horizon_rollout
from admrl.methods.sizes import MethodSizes
from admrl.methods.state import MethodState
from admrl.methods.tasks import TrainingTasks, test_tasks
from admrl.solving.rollouts import brought, mean_return, rewards
from admrl.streams import Purpose, stream
from policy_opt.capture import Newest
from task_families.family import TaskFamily

CLIPPED = ("promp", "maml-ppo")  # the others have a trust region
KEPT = 2  # recorded outer updates
NUM_PASSES = 7
"""Of a phase through the policy, whose activations are kept until the outer update; fitted to peaks that a profiler
saw, see `tests/admrl/methods/test_sizes.py`."""


@dataclass(kw_only=True)
class InnerLoopState(MethodState):
    """Everything that changes while a method trains."""

    config: InnerLoopConfig
    agent: MetaPolicy | MaesnPolicy
    optimizer: torch.optim.Adam
    """Unused by a trust region."""
    recorded: Newest = field(default_factory=lambda: Newest(KEPT))
    """What a GPU has recorded of outer updates."""

    def renew_optimizers(self) -> None:
        """See `MethodState`."""
        moments = self.optimizer.state_dict()
        self.optimizer = make_optimizer(self.agent)
        self.optimizer.load_state_dict(moments)

    def sizes(self) -> MethodSizes:
        """See `MethodState`; every phase keeps its activations, and those of its second derivative."""
        config, policy = self.config, self.agent.policy
        layers = (policy.obs_size, *config.hidden_sizes, policy.act_size)
        num_rows = config.meta_batch * config.num_episodes * self.family.horizon
        return MethodSizes(
            layers=layers,
            num_parameters=self.num_parameters + config.meta_batch * policy.num_params,
            num_rows=num_rows,
            num_numbers=(config.num_steps + 1) * num_rows * (NUM_PASSES * sum(layers) + 4 * layers[0]),
            num_data=0,
            of_networks=("config.hidden_sizes",),
            of_step=("config.meta_batch", "config.num_episodes"),
            of_data=(),
        )

    def take_step(self, reporter: Reporter, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        reporter.phase(f"iteration {self.step + 1}/{self.num_steps}")
        problem, metrics = sample_problem(self, num_threads)
        return metrics | _update(self, problem)

    def take_test(self, num_threads: int) -> dict[str, float]:
        """See `MethodState`."""
        num_samples = self.config.num_steps * self.config.num_adapt_samples
        return self.test(self.test_psi, num_samples, num_threads)

    def adapter(
        self, agent: MetaPolicy | MaesnPolicy, *, name: str, provenance: dict[str, Any] | None = None
    ) -> Adapter:
        """See `MethodState`."""
        if isinstance(agent, MaesnPolicy):
            return MaesnAdapter(agent, name=name, provenance=provenance)
        return InnerLoopAdapter(agent, name=name, provenance=provenance)


def new_inner_loop(family: TaskFamily, algorithm: str, config: InnerLoopConfig, seed: int) -> InnerLoopState:
    """The beginning of a training.

    Raises:
        ValueError: see `check_inner_loop`.
    """
    check_inner_loop(config, family, algorithm)
    weights = stream(seed, Purpose.NETWORKS)
    agent: MetaPolicy | MaesnPolicy
    if algorithm == "maesn":
        agent = MaesnPolicy(family, config, weights)
    else:
        tasks = TrainingTasks.make(family, config, seed)
        agent = MetaPolicy(family, config, weights, tasks=tasks, sees_psi=algorithm == "maml-mt")
    return InnerLoopState(
        algorithm=algorithm,
        family=family,
        config=config,
        seed=seed,
        agent=agent,
        optimizer=make_optimizer(agent),
        generator=stream(seed, Purpose.BASELINE),
        test_psi=test_tasks(family, config.num_test_tasks),
    )


def make_optimizer(agent: MetaPolicy | MaesnPolicy) -> torch.optim.Adam:
    """Of the meta-parameters."""
    return torch.optim.Adam([agent.meta], lr=agent.config.clip.learning_rate)


def sample_problem(state: InnerLoopState, num_threads: int = 1) -> tuple[MetaProblem, dict[str, float]]:
    """The samples of an iteration, k + 1 phases, and the mean returns before and after the inner steps."""
    agent: Any = state.agent
    config, family = state.config, state.family
    rewarding = type(family)(variant="dense") if config.train_on_dense else family
    psi, drawn = agent.draw(state.generator)
    at, alpha = agent.start(drawn), agent.alpha()
    batches, returns = [], list[float]()
    for j in range(config.num_steps + 1):
        acting = agent.acting(at, drawn, state.generator)
        here = acting.on_host()
        rollout = horizon_rollout(
            family, here, psi, config.num_episodes, state.generator, num_threads, here.theta
        )  # `make_batch` computes the log-probabilities from the actions
        returns.append(mean_return(family, psi, rollout))
        there = on_device({"reward": rewards(rewarding, psi, rollout)}, state.device)["reward"]
        batches.append(agent.batch(acting, brought(rollout, state.device), there))
        if j < config.num_steps:
            at = at - alpha * gradients(agent.problem([], drawn).loss(batches[-1]))(at)
        state.real_samples += rollout.num_samples
    problem = agent.problem(batches, drawn)
    return problem, {"return_real_noisy": returns[-1], "return_first_noisy": returns[0]}


def _update(state: InnerLoopState, problem: MetaProblem) -> dict[str, float]:
    """One outer update; what it reports."""
    agent, config = state.agent, state.config
    if state.algorithm in CLIPPED:
        report = asdict(promp_step(agent.meta, state.optimizer, problem, config.clip, state.recorded))
        state.num_updates += config.clip.num_epochs
    else:
        new, trust = maml_trpo_step(agent.meta.detach(), problem, config.trpo, state.recorded)
        with torch.no_grad():
            agent.meta.copy_(new)
        report = asdict(trust)
        state.num_updates += 1
    broken = [name for name, value in report.items() if not math.isfinite(value)]
    if broken or not bool(agent.meta.isfinite().all()):
        raise FloatingPointError(
            f"{broken[0] if broken else 'the policy'} is not finite in iteration {state.step + 1}; the last "
            "checkpoint is sound. Try a smaller `config.step_size` or `config.clip.learning_rate`"
        )
    return report
