"""The families by name, and families that the user names. Imports nothing heavy until one is made."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from task_families.choices import Origin, check_named, is_own_package, load_named, origin, said

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
    "bernoulli_bandit_5x100": ("task_families.bandit", "BernoulliBandit5Times100"),
    "bernoulli_bandit_10": ("task_families.bandit", "BernoulliBandit10"),
    "bernoulli_bandit_50": ("task_families.bandit", "BernoulliBandit50"),
}

GROUP = "task_families"  # of entry points
EXPECTED = "expected a subclass of task_families.TaskFamily, a function that returns a family, or a family"


def names() -> tuple[str, ...]:
    """The names that `make` accepts."""
    return tuple(_FAMILIES)


def check_family_name(name: str, argument: str = "family") -> None:
    """Refuse what `make` cannot make, as far as that shows without importing anything.

    Raises:
        ValueError: says what was expected, with the nearest name.
    """
    check_named(argument, name, names(), GROUP)


def make(name: str, *, variant: str = "released") -> TaskFamily:
    """The task family of that name, or of that class: ``make("hopper2d")``, ``make("tasks.py:CartPole")``.

    Args:
        name: one of `names()`; or a family of the user's own, whose code is then run: ``FILE.py:NAME``,
            ``MODULE:NAME``, or a name that an installed package has registered among the entry points
            ``task_families``. NAME is a subclass of `TaskFamily`, a function that returns a family, or a family.
        variant: ``"released"`` (the constants of the released code, the default), or another of the family's
            `variants`, e.g. ``"paper"`` (what the paper prints, where it differs); see the family's page.

    Raises:
        ValueError: unknown name or variant; a module that does not import, or something that is no family.
        ImportError: the family needs a simulator that is not installed; the message names the remedy.
    """
    check_family_name(name)
    if name not in _FAMILIES:
        return _make_own(name, variant)
    module, cls = _FAMILIES[name]
    return getattr(import_module(module), cls)(variant=variant)


def origin_of(family: TaskFamily) -> Origin | None:
    """Where the code of a family comes from; None for the families of this package."""
    cls = type(family)
    if _FAMILIES.get(family.name) == (cls.__module__, cls.__qualname__):
        return None
    if family.origin is not None or is_own_package(cls.__module__):
        return family.origin or Origin("", "", "", "")  # made by the user of a class of ours
    file = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")
    where = cls.__module__ if cls.__module__ != "__main__" else file.name
    return origin(f"{where}:{cls.__qualname__}", file)


def made(family: str | TaskFamily, variant: str) -> TaskFamily:
    """`make` of a name; a family is what it is."""
    return make(family, variant=variant) if isinstance(family, str) else family


def sendable(family: TaskFamily) -> str | TaskFamily:
    """What another process makes the family of (`made`): what names it, where something does."""
    found = origin_of(family)
    return family.name if found is None else found.again if family.origin else family


def check_own_name(family: TaskFamily) -> None:
    """Refuse a family of the user's whose name is none, or that of a family of this package.

    Raises:
        ValueError: says what was expected.
    """
    name = getattr(family, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"family: expected a `name` of letters, digits, _ and -, got {name!r:.60}")
    if name in _FAMILIES:
        raise ValueError(f"family: the name {name!r} is that of a family of this package; choose another")


def _make_own(name: str, variant: str) -> TaskFamily:
    """The family that the user named, with its origin.

    Raises:
        ValueError: see `make`.
    """
    from task_families.family import TaskFamily

    value, where = load_named("family", name, GROUP)
    family = value
    if isinstance(value, type) and not issubclass(value, TaskFamily):
        raise ValueError(f"family: {name} is a class, but no family: {EXPECTED}")
    if callable(value) and not isinstance(value, TaskFamily):
        family = _called(name, value, variant)
    if not isinstance(family, TaskFamily):
        raise ValueError(f"family: {name} is no family, but {type(family).__name__}: {EXPECTED}")
    check_own_name(family)
    if not hasattr(family, "variant"):
        raise ValueError(f"family: {name} has no variant; call super().__init__(variant) in its __init__")
    if family.variant != variant:
        raise ValueError(f"variant: {name} is of the variant {family.variant!r}, got {variant!r}")
    family.origin = where
    return family


def _called(name: str, value: Any, variant: str) -> Any:
    """What a class or function of the user's returns."""
    try:
        parameters = inspect.signature(value).parameters
        return value(variant=variant) if "variant" in parameters else value()
    except Exception as error:  # whatever a stranger's code raises is the user's to see
        raise ValueError(f"family: {name} cannot be made: {said(error)}") from error
