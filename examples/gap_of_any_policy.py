"""Score any policy on many tasks at once: here a hand-written controller for Hopper2D on a 4 x 4 grid of tasks.

The simulator is batched: 16 tasks x 10 episodes are stepped together. The controller sees no psi, so its return falls
with the distance of the task from what it does.

    python examples/gap_of_any_policy.py
"""

import torch

from admrl.solving.rollouts import episode_returns
from task_families import collect, make, spawn_generators


def stand_still(obs: torch.Tensor) -> torch.Tensor:
    """A proportional-derivative controller for the three joints (obs[2:5] angles, obs[8:11] velocities)."""
    return (-2.0 * obs[..., 2:5] - 0.2 * obs[..., 8:11]).clamp(-1, 1)


def main() -> None:
    torch.set_num_threads(1)
    family = make("hopper2d")
    psi = family.box.grid((4, 4))
    shape = (len(psi), 10)
    rollout = collect(
        family.make_simulator(shape, num_threads=2),
        family,
        lambda t, obs: (stand_still(obs), torch.zeros(shape)),
        family.horizon,
        spawn_generators(torch.Generator().manual_seed(0), len(psi)),
    )
    returns = episode_returns(family, psi, rollout).mean(1).view(4, 4)
    length = rollout.first_episode().sum(-1).float().mean()
    print(f"mean episode length {length:.0f} of {family.horizon} steps; returns by task:")
    print("height (m) \\ velocity (m/s)  " + "  ".join(f"{v:6.2f}" for v in psi.view(4, 4, 2)[:, 0, 0]))
    for j in range(4):
        row = "  ".join(f"{r:6.0f}" for r in returns[:, j])
        print(f"{float(psi.view(4, 4, 2)[0, j, 1]):26.2f}  {row}")


if __name__ == "__main__":
    main()
