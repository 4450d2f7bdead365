"""MACAW on Bernoulli bandits: the share of the best arm's reward after n pulls of a task that no training has seen.

    admrl train-baseline macaw --family bernoulli_bandit_5 --config.num-tasks 12 --seed 0 --out runs/bandit-12-0
    OMP_NUM_THREADS=1 python benchmarks/macaw_bandits.py runs/bandit-12-0

Claim: after an inner step on 1000 pulls of the recording learner, at least 90 %. Every policy is scored by 1000 pulls
or more of each of 100 fresh tasks. Columns, all of them shares of the best arm's mean (n is rounded up to whole
episodes):

    recorded       what the pulls of the buffers brought
    n              n pulls of the recording learner, then one inner step (offline)
    n greedy       the same pulls, and the arm with the largest posterior mean: all that the data says
    n online       n pulls of the policy itself, then one inner step
    n, trained     as n, on the tasks of the buffers
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from admrl.baselines import AdapterError
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Act, Adapter, Experience, Exploration, Policy, Tasks
from admrl.evaluation.evaluator import adapt_and_score
from admrl.offline.adapter import LEARNER, MacawAdapter
from admrl.offline.agent import MacawAgent
from admrl.offline.recording import training_tasks
from admrl.offline.run import MacawRun

SEED, TASK_SEED = 54_321, 99  # of the scoring and of its tasks; no training has them
COUNTS = (0, 10, 100, 1000)
NUM_TASKS, NUM_PULLS = 100, 1000


class Greedy:
    """The recording learner, and then always the arm that it holds for the best."""

    name, sees = "greedy", frozenset({"rewards", "offline data"})

    def __init__(self, agent: MacawAgent) -> None:
        self._recorder = agent.recorder

    def begin(self, tasks: Tasks) -> None:
        """See `Adapter`."""
        self._learner = self._recorder.learner(tasks.fresh_generators(LEARNER), tasks.sample_counts[-1])
        arms = self._recorder.act_size
        self._won, self._pulled = torch.zeros(len(tasks), arms), torch.zeros(len(tasks), arms)

    def explore(self) -> Exploration:
        """See `Adapter`."""
        return Exploration(self._learner.policy(), 1)

    def observe(self, experience: Experience) -> None:
        """See `Adapter`."""
        if experience.reward is None:
            raise AdapterError("greedy: needs rewards")
        act = experience.rollout.act
        self._won = self._won + (act * experience.reward[..., None]).sum((1, 2))
        self._pulled = self._pulled + act.sum((1, 2))
        self._learner.learn(experience.rollout, experience.reward)

    def adapted(self) -> Policy:
        """See `Adapter`."""
        return Arms((1 + self._won) / (2 + self._pulled))

    def spent(self) -> dict[str, int]:
        """See `Adapter`."""
        return {}

    def provenance(self) -> dict[str, int]:
        """See `Adapter`."""
        return {}


class Arms:
    """Always the arm with the largest number (M, A)."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def actor(self, noise: Tensor, generators: object) -> Act:
        """See `Policy.actor`."""
        return lambda t, obs: self._value.to(obs)[:, None].expand(-1, obs.shape[1], -1)


def share(run: MacawRun, adapter: Adapter, psi: Tensor, n: int) -> float:
    """Of the best arms' mean reward, after n pulls of each task."""
    horizon = run.family.horizon
    config = EvaluationConfig(
        num_policy_seeds=1,
        num_episodes=-(-NUM_PULLS // horizon),
        num_stages=1,
        num_stage_samples=-(-max(n, 1) // horizon) * horizon,
    )
    stage = 0 if n == 0 else 1
    adapted = adapt_and_score(run.family, adapter, psi, config, SEED)
    return float(adapted.episode_return[0, :, stage].mean() / horizon / psi.max(1).values.mean())


def row(path: Path) -> list[str]:
    """A run's numbers."""
    run = MacawRun.load(path)
    agent, config = run.state.agent, run.info.config
    fresh, seen = run.family.box.fixed(NUM_TASKS, TASK_SEED), training_tasks(run.family, config.num_tasks)
    data = run.state.data
    assert data is not None
    offline = MacawAdapter(agent, name="offline")
    found = [float(data.reward.mean() / seen.max(1).values.mean())]
    for n in COUNTS:
        found.append(share(run, offline, fresh, n))
        if n:
            found.append(share(run, Greedy(agent), fresh, n))
    agent.config = replace(config, test_data="online")
    online = MacawAdapter(agent, name="online")
    found += [share(run, online, fresh, n) for n in COUNTS if n]
    found.append(share(run, offline, seen, COUNTS[-1]))
    return [f"{run.family.name} {config.num_tasks}/{run.info.seed}", *(f"{x:.3f}" for x in found)]


def main() -> None:
    """Print a table, a line a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    after = [name for n in COUNTS for name in ((f"{n}", f"{n} greedy") if n else ("0",))]
    head = [
        "buffers/seed",
        "recorded",
        *after,
        *(f"{n} online" for n in COUNTS if n),
        f"{COUNTS[-1]}, trained",
    ]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for path in args.runs:
        print("| " + " | ".join(row(path)) + " |", flush=True)


if __name__ == "__main__":
    main()
