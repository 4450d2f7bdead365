"""Command: what the command line asks of each of its commands."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any


class CommandFailed(RuntimeError):
    """The command cannot do its work here, through no fault of its options; exit code 1."""


class Command(ABC):
    """A frozen dataclass of options, and what is done with them. Options are described by their docstrings."""

    @classmethod
    def defaults(cls, arguments: list[str]) -> Command | None:
        """What options that are not given are, where that depends on those that are; None: it does not. Of a class of
        its own where the options themselves depend on it.

        Raises:
            ValueError: one of those is wrong; says which.
        """
        return None

    def check(self) -> None:  # noqa: B027  (a command may have nothing to check)
        """Refuse wrong options before anything heavy is imported.

        Raises:
            ValueError: names the field, what was expected, what came and the remedy.
        """

    @abstractmethod
    def prepare(self) -> Any:
        """What `execute` needs, everything checked; nothing that exists is changed.

        Raises:
            ValueError: what does not fit; names the field or the file.
            ImportError: an optional package is not installed; names the remedy.
        """

    @abstractmethod
    def execute(self, prepared: Any) -> None:
        """Do it, and say on the terminal what came out."""


def value_of(option: str, arguments: list[str], default: str) -> str:
    """What an option was given, before the command line is parsed."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return default


def check_own_family(family: str | None) -> None:
    """Refuse what names no family, as far as that shows without importing anything.

    Raises:
        ValueError: says what was expected.
    """
    from task_families.registry import check_family_name

    if family is not None:
        check_family_name(family)


def check_own_search(argument: str, name: str, without: Sequence[str] = ()) -> None:
    """Refuse what names no search, as far as that shows without importing anything.

    Args:
        without: searches of this package that are none here.

    Raises:
        ValueError: says what was expected.
    """
    from admrl.config.search import GROUP, SEARCHES
    from task_families.choices import check_named

    check_named(argument, name, tuple(s for s in SEARCHES if s not in without), GROUP)


def file_name(word: str) -> str:
    """What the user named, as a part of a file's name: tasks/mine.py:make -> mine-make."""
    where, _, name = word.rpartition(":")
    stem = PurePath(where).name.removesuffix(".py")
    return re.sub(r"[^\w-]+", "-", f"{stem}-{name}" if stem else name).strip("-")


def at_least(command: Command, **bounds: float) -> None:
    """Refuse fields below a bound.

    Raises:
        ValueError: names the field.
    """
    for name, least in bounds.items():
        value = getattr(command, name)
        if not value >= least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")
