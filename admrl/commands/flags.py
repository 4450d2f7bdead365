"""The library speaks of arguments, the command line of flags: `num_workers` -> --num-workers.

A message names an argument where a line of it begins with it ("seed: expected ...") or writes it in backticks. If the
command has a field of that name, also within its configuration, the flag takes its place; a positional one is in
capitals.

`--help` shows the docstrings of the fields as wide as the terminal, whatever lines they have in the source.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

import docstring_parser
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


def describe(command: type) -> str:
    """What `--help` prints above the options: the docstring of a command, as wide as the terminal.

    The docstrings of its fields, and of those of its configuration, lose their line breaks on the way: tyro keeps
    what is indented on a line of its own. (So are the lines here.)
    """
    for owner in set(_dataclasses_in(command)):
        for entry in docstring_parser.parse_from_object(owner).params:
            field = owner.__dataclass_fields__.get(entry.arg_name)  # type: ignore[attr-defined]
            if field is not None and entry.description:
                field.metadata = {**field.metadata, "help": " ".join(entry.description.split())}
    paragraphs = [" ".join(text.split()) for text in (inspect.getdoc(command) or "").split("\n\n")]
    width = shutil.get_terminal_size().columns
    return "\n\n".join(textwrap.fill(text, width, subsequent_indent="  ") for text in paragraphs)


def _dataclasses_in(hint: object) -> Iterator[type]:
    """A dataclass and its bases, those of its fields and of theirs, also where a hint says Optional or Annotated."""
    if is_dataclass(hint) and isinstance(hint, type):
        yield from (base for base in hint.__mro__ if is_dataclass(base))
        for inner in _hints(hint).values():
            yield from _dataclasses_in(inner)
    for inner in get_args(hint):
        yield from _dataclasses_in(inner)
