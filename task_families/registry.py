"""The families by name. Imports nothing heavy until one is made."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from task_families.family import TaskFamily

_FAMILIES = {  # name: (module, class)
    "linear_quadratic": ("task_families.linear_quadratic", "LinearQuadratic"),
    "hopper2d": ("task_families.velocity", "Hopper2D"),
}


def names() -> tuple[str, ...]:
    """The names that `make` accepts."""
    return tuple(_FAMILIES)


def nearest(word: str, choices: tuple[str, ...]) -> str:
    """A hint for an error message: `` (did you mean 'x'?)`` or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_name(argument: str, word: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices.

    Raises:
        ValueError: says what was expected and the nearest choice.
    """
    if word not in choices:
        expected = ", ".join(choices)
        raise ValueError(f"{argument}: got {word!r}, expected one of: {expected}{nearest(word, choices)}")


def make(name: str, *, variant: str = "released") -> "TaskFamily":
    """The task family of that name.

    Args:
        name: one of `names()`.
        variant: ``"released"`` (the constants of the released AdMRL code, the default) or ``"paper"`` (what
            the paper prints, where it differs; see the family's page).

    Raises:
        ValueError: unknown name or variant.
        ImportError: the family needs a simulator that is not installed; the message names the remedy.
    """
    check_name("family", name, names())
    module, cls = _FAMILIES[name]
    return getattr(import_module(module), cls)(variant=variant)
