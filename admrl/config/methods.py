"""The methods of `admrl train-baseline`: their rooms, names, and names in tables; what several of them refuse."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from admrl.config.checks import check_all

METHODS = {
    "baselines": {
        "pearl": "PEARL",
        "crl": "CRL",
        "sac": "multi-task SAC",
        "mt-joint": "MT-joint",
        "pearl-mt": "PEARL-MT",
    },
    "inner_loop": {
        "maml-trpo": "MAML-TRPO",
        "maml-ppo": "MAML-PPO",
        "promp": "ProMP",
        "maml-mt": "MAML-MT",
        "maesn": "MAESN",
    },
    "offline": {"macaw": "MACAW"},
    "recurrent": {"rl2": "RL2"},
    "mql": {"mql": "MQL"},
}
"""By room of `admrl`, whose config.py describes their settings and whose run.py their run folders."""
TITLES = {name: title for methods in METHODS.values() for name, title in methods.items()}
ALGORITHMS = tuple(TITLES)
PUBLISHED = {
    "half_cheetah_fwd_back": (2, 2),
    "half_cheetah_vel": (100, 30),
    "ant_fwd_back": (2, 2),
    "ant_dir": (45, 5),
    "ant_goal": (150, 30),
    "humanoid_direc_2d": (100, 30),
    "walker2d_params": (40, 10),
    "hopper2d_params": (40, 10),
    "point_robot": (80, 20),
    "sparse_point_robot": (80, 20),
}
"""Training and test tasks of the families whose source papers publish them."""


def check_whole_episodes(config: Any, names: Iterable[str], family: Any) -> None:
    """Refuse counts of samples that end within an episode.

    Raises:
        ValueError: names every such setting.
    """
    horizon = family.horizon

    def whole(name: str) -> None:
        if (steps := getattr(config, name)) % horizon:
            raise ValueError(
                f"config.{name}: expected a multiple of {horizon} (whole episodes of {family.name}), got {steps}"
            )

    check_all([partial(whole, name) for name in names])


def check_limits(family: Any) -> None:
    """Refuse a family for policies that end in a tanh.

    Raises:
        ValueError: its actions have no finite limits.
    """
    if not family.action_bounds.are_finite:
        raise ValueError(
            f"{family.name} has actions without finite limits, which tanh policies need; choose another family, or "
            "set act_limit (or act_low and act_high)"
        )


def check_published(config: Any, family: Any) -> None:
    """Refuse more training or test tasks than a family's paper publishes.

    Raises:
        ValueError: names the setting.
    """
    for name, most in zip(("num_tasks", "num_test_tasks"), PUBLISHED.get(family.name, ()), strict=False):
        if (num := getattr(config, name)) > most:
            raise ValueError(
                f"config.{name}: expected at most {most}, the published ones of {family.name}, got {num}"
            )
