"""The table of all families, as Markdown; `python -m task_families.table docs` writes the page and its pictures."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch

from task_families.family import TaskFamily
from task_families.registry import make, names

PAGE = "task_families.md"
HEAD = """# Task families

Made from the code by `python -m task_families.table docs`. Each family's module explains the reward, the observation
and where it `Differs from the paper:`. Rewards are per step; `s'` is the state after the action, `a` the action, `v`
a velocity in m/s; lengths are in m. `make(name, variant=...)` returns a family; after
`import task_families.gymnasium_envs`, `gymnasium.make("AdMRL/...", psi=...)` returns one task. A family of your own
is a short class that `task_families.check_family` checks: see [below](#a-family-of-your-own) and
`examples/own_family.py`.
"""
TAIL = """
## One task as a gymnasium environment

* *Time:* the registered ids have the family's horizon as `max_episode_steps`, so that wrappers such as
  `TimeAwareObservation` know it. A smaller one shortens episodes, a larger one has no effect.
  `family.make_env(psi)` ends episodes by itself, without a wrapper.
* *Pictures:* families with a MuJoCo body have the render mode `rgb_array` and `render_fps`, the steps of a second;
  the others have none. `admrl render` films in real time, or `--slow-motion` times slower.
* *Actions* are limited to [-1, 1], but in `linear_quadratic`, whose closed forms are those of unlimited actions:
  libraries that need limits refuse it. In `tabular` and the bandits the largest number of an action chooses, which
  [-1, 1] does not restrict; the family itself has no limits there (`picks_largest`).

## A family of your own

[own_family.md](own_family.md) goes from nothing to a heat map, and has every option.

### Limits of actions

A simulator clamps actions, and a family says where. Policies, exploration noise, models and replays work in units
of these limits (`task_families.simulator.ActionBounds`), so that results do not depend on the unit of an action:
wrong limits cost returns. `act_limit` is one number for all coordinates, on both sides (1 if nothing is said; None:
no limits). `act_low` and `act_high` replace it: a number for all coordinates, or one for each, infinite where there
is no limit.

```python
from task_families.simulator import ActionBounds

act_low, act_high = (-0.4, 0.0), (0.4, 900.0)  # steering in rad, thrust in N: two attributes of your class
bounds = ActionBounds.make(2, act_low, act_high)  # its `action_bounds` then
print(bounds.to_unit(bounds.low), bounds.to_unit(bounds.high))  # -1 and 1 in every coordinate
```

`reward` is given actions in the family's units, as they were chosen, beyond the limits, too: clamp them there if
the reward is of what the simulator applies. An action of which only the largest number counts has no limits
(`act_limit = None`) and says `picks_largest = True`.

### On any gymnasium environment

`task_families.gymnasium_simulator.GymnasiumFamily` needs the sizes, the limits, the box, the reward and `make_one`:

```python
import gymnasium
import torch

from task_families import TaskBox
from task_families.gymnasium_simulator import GymnasiumFamily


class Pendulum(GymnasiumFamily):
    name, source, formula = "pendulum_angle", "my notes", "cos(angle - psi)"
    obs_size, act_size, act_limit = 3, 1, 2.0

    def __init__(self, variant="released"):
        super().__init__(variant)
        self.box = TaskBox(torch.tensor([-1.0]), torch.tensor([1.0]), ("target angle",), ("rad",))
        self.first_psi = torch.tensor([0.3])

    def make_one(self):
        return gymnasium.make("Pendulum-v1").unwrapped

    def reward(self, psi, obs, act, next_obs):
        return (next_obs[..., :2] * torch.cat([psi.cos(), psi.sin()], dim=-1)).sum(-1)


with Pendulum() as family:
    print(family.reset(3, torch.Generator().manual_seed(0)))
```

* The family owns its environments: one for each lane in use, made once, used again for later episodes and tasks,
  and closed at the end of the `with` block, by `close()`, or with the family. `reset(seed=...)` must start one
  anew, entirely.
* `num_processes` and `make_many` step the lanes in several processes, or in a vector environment of your own:
  [own_family.md](own_family.md#lanes-in-several-processes).
* Observations of other spaces are flattened by `gymnasium.spaces.utils.flatten`, actions of other shapes in C order;
  of a Discrete action, the largest number chooses. Other spaces of actions are refused with the wrapper that makes a
  box of them; so are sizes and limits that are not the environment's.
* `EnvFamily` is the same in one expression, for a reward and an environment: see
  [own_family.md](own_family.md#a-simulator-that-is-not-mujoco).

### Observations far from zero

Data is stored in float32, which has seven digits. Where a coordinate's offset takes more than five of them,
training warns once, with the coordinate and its numbers (`dynamics.precision`): a point mass observed at 1e6 m with
a spread of 0.4 m loses 2 % of its return, at 1e7 m all of it. Subtract the offset where observations are made: in
`observe` or `reset`, or with `TransformObservation(env, lambda obs: obs - offset, env.observation_space)` in
`make_one`, before anything rounds to float32.
"""


def families_page() -> str:
    """The page's text. It depends on the families' declarations alone."""
    lines = [
        HEAD,
        "| name | k | box of psi | reward r_psi(s, a, s') | S / A | horizon | source |",
        "|---|---|---|---|---|---|---|",
    ]
    families = [make(name) for name in names()]
    for family in families:
        lines.append(
            f"| [`{family.name}`](#{family.name}) | {family.box.size} | {_box(family)} | "
            f"`{family.formula.replace('|', chr(92) + '|')}` | {family.obs_size} / {family.act_size} | "
            f"{family.horizon} | {family.source} |"
        )
    for family in families:
        lines += ["", *_section(family)]
    return "\n".join(lines) + "\n" + TAIL


def _section(family: TaskFamily) -> list[str]:
    """Name, first task, variants and picture of one family."""
    from task_families.gymnasium_envs import gymnasium_id

    module = type(family).__module__.removeprefix("task_families.")
    first = ", ".join(f"{x:.4g}" for x in family.first_psi[:4].tolist())
    more = ", ..." if family.box.size > 4 else ""
    seconds = f"{family.dt:g} s per step" if family.dt is not None else "abstract time"
    lines = [
        f"## {family.name}",
        "",
        f"![{family.name}](families/{family.name}.png)",
        "",
        f"`{gymnasium_id(family.name)}`, module `{module}`; {seconds}, discount {family.gamma:g}; "
        f"first task ({first}{more}); variants: {', '.join(family.variants)}."
        + (" The dynamics depend on psi." if family.psi_changes_dynamics else ""),
    ]
    return lines


def _box(family: TaskFamily) -> str:
    """``target velocity [-2, 2] m/s``, or ``[-1, 1]^18`` where many coordinates are alike."""
    box = family.box
    if box.size > 4:
        low, high = float(box.low[0]), float(box.high[0])
        return f"[{low:g}, {high:g}]^{box.size}: {box.names[0]}, ..., {box.names[-1]}"
    return "; ".join(
        f"{name} [{low:.4g}, {high:.4g}]" + ("" if unit == "1" else f" {unit}")
        for name, unit, low, high in zip(
            box.names, box.units, box.low.tolist(), box.high.tolist(), strict=True
        )
    )


@torch.no_grad()
def write_picture(family: TaskFamily, file: Path, num_pictures: int = 4) -> None:
    """A strip of stills of one episode with random actions; a drawing of paths for families without a body.

    Raises:
        RuntimeError: no OpenGL backend works without a screen.
    """
    import imageio.v3 as imageio

    generator = torch.Generator().manual_seed(1)
    psi = family.first_psi[None]
    if not family.has_body:
        _draw_paths(family, file)
        return
    from task_families.camera import Camera, film_strip

    simulator = family.make_simulator((1, 1), psi=psi)
    simulator.reset(torch.ones(1, 1, dtype=torch.bool), simulator.start_states(1, generator))
    with closing(Camera(getattr(family, "model", None), width=160, height=120)) as camera:
        pictures = [camera.picture(simulator)]
        for _ in range(family.horizon):
            act = torch.randn(1, 1, family.act_size, generator=generator).clamp(-1, 1)
            ended = bool(family.terminated(simulator.step(act)))
            pictures.append(camera.picture(simulator))
            if ended:
                break
    imageio.imwrite(file, film_strip(pictures, num_pictures), optimize=True)


def _draw_paths(family: TaskFamily, file: Path) -> None:
    """Eight random episodes: paths in the plane of the first two observations, or outcomes over time."""
    from matplotlib.figure import Figure

    generator = torch.Generator().manual_seed(1)
    num_steps = min(family.horizon, 20)
    simulator = family.make_simulator((1, 8), psi=family.first_psi[None], dtype=torch.float64)
    obs = [simulator.reset(torch.ones(1, 8, dtype=torch.bool), simulator.start_states(8, generator))[0]]
    for _ in range(num_steps):
        obs.append(simulator.step(torch.randn(1, 8, family.act_size, generator=generator).double())[0])
    path = torch.stack(obs)  # (T + 1, 8, S)
    figure = Figure(figsize=(3, 1.9), layout="constrained")
    axes = figure.subplots()
    if family.name == "tabular" or family.obs_size == 1:
        shown = path.argmax(-1) if family.name == "tabular" else path[..., 0]
        axes.imshow(shown.T, aspect="auto", interpolation="nearest")
        axes.set(xlabel="step", ylabel="episode")
    else:
        axes.plot(path[..., 0], path[..., 1], lw=0.8)
        axes.plot(path[0, :, 0], path[0, :, 1], "k.", ms=3)
        axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    figure.savefig(file, dpi=100)


def main(folder: str) -> None:
    """Write the page and the pictures into a folder."""
    pictures = Path(folder) / "families"
    pictures.mkdir(parents=True, exist_ok=True)
    (Path(folder) / PAGE).write_text(families_page(), encoding="utf-8")
    for name in names():
        write_picture(make(name), pictures / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m task_families.table FOLDER")
    main(sys.argv[1])
