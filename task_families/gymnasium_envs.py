"""Every family as a registered gymnasium environment. Importing this module registers them.

    import gymnasium
    import task_families.gymnasium_envs

    env = gymnasium.make("AdMRL/Ant2D-v0", psi=(1.0, 0.0))

``gymnasium.make("task_families.gymnasium_envs:AdMRL/Ant2D-v0", psi=...)`` imports by itself.
Arguments: psi (default: the family's first task), draws_psi (a new task at every reset), shows_psi (behind every
observation), variant, allow_outside, render_mode. ``env.reset(options={"psi": ...})`` begins an episode of a task.
`max_episode_steps` is the
family's horizon; a smaller one shortens episodes, a larger one has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium

from task_families.registry import make, names

NAMESPACE = "AdMRL"
# Steps per episode where they are not TaskFamily's 200: here, too, so that registering imports no family
HORIZONS = {
    "linear_quadratic": 100,
    "tabular": 100,
    "point_robot": 20,
    "sparse_point_robot": 20,
    "bernoulli_bandit_5": 10,
    "bernoulli_bandit_5x100": 100,
    "bernoulli_bandit_10": 100,
    "bernoulli_bandit_50": 500,
}
DEFAULT_HORIZON = 200


def gymnasium_id(name: str) -> str:
    """The id of a family: ``AdMRL/Ant2D-v0`` for ``ant2d``."""
    words = (word if any(c.isdigit() for c in word[1:]) else word.capitalize() for word in name.split("_"))
    camel = "".join(word[0].upper() + word[1:] for word in words)
    return f"{NAMESPACE}/{camel.replace('2d', '2D').replace('3d', '3D')}-v0"


def make_task_env(
    family: str,
    psi: Sequence[float] | None = None,
    variant: str = "released",
    allow_outside: bool = False,
    render_mode: str | None = None,
    draws_psi: bool = False,
    shows_psi: bool = False,
) -> gymnasium.Env:
    """One task as an environment; the entry point of the registered ids. See `TaskFamily.make_env`."""
    made = make(family, variant=variant)
    if draws_psi and psi is not None:
        raise ValueError(
            f"psi: every reset draws a task (draws_psi), got {tuple(psi)}; leave one of them out"
        )
    first = None if draws_psi else made.first_psi if psi is None else psi
    return made.make_env(first, allow_outside=allow_outside, render_mode=render_mode, shows_psi=shows_psi)


def register_envs() -> None:
    """Register every family that is not registered yet, with its horizon as the time limit."""
    for name in names():
        if gymnasium_id(name) not in gymnasium.registry:
            gymnasium.register(
                gymnasium_id(name),
                entry_point=f"{__name__}:make_task_env",
                max_episode_steps=HORIZONS.get(name, DEFAULT_HORIZON),
                kwargs={"family": name},
            )


register_envs()
