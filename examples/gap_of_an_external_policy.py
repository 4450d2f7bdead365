"""The worst-case gap of a stable-baselines3 SAC policy next to ours, on the same tasks with the same start states.

SAC is trained on one task of the point robot, the goal (0.3, 0.3), and saved; its file is read without unpickling.
Our method trains on three random goals, then solves each test task in its learned model, being told psi. The straight
line to the goal is optimal, and A* is what it reaches.

    pip install "admrl[sac]"
    python examples/gap_of_an_external_policy.py [--policy SAC.zip] [--steps 2000] [--out gap.png]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from admrl import PRESETS, EvaluationConfig, plot_gap_heatmap
from admrl.baselines import ModelBasedAdapter, StaticAdapter, evaluate_adapters, sb3_policy
from admrl.jobs.reporter import Silent
from admrl.training.run import prepare_run, train_run
from task_families import make


def straight_line(rows: torch.Tensor) -> torch.Tensor:
    """One step of 0.1 m per action; rows are (x, y, goal x, goal y)."""
    return ((rows[:, 2:] - rows[:, :2]) / 0.1).clamp(-1, 1)


def train_sac(file: Path, steps: int) -> None:
    from stable_baselines3 import SAC

    env = make("point_robot").make_env((0.3, 0.3))
    agent = SAC(
        "MlpPolicy", env, seed=0, device="cpu", learning_starts=200, policy_kwargs={"net_arch": [64, 64]}
    )
    agent.learn(steps)
    agent.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", type=Path, help="a SAC, TD3, PPO or A2C file of yours, for the point robot"
    )
    parser.add_argument("--steps", type=int, default=2000, help="of SAC's training")
    parser.add_argument("--out", type=Path, default=Path("gap.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = make("point_robot")
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.policy or Path(folder) / "sac.zip"
        if arguments.policy is None:
            train_sac(file, arguments.steps)
        theirs = StaticAdapter.of_function("SAC on (0.3, 0.3)", sb3_policy(file, family))

        smoke = PRESETS["smoke"]
        config = replace(
            smoke,
            virtual=replace(smoke.virtual, num_model_steps=100, num_policy_updates=10, num_samples=400),
            slbo=replace(smoke.slbo, num_iterations=2, num_samples=400),
            gradient=replace(smoke.gradient, num_samples=80),
        )
        run = prepare_run(
            Path(folder) / "run",
            family=family.name,
            variant="released",
            selector="uniform",
            preset="smoke",
            seed=0,
            config=config,
        )
        train_run(run, Silent())
    evaluation = EvaluationConfig(num_updates=40, num_samples=400, num_episodes=20)
    ours = ModelBasedAdapter(run, evaluation)
    best = StaticAdapter.of_function("straight line", straight_line, sees_psi=True)
    tables = evaluate_adapters(family, [ours, theirs, best], (6, 6), evaluation)
    for table in tables:
        worst = table.worst()
        print(
            f"{table.method:18s} worst gap {worst.gap:6.2f} at goal {table.psi[worst.task].round(2).tolist()}, "
            f"mean gap {table.average()[0]:6.2f}, may see: {table.provenance.sees}"
        )
    plot_gap_heatmap(tables[:2], arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
