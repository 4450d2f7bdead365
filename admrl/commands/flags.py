"""The library speaks of arguments, the command line of flags: `num_workers` -> --num-workers.

A message names an argument where a line of it begins with it ("seed: expected ...") or writes it in backticks. If the
command has a field of that name, also within its configuration, the flag takes its place; a positional one is in
capitals.
"""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

import tyro

NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


def in_flags(message: str, command: type | None) -> str:
    """A message of the library as one of the command line.

    Args:
        command: its dataclass of options; None: there is no such command.
    """
    if command is None:
        return message
    message = re.sub(
        rf"^({NAME})(?=[:,] )", lambda found: flag(found[1], command) or found[1], message, flags=re.MULTILINE
    )
    return re.sub(rf"`({NAME})`", lambda found: flag(found[1], command) or found[0], message)


def flag(name: str, command: type) -> str | None:
    """The flag of a field, or None if the command has no such field: config.num_samples -> --config.num-samples."""
    owner = command
    *path, last = name.split(".")
    for part in path:
        hint = _hints(owner).get(part)
        if not is_dataclass(hint):
            return None
        owner = hint  # type: ignore[assignment]
    hint = _hints(owner).get(last)
    if hint is None:
        return None
    if _is_positional(hint):
        return last.upper()
    return "--" + name.replace("_", "-")


def _hints(owner: type) -> dict[str, object]:
    return get_type_hints(owner, include_extras=True) if is_dataclass(owner) else {}


def _is_positional(hint: object) -> bool:
    return get_origin(hint) is Annotated and tyro.conf.Positional in get_args(hint)
