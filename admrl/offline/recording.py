"""The buffers of the training tasks: recorded in the simulator by learners, an episode of every task at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from admrl.evaluation.scoring import action_noise, simulate
from admrl.jobs.reporter import Reporter
from admrl.methods.tasks import TASK_SEED
from admrl.offline.behaviour import Recorder
from admrl.offline.buffers import OfflineData, joined
from admrl.solving.rollouts import rewards
from task_families.family import TaskFamily
from task_families.simulator import spawn_generators

TRAINING_SEED = TASK_SEED + 1  # so that training tasks do not depend on how many test tasks there are
DATA_TEST_SEED = TASK_SEED + 2  # of test tasks where the data may be of tasks of TASK_SEED


def training_tasks(family: TaskFamily, num_tasks: int) -> Tensor:
    """Tasks (K, k): the first published training tasks, at most so many, or drawn once; few are the first of many."""
    published = family.published_tasks(TASK_SEED)
    psi = family.box.fixed(num_tasks, TRAINING_SEED) if published is None else published[0]
    return psi[:num_tasks]


def record(
    family: TaskFamily,
    recorder: Recorder,
    psi: Tensor,
    num_samples: int,
    generator: torch.Generator,
    reporter: Reporter,
    num_threads: int = 1,
) -> OfflineData:
    """num_samples transitions of each of tasks psi (K, k): the lifetime of a learner of its own."""
    generators = spawn_generators(generator, len(psi))
    learner = recorder.learner(generators, num_samples)
    shape, task, parts = (len(psi), 1), torch.arange(len(psi)), []
    num_episodes = num_samples // family.horizon
    for n in range(num_episodes):
        if n % max(1, num_episodes // 10) == 0:
            reporter.phase(f"recording {len(psi)} buffers: episode {n + 1}/{num_episodes}")
        act = learner.policy().actor(action_noise(family, shape, generators), generators)
        rollout = simulate(family, psi, shape, act, generators, num_threads)
        reward = rewards(family, psi, rollout)
        parts.append(OfflineData.of_rollout(rollout, reward, recorder.units, task))
        learner.learn(rollout, reward)
    return joined(parts, len(psi))
