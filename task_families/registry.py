"""The families by name. Imports nothing heavy until one is made."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from task_families.choices import check_name

if TYPE_CHECKING:
    from task_families.family import TaskFamily

_FAMILIES = {  # name: (module, class)
    "linear_quadratic": ("task_families.linear_quadratic", "LinearQuadratic"),
    "tabular": ("task_families.tabular", "Tabular"),
    "hopper2d": ("task_families.velocity", "Hopper2D"),
    "walker2d": ("task_families.velocity", "Walker2D"),
    "ant2d": ("task_families.velocity", "Ant2D"),
    "ant3d": ("task_families.velocity", "Ant3D"),
    "cheetah_highdim": ("task_families.linear_state", "CheetahHighdim"),
    "half_cheetah_fwd_back": ("task_families.locomotion", "HalfCheetahFwdBack"),
    "half_cheetah_vel": ("task_families.locomotion", "HalfCheetahVel"),
    "ant_fwd_back": ("task_families.locomotion", "AntFwdBack"),
    "ant_dir": ("task_families.locomotion", "AntDir"),
    "ant_goal": ("task_families.locomotion", "AntGoal"),
    "humanoid_direc_2d": ("task_families.locomotion", "HumanoidDirec2D"),
    "walker2d_params": ("task_families.physics_parameters", "Walker2DParams"),
    "hopper2d_params": ("task_families.physics_parameters", "Hopper2DParams"),
    "point_robot": ("task_families.point_robot", "PointRobot"),
    "sparse_point_robot": ("task_families.point_robot", "SparsePointRobot"),
    "bernoulli_bandit_5": ("task_families.bandit", "BernoulliBandit5"),
    "bernoulli_bandit_10": ("task_families.bandit", "BernoulliBandit10"),
    "bernoulli_bandit_50": ("task_families.bandit", "BernoulliBandit50"),
}


def names() -> tuple[str, ...]:
    """The names that `make` accepts."""
    return tuple(_FAMILIES)


def make(name: str, *, variant: str = "released") -> TaskFamily:
    """The task family of that name.

    Args:
        name: one of `names()`.
        variant: ``"released"`` (the constants of the released code, the default), or another of the family's
            `variants`, e.g. ``"paper"`` (what the paper prints, where it differs); see the family's page.

    Raises:
        ValueError: unknown name or variant.
        ImportError: the family needs a simulator that is not installed; the message names the remedy.
    """
    check_name("family", name, names())
    module, cls = _FAMILIES[name]
    return getattr(import_module(module), cls)(variant=variant)
