"""The family of a run: one of this package, or code of the user's that the run records and never runs by itself.

A run of a family from outside keeps under "source" in config.json what named it, the file with its checksum, and the
distribution with its version. To open such a run, the user names the family again, and the checksums are compared.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from admrl.storage.files import DamagedFileError
from task_families.choices import Origin
from task_families.family import TaskFamily
from task_families.registry import check_own_name, made, make, origin_of

CODE = "family_sha256"  # in fingerprints, checkpoints and tables
LONGEST_PATH = 4096  # characters, of Linux; a record may say anything


class FamilyInfo(Protocol):
    """What a run says about its family."""

    @property
    def family(self) -> str:
        """Its name."""

    @property
    def variant(self) -> str:
        """Its variant."""

    @property
    def source(self) -> dict[str, str] | None:
        """Where its code comes from (`task_families.choices.Origin`); None for a family of this package."""


@dataclass(frozen=True)
class NamedMethod:
    """A method from elsewhere that the user named; see `admrl.baselines.outside`."""

    option: str
    """policy or method."""
    word: str
    """What names it."""
    name: str
    """In tables, and of its folder."""
    sees_psi: bool = False


@dataclass(frozen=True)
class NamedFamily:
    """The family that the user named for the runs that are opened; it is sent to workers as it is."""

    family: str | TaskFamily | None = None
    """See `task_families.make`; or the family itself. None: runs are of families of this package."""
    accept_changed: bool = False
    """Open runs although the family's file, or the search's, has changed since they were made."""
    selector: str | None = None
    """The search of the run that goes on, where it is not one of this package."""
    methods: tuple[NamedMethod, ...] = ()
    """Methods from elsewhere whose folders are opened."""


NOBODY = NamedFamily()


def new_family(family: str | TaskFamily, variant: str) -> TaskFamily:
    """The family of a new run; one from outside is checked first.

    Raises:
        ValueError: see `task_families.make`; or the first check of `check_family` that it fails.
    """
    new = made(family, variant)
    if origin_of(new) is not None:
        from task_families.conformance import require_conformance

        check_own_name(new)
        require_conformance(new)
    return new


def source_of(family: TaskFamily) -> dict[str, str] | None:
    """What config.json says about where a family comes from."""
    found = origin_of(family)
    return None if found is None else asdict(found)


def code_key(family: TaskFamily) -> dict[str, str]:
    """What identifies the code of a family from outside, for fingerprints; nothing for those of this package."""
    found = origin_of(family)
    return {} if found is None else {CODE: found.sha256}


def recorded_origin(path: Path, info: FamilyInfo) -> Origin | None:
    """What a run says about the code of its family.

    Raises:
        DamagedFileError: something else.
    """
    return origin_in(path, info.source, "family")


def origin_in(path: Path, source: dict[str, str] | None, what: str) -> Origin | None:
    """What a run says about the code of its family, its search, ...

    Raises:
        DamagedFileError: something else.
    """
    if source is None:
        return None
    try:
        found = Origin(**source)
        if any(not isinstance(value, str) for value in source.values()):
            raise TypeError("expected text")
    except TypeError as error:
        raise DamagedFileError(f"{path}: the source of its {what} is damaged: {error}") from error
    return found


def not_named(path: Path, recorded: Origin, what: str, option: str) -> ValueError:
    """That a run needs code from outside which the user did not name; says which option to add."""
    known = f" ({recorded.distribution})" if recorded.distribution else ""
    return ValueError(
        f"{path}: its {what} is code from outside this package, {recorded.file[:LONGEST_PATH]!r}{known}; code that "
        f"you did not name is not run. If you trust it, add `{option}` "
        f"{shlex.quote(recorded.again[:LONGEST_PATH])}"
    )


def family_of(path: Path, info: FamilyInfo, named: NamedFamily = NOBODY) -> TaskFamily:
    """The family of a run that is there. Runs no code that the user did not name.

    Raises:
        ValueError: its family is not named, or another one is, or its file has changed; says which option to add.
    """
    recorded, family = recorded_origin(path, info), named.family
    if recorded is None:
        if not (family is None or family == info.family or getattr(family, "name", None) == info.family):
            shown = family if isinstance(family, str) else family.name
            raise ValueError(f"family: the run {path} is of {info.family}, got {shown}; leave it out")
        return make(info.family, variant=info.variant)
    if family is None:
        raise not_named(path, recorded, f"family {info.family!r:.60}", "family")
    found = made(family, info.variant)
    if (found.name, found.variant) != (info.family, info.variant):
        raise ValueError(
            f"family: the run {path} is of {info.family!r:.60} ({info.variant!r:.40}), got {found.name} "
            f"({found.variant}); name its own: {shlex.quote(recorded.again[:LONGEST_PATH])}"
        )
    if not named.accept_changed:
        check_unchanged(path, recorded, origin_of(found), "its tasks may be others")
    return found


def check_unchanged(
    path: Path, recorded: Origin, now: Origin | None, danger: str, remedy: str = "train again"
) -> None:
    """Refuse code whose file is not the one that the run was made with.

    Args:
        danger: what that may mean.
        remedy: what to do, where the old file does not come back.

    Raises:
        ValueError: names the file and both checksums.
    """
    now = now or Origin("", "", "", "")
    if recorded.sha256 == now.sha256 or not (recorded.sha256 and now.sha256):
        return
    versions = (
        ""
        if recorded.distribution == now.distribution
        else (f"; {recorded.distribution!r:.60} then, {now.distribution!r:.60} now")
    )
    raise ValueError(
        f"{path}: {now.file} has changed since the run was made (sha256 {recorded.sha256:.12} then, {now.sha256:.12} "
        f"now{versions}), so {danger}: put the old file back, or {remedy}; if the change does not "
        "matter, set `accept_changed`"
    )


def family_words(source: Any, option: str = "--family") -> list[str]:
    """The option that names the family of a run again, for commands that are printed."""
    try:
        return [] if source is None else [option, Origin(**source).again]
    except TypeError:  # a damaged record; opening the run says so
        return []
