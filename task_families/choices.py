"""Names that a user typed, against those that exist; and objects that a user named, from a module or a file.

FILE.py:NAME      a file; its folder joins the end of sys.path, so that it finds its neighbours, also in workers
MODULE:NAME       a module, installed or in the current folder
NAME              registered by an installed package: entry points of a group
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any


def nearest(word: str, choices: tuple[str, ...]) -> str:
    """A hint for an error message: `` (did you mean 'x'?)`` or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def whole_number(argument: str, value: Any, least: int = 1) -> int:
    """A count that a caller gave: Python's or numpy's whole number.

    Raises:
        ValueError: something else, or below the least; names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        shown = repr(value) if isinstance(value, bool) or not isinstance(value, Integral) else str(value)
        raise ValueError(f"{argument}: expected a whole number, {least} or more, got {shown:.60}")
    return int(value)


def check_name(argument: str, word: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices.

    Raises:
        ValueError: says what was expected and the nearest choice.
    """
    if word not in choices:
        expected = ", ".join(choices)
        raise ValueError(f"{argument}: got {word!r}, expected one of: {expected}{nearest(word, choices)}")


@dataclass(frozen=True)
class Origin:
    """Where code comes from that is not of this package, as run folders record it."""

    name: str
    """What names it again: FILE.py:NAME, MODULE:NAME, a registered NAME, or a file's own name."""
    file: str
    """The file that defines it, absolute; empty if there is none."""
    sha256: str
    """Of that file."""
    distribution: str
    """Name and version of the distribution that brought it; empty for a file of the user's."""

    @property
    def again(self) -> str:
        """What names it again from any folder: the file where it still is, else the name."""
        if not (self.file and Path(self.file).is_file()):
            return self.name
        if ".py:" in self.name:
            return f"{self.file}:{self.name.rpartition(':')[2]}"
        return self.file if self.name == Path(self.file).name else self.name


def registered(group: str) -> dict[str, list[EntryPoint]]:
    """What installed packages have registered in a group of entry points, by name. Imports none of it."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def check_named(argument: str, word: str, choices: tuple[str, ...], group: str | None = None) -> None:
    """Refuse a word that is neither one of the choices nor names something else; imports nothing.

    Args:
        group: of entry points whose names count, too.

    Raises:
        ValueError: says what was expected, and how to name an object of one's own.
    """
    if is_path(word):
        _split(argument, word)
        return
    known = (*choices, *registered(group)) if group else choices
    if word not in known:
        raise ValueError(
            f"{argument}: got {word!r}, expected one of: {', '.join(known)}{nearest(word, known)}; or your own, "
            "named as FILE.py:NAME or MODULE:NAME"
        )


def is_path(word: str) -> bool:
    """Whether a word names an object by its module or file, rather than by a name."""
    return ":" in word or word.endswith(".py")


def load_named(argument: str, word: str, group: str | None = None) -> tuple[Any, Origin]:
    """The object that a user named; runs the code of its module.

    Raises:
        ValueError: the module does not import, or has no such name; says why, and where.
    """
    if not is_path(word):
        return _load_registered(argument, word, group or "")
    where, name = _split(argument, word)
    is_file = where.endswith(".py")
    module = _import_file(argument, Path(where)) if is_file else _import_module(argument, where)
    try:
        value = getattr(module, name)
    except AttributeError:
        public = tuple(n for n in vars(module) if not n.startswith("_"))
        raise ValueError(f"{argument}: {where} has no {name!r}{nearest(name, public)}") from None
    home = module  # or where a class or function is defined
    if inspect.isclass(value) or inspect.isfunction(value):
        home = sys.modules.get(value.__module__, module)
    file = Path(getattr(module if is_own_package(home.__name__) else home, "__file__", None) or "")
    shown = f"{Path(where).name}:{name}" if is_file else word
    return value, origin(shown, file, "" if is_file else _distribution(where))


def origin(name: str, file: Path, distribution: str = "") -> Origin:
    """Where something comes from, with the checksum of its file as it was imported.

    Raises:
        ValueError: the file has changed since this process imported it.
    """
    if not file.is_file():
        return Origin(name, "", "", distribution)
    file, now = file.resolve(), file_digest(file)
    if (then := _IMPORTED.setdefault(str(file), now)) != now:
        raise ValueError(
            f"{file} has changed since it was imported ({then[:12]} then, {now[:12]} now); start anew"
        )
    return Origin(name, str(file), now, distribution)


_IMPORTED: dict[str, str] = {}  # file: its checksum when it was first asked for


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_own_package(module: str) -> bool:
    """Whether a module is one of this project's."""
    return module.partition(".")[0] in ("task_families", "dynamics", "policy_opt", "admrl")


def _split(argument: str, word: str) -> tuple[str, str]:
    """Module or file, and the name within it."""
    where, _, name = word.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(
            f"{argument}: expected FILE.py:NAME or MODULE:NAME, NAME a class or function in it, got {word!r}"
        )
    if where.endswith(".py") and not Path(where).is_file():
        raise ValueError(f"{argument}: no such file: {where}")
    return where, name


def _load_registered(argument: str, word: str, group: str) -> tuple[Any, Origin]:
    entries = registered(group).get(word, [])
    if len({entry.value for entry in entries}) != 1:
        by = (
            " and ".join(sorted(entry.dist.name for entry in entries if entry.dist)) or "no installed package"
        )
        raise ValueError(
            f"{argument}: {word!r} is registered by {by}; name it as FILE.py:NAME or MODULE:NAME"
        )
    entry = entries[0]
    value, found = load_named(argument, f"{entry.module}:{entry.attr}")
    dist = f"{entry.dist.name} {entry.dist.version}" if entry.dist else found.distribution
    return value, Origin(word, found.file, found.sha256, dist)


def _import_module(argument: str, name: str) -> ModuleType:
    top = name.partition(".")[0]
    if (
        top not in sys.modules
        and importlib.util.find_spec(top) is None
        and (here := str(Path.cwd())) not in sys.path
    ):
        sys.path.append(here)
    return _import(argument, name, name)


def _import_file(argument: str, file: Path) -> ModuleType:
    """A file as the module of its name: what it defines is then found by that name in other processes, too."""
    file, name = file.resolve(), file.stem
    if not name.isidentifier():
        raise ValueError(
            f"{argument}: {file.name} cannot be imported by its name; rename it: letters, digits and _"
        )
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    loaded = sys.modules.get(name)
    spec = None if loaded is not None else importlib.util.find_spec(name)
    there = getattr(loaded, "__file__", None) if loaded is not None else spec.origin if spec else None
    if there is None or Path(there).resolve() != file:
        raise ValueError(
            f"{argument}: Python finds {there or 'another module'} under the name {name}; rename {file}"
        )
    return _import(argument, name, str(file))


def _import(argument: str, name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises is the user's to see
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if frame.filename.startswith("<") else f" ({Path(frame.filename).name}, line {frame.lineno})"
        raise ValueError(
            f"{argument}: {shown} does not import: {type(error).__name__}: {error!s:.300}"
            f"{'' if isinstance(error, SyntaxError) else at}"
        ) from error


def said(error: BaseException) -> str:
    """What a stranger's code raised, in one line: its type, unless that is ValueError, and its text."""
    text = f"{' '.join(str(error).split()):.300}"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _distribution(module: str) -> str:
    """Name and version of the distribution that a module is of; empty if it is of none."""
    found = packages_distributions().get(module.partition(".")[0], [])
    return f"{found[0]} {version(found[0])}" if found else ""
