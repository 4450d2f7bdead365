"""What baselines learned: the test protocol of finished runs, beside a random policy and the best possible one.

    admrl train-baseline pearl --family point_robot --preset laptop --seed 0 --out runs/pearl-0
    OMP_NUM_THREADS=1 python benchmarks/baseline_learning.py runs/pearl-0 runs/pearl-1 --figure curves.png

Every run is scored on its own test tasks (of which a training sees none but where train and test coincide), with
episodes that no training saw. Per family:

    all                    return before any sample and after the exploration episodes; for CRL with the output
                           layers of the adapter network, and with the mean layer, and how much more the former get,
                           with the standard error over tasks
    point_robot            random policy, full speed to the goal, and the share of the way between them
    sparse_point_robot     tasks whose goal was reached within five episodes: z from the posterior of the episodes
                           before (from the second episode on), and z from the prior in all five
    inner loops            after one, two and three inner steps, and the share of the way from A_0 to the best policy
                           after one
    rl2                    after 0, 1, 2, 3 episodes of exploration; on bandits beside Thompson sampling, the arm of
                           the largest posterior mean (greedy) and the best fixed arm, in the same episodes
    half_cheetah_fwd_back  both directions, after one inner step, one episode (RL2), or the exploration episodes
                           (PEARL: also after twice as many, and how far the posteriors of the two tasks lie apart)
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from admrl.baselines import Adapter, StaticAdapter
from admrl.baselines.crl import Crl
from admrl.baselines.pearl import Pearl, PearlAdapter
from admrl.baselines.run import BaselineRun
from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.adapter import Experience
from admrl.evaluation.evaluator import adapt_and_score
from admrl.inner_loop.run import InnerLoopRun
from admrl.recurrent.run import RecurrentRun
from admrl.run_kinds import load_any_run
from task_families.point_robot import STEP

SEED = 54_321  # of the scoring; no training has it
NUM_SEARCH_EPISODES = 5  # within which the sparse goal has to be found
NUM_INNER_STEPS = 3
NUM_TRIAL_EPISODES = 3  # of exploration, in a row
Numbers = dict[str, Any]
AnyBaseline = BaselineRun | InnerLoopRun | RecurrentRun


def returns(run: AnyBaseline, adapter: Adapter, num_episodes: int, args: argparse.Namespace) -> np.ndarray:
    """(tasks, 2): before any sample, and after num_episodes of exploration; mean over policy seeds and episodes."""
    return episode_returns(run, adapter, num_episodes, args).mean((0, 3))


def episode_returns(
    run: AnyBaseline, adapter: Adapter, num_episodes: int, args: argparse.Namespace, num_stages: int = 1
) -> np.ndarray:
    """(policy seeds, tasks, 1 + stages, episodes), see `returns`; num_episodes a stage."""
    config = EvaluationConfig(
        num_policy_seeds=args.policy_seeds,
        num_episodes=args.episodes,
        num_stages=num_stages,
        num_stage_samples=num_episodes * run.family.horizon,
    )
    return adapt_and_score(run.family, adapter, run.state.test_psi, config, SEED).episode_return


def crl_heads(agent: Crl) -> dict[str, Crl]:
    """The same agent with either way to an output layer."""
    found = {}
    for head in ("adapter", "mean"):
        other = Crl.__new__(Crl)
        other.__dict__ = dict(agent.__dict__)
        other.config = replace(agent.config, crl=replace(agent.config.crl, test_head=head))  # type: ignore[arg-type]
        found[head] = other
    return found


def towards_goal(rows: Tensor) -> Tensor:
    """(rows, 4) of position and goal -> full speed in both coordinates, which is optimal."""
    return ((rows[:, 2:] - rows[:, :2]) / STEP).clamp(-1, 1)


def random_policy(seed: int) -> StaticAdapter:
    """Uniform actions."""
    generator = torch.Generator().manual_seed(seed)
    return StaticAdapter.of_function(
        "random", lambda obs: 2 * torch.rand(obs.shape, generator=generator, dtype=obs.dtype) - 1
    )


class Watched(PearlAdapter):
    """Notes in which exploration episodes any reward was seen."""

    found: list[Tensor]

    def observe(self, experience: Experience) -> None:
        """See `Adapter`."""
        assert experience.reward is not None
        self.found.append((experience.reward > 0).flatten(1).any(1))
        super().observe(experience)


def search(run: BaselineRun, num_prior: int, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Share of tasks and policy seeds whose goal was seen in an exploration episode or before (episodes,), and share
    of scoring episodes that reach it before the exploration, with z from the prior, and after it (2,)."""
    agent = run.state.agent
    assert isinstance(agent, Pearl)
    config = agent.config
    agent.config = replace(config, context=replace(config.context, num_prior_episodes=num_prior))
    adapter = Watched(agent)
    adapter.found = []
    scored = episode_returns(run, adapter, NUM_SEARCH_EPISODES, args)
    agent.config = config
    seen = torch.stack(adapter.found).int().cummax(0).values.float().mean(1).numpy()
    return seen, (scored > 0).mean((0, 1, 3))


def separation(run: BaselineRun, num_episodes: int, args: argparse.Namespace) -> list[float]:
    """Per latent dimension, the distance of the two tasks' posterior means, in units of their summed deviations."""
    agent = run.state.agent
    assert isinstance(agent, Pearl)
    adapter = PearlAdapter(agent)
    returns(run, adapter, num_episodes, args)
    context = adapter.context()
    assert context is not None
    with torch.no_grad():
        q = agent.encoder.posterior(context)
    mean, std = (x.view(args.policy_seeds, -1, x.shape[-1]) for x in (q.mean, q.variance.sqrt()))
    apart = (mean[:, 0] - mean[:, 1]).abs() / (std[:, 0] + std[:, 1])
    return apart.mean(0).tolist()


def judge(run: BaselineRun, args: argparse.Namespace) -> Numbers:
    """All numbers of one run."""
    family, agent = run.family, run.state.agent
    episodes = max(2, run.info.config.context.num_prior_episodes)
    found: Numbers = {
        "run": str(run.path),
        "algorithm": run.info.algorithm,
        "family": family.name,
        "seed": run.info.seed,
        "gradient_steps": run.state.num_updates,
        "real_samples": run.state.real_samples,
        "exploration_episodes": episodes,
    }
    agents = crl_heads(agent) if isinstance(agent, Crl) else {"": agent}
    by_task: dict[str, np.ndarray] = {}
    for head, one in agents.items():
        suffix = f", {head} head" if head else ""
        table = returns(run, run.state.adapter(one, name=run.info.algorithm), episodes, args)
        by_task[head] = table[:, 1]
        found[f"A_0{suffix}"], found[f"A_n{suffix}"] = table.mean(0).tolist()
        if family.name == "half_cheetah_fwd_back":
            found[f"A_n by task{suffix}"] = table[:, 1].tolist()
            more = returns(run, run.state.adapter(one, name=run.info.algorithm), 2 * episodes, args)
            found[f"A_2n by task{suffix}"] = more[:, 1].tolist()
        if family.name == "point_robot":
            low, high = bounds(run, args)
            found |= {"random": low, "optimal": high}
            found[f"share of the way{suffix}"] = (found[f"A_n{suffix}"] - low) / (high - low)
    if isinstance(agent, Crl):
        gain = by_task["adapter"] - by_task["mean"]
        found["adapter - mean head, error"] = [gain.mean(), gain.std(ddof=1) / len(gain) ** 0.5]
    if isinstance(agent, Pearl) and family.name == "sparse_point_robot":
        for kind, num_prior in (("posterior", 1), ("prior", NUM_SEARCH_EPISODES)):
            seen, reached = search(run, num_prior, args)
            found[f"found, {kind}"] = seen.tolist()
            found[f"reached before and after, {kind}"] = reached.tolist()
    if isinstance(agent, Pearl) and family.name == "half_cheetah_fwd_back":
        found["separation by dimension"] = separation(run, episodes, args)
    return found


def judge_inner_loop(run: InnerLoopRun, args: argparse.Namespace) -> Numbers:
    """All numbers of a run of a method with an inner loop."""
    episodes = run.info.config.num_adapt_samples // run.family.horizon
    by_task = episode_returns(run, run.adapter(), episodes, args, NUM_INNER_STEPS).mean((0, 3))
    table = by_task.mean(0)
    found: Numbers = {
        "run": str(run.path),
        "algorithm": run.info.algorithm,
        "family": run.family.name,
        "seed": run.info.seed,
        "gradient_steps": run.state.num_updates,
        "real_samples": run.state.real_samples,
        "samples of an inner step": run.info.config.num_adapt_samples,
        "A_0 and after each inner step": table.tolist(),
    }
    if run.family.name == "half_cheetah_fwd_back":
        found["A_n by task"] = by_task[:, 1].tolist()
    if run.family.name == "point_robot":
        low, high = bounds(run, args)
        found |= {"random": low, "optimal": high, "share of the way": (table[1] - low) / (high - low)}
        found["share of the way from A_0"] = (table[1] - table[0]) / (high - table[0])
    return found


class ArmRule:
    """Pulls arms of one rollout by the posterior Beta(1 + successes, 1 + failures) of every lane."""

    def __init__(
        self, shape: tuple[int, int], num_arms: int, rng: np.random.Generator, samples: bool
    ) -> None:
        """samples: Thompson's rule, a draw of each arm's posterior; otherwise its mean, ties by chance."""
        self.counts, self.rng, self.samples = np.ones((2, *shape, num_arms)), rng, samples

    def __call__(self, t: int, obs: Tensor) -> Tensor:
        """See `admrl.evaluation.adapter.Act`."""
        good, bad = self.counts
        worth = self.rng.beta(good, bad) if self.samples else good / (good + bad)
        self.pulled = (worth + 1e-9 * self.rng.random(worth.shape)).argmax(-1)[..., None]
        return torch.from_numpy(np.eye(worth.shape[-1])[self.pulled[..., 0]]).to(obs)

    def hear(self, reward: Tensor, ended: Tensor) -> None:
        """See `admrl.evaluation.adapter.Listener`."""
        r = reward.double().numpy()[..., None]
        for counts, outcome in zip(self.counts, (r, 1 - r), strict=True):
            np.put_along_axis(counts, self.pulled, np.take_along_axis(counts, self.pulled, -1) + outcome, -1)


@dataclass(frozen=True)
class ArmPolicy:
    """`ArmRule` for the evaluation."""

    num_arms: int
    samples: bool

    def actor(self, noise: Tensor, generators: Sequence[torch.Generator]) -> ArmRule:
        """See `admrl.evaluation.adapter.Policy.actor`."""
        rng = np.random.default_rng([g.initial_seed() for g in generators])
        return ArmRule((noise.shape[1], noise.shape[2]), self.num_arms, rng, self.samples)


def arm_rule(num_arms: int, samples: bool) -> StaticAdapter:
    """Thompson sampling, or the greedy rule: they know the form of the bandit and begin every trial anew."""
    name = "Thompson sampling" if samples else "greedy"
    return StaticAdapter(name, lambda tasks: ArmPolicy(num_arms, samples), sees=frozenset({"rewards"}))


def judge_recurrent(run: RecurrentRun, args: argparse.Namespace) -> Numbers:
    """All numbers of a run of RL2."""
    family = run.family
    by_task = episode_returns(run, run.adapter(), 1, args, NUM_TRIAL_EPISODES).mean((0, 3))
    table = by_task.mean(0)
    found: Numbers = {
        "run": str(run.path),
        "algorithm": run.info.algorithm,
        "family": family.name,
        "seed": run.info.seed,
        "gradient_steps": run.state.num_updates,
        "real_samples": run.state.real_samples,
        "trained episodes of a trial": run.info.config.trial_episodes,
        "A_0 and after each episode": table.tolist(),
    }
    if family.name.startswith("bernoulli_bandit"):
        for rule in (arm_rule(family.act_size, samples) for samples in (True, False)):
            found[rule.name] = float(returns(run, rule, 1, args)[:, 0].mean())
        found["RL2 / Thompson sampling"] = table[0] / found["Thompson sampling"]
        found["best fixed arm"] = float(run.state.test_psi.mean(0).max()) * family.horizon
        found["best arm of every task"] = float(run.state.test_psi.max(1).values.mean()) * family.horizon
    if family.name == "half_cheetah_fwd_back":
        found["A_n by task"] = by_task[:, 1].tolist()
    if family.name == "point_robot":
        low, high = bounds(run, args)
        found |= {"random": low, "optimal": high, "share of the way": (table[1] - low) / (high - low)}
    return found


def bounds(run: AnyBaseline, args: argparse.Namespace) -> tuple[float, float]:
    """Mean return of the random and of the optimal policy, in the same episodes."""
    best = StaticAdapter.of_function("optimal", towards_goal, sees_psi=True)
    low, high = (float(returns(run, a, 1, args)[:, 0].mean()) for a in (random_policy(SEED), best))
    return low, high


def plot_curves(runs: list[AnyBaseline], path: Path) -> None:
    """Learning curves: A_n of the trainings' own tests against real samples, a panel per family."""
    families = list(dict.fromkeys(run.family.name for run in runs))
    figure, axes = plt.subplots(1, len(families), figsize=(4.2 * len(families), 3.2), squeeze=False)
    styles = {
        "pearl": ("tab:blue", "-"),
        "crl": ("tab:orange", "--"),
        "sac": ("tab:green", ":"),
        "maml-trpo": ("tab:red", "-"),
        "promp": ("tab:purple", "--"),
        "rl2": ("tab:brown", "-"),
    }
    for ax, name in zip(axes[0], families, strict=True):
        told = set()
        for run in (r for r in runs if r.family.name == name):
            algorithm = run.info.algorithm
            color, style = styles.get(algorithm, ("tab:gray", "-."))
            label = None if algorithm in told else run.adapter().name
            told.add(algorithm)
            curve = run.state.curve or []
            ax.plot(
                [p.real_samples for p in curve],
                [p.adapted_return for p in curve],
                style,
                color=color,
                label=label,
                linewidth=1.2,
            )
        ax.set(title=name, xlabel="real samples", ylabel="return after exploration")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of admrl train-baseline")
    parser.add_argument("--episodes", type=int, default=20, help="of each task and policy seed, for scoring")
    parser.add_argument("--policy-seeds", type=int, default=4, help="repetitions of the exploration")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--figure", type=Path, help="write the learning curves to this file")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    table: list[Numbers] = []
    runs: list[AnyBaseline] = []
    for path in args.runs:
        run = load_any_run(path)
        if not isinstance(run, BaselineRun | InnerLoopRun | RecurrentRun):
            parser.error(f"runs: {path} is no run of admrl train-baseline")
        runs.append(run)
        if isinstance(run, RecurrentRun):
            table.append(judge_recurrent(run, args))
        else:
            table.append(judge_inner_loop(run, args) if isinstance(run, InnerLoopRun) else judge(run, args))
        for name, value in table[-1].items():
            text = np.array2string(np.array(value), precision=3) if isinstance(value, list | float) else value
            print(f"{name:>36}  {text}", flush=True)
        print()
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))
    if args.figure:
        plot_curves(runs, args.figure)


if __name__ == "__main__":
    main()
