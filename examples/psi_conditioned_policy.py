"""One stable-baselines3 policy for a whole family: it sees psi, trains on a new task every episode, and is judged by
the same command as every other method.

The environment draws psi at every reset and puts it behind the observation (`make_env(None, shows_psi=True)`); the
evaluation gives it in the same place (`--sees-psi`). On the point robot the optimum is known, so that the gaps are
those to the best policy there is. SAC needs some minutes for a policy that goes straight; the default shows the way.

    pip install "admrl[sac]"
    python examples/psi_conditioned_policy.py [--steps 3000] [--family point_robot] [--out sac.zip]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from stable_baselines3 import SAC

from task_families import make


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="point_robot")
    parser.add_argument("--steps", type=int, default=3000, help="of SAC's training")
    parser.add_argument("--grid", type=int, nargs="+", default=[4, 4], help="tasks per task parameter")
    parser.add_argument("--out", type=Path, default=Path("sac.zip"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    env = make(arguments.family).make_env(None, shows_psi=True)
    agent = SAC(
        "MlpPolicy", env, seed=0, device="cpu", learning_starts=200, policy_kwargs={"net_arch": [64, 64]}
    )
    agent.learn(arguments.steps)
    agent.save(arguments.out)

    policy = ["--policy", f"SAC={arguments.out}", "--sees-psi", "--family", arguments.family]
    grid = ["--grid", *map(str, arguments.grid), "--config.num-reference-stages", "0"]
    for command in (["evaluate", *policy, *grid], ["heatmap", *policy]):
        print("$ admrl", *command, flush=True)
        subprocess.run([sys.executable, "-m", "admrl", *command], check=True)


if __name__ == "__main__":
    main()
