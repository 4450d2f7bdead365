"""Settings that runs of earlier versions lack, and what those versions did in their place.

The config.json of a run holds every setting of the version that began it. A setting that has been added since gets
the value that means what the version without it did: the present default, unless `EARLIER` says otherwise.

A new setting of a configuration raises `SETTINGS` by one, and enters `EARLIER` if its default is not what was done
before (tests/admrl/config/test_earlier.py tells when).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

SETTINGS = 8
"""Number of the present set of settings; 1: all of those before runs recorded it."""
KEY = "settings"  # among the versions in config.json


@dataclass(frozen=True)
class Earlier:
    """What runs did that lack a setting."""

    before: int  # number of the set of settings that has it; runs of earlier sets may lack it
    setting: str
    value: Any


EARLIER = (
    # Eq. 6 and 7 as printed were the only way, from the three rollouts alone
    Earlier(2, "gradient.estimator", "reinforce"),
    Earlier(2, "gradient.num_extra_episodes", 0),
    # candidates were ranked by the ensemble's disagreement
    Earlier(2, "search.screen_by", "disagreement"),
)


class OtherVersionError(ValueError):
    """Settings that another version has and this one has not."""


def complete(cls: type[Any], data: Any, versions: Any) -> tuple[Any, dict[str, Any]]:
    """The settings of a run of this or an earlier version, as plain data that has every field.

    Args:
        cls: the configuration, a dataclass.
        data: what config.json says; returned as it is where it is no object.
        versions: those of the run, of which `KEY` counts.

    Returns:
        The settings, and those that were filled in by their names.

    Raises:
        OtherVersionError: the run is of a newer version, or has a setting that this version does not know.
        ValueError: the number of the set of settings is none.
    """
    number, filled = _number(versions), dict[str, Any]()
    if number > SETTINGS:
        raise OtherVersionError(
            f"the run was begun by a newer version, {_writer(versions)} (settings {number}, this version reads up to "
            f"{SETTINGS}): use that version"
        )
    try:
        return _completed(cls, data, "", number, filled), filled
    except KeyError as error:
        raise OtherVersionError(
            f"config: this version has no setting {error.args[0]!r:.80}; the run was begun by {_writer(versions)}: "
            "use that version, unless the file was changed by hand"
        ) from error


def _completed(cls: type[Any], data: Any, where: str, number: int, filled: dict[str, Any]) -> Any:
    """`complete` of a part of the configuration, whose names begin with where; KeyError: a name that is unknown."""
    if not isinstance(data, dict):
        return data
    hints, result = get_type_hints(cls), dict(data)
    if unknown := set(data) - {f.name for f in fields(cls)}:
        raise KeyError(where + sorted(unknown)[0])
    for f in fields(cls):
        name, hint = where + f.name, hints[f.name]
        if f.name not in data and number == SETTINGS:
            continue  # nothing may be missing there
        if is_dataclass(hint):
            result[f.name] = _completed(hint, data.get(f.name, {}), f"{name}.", number, filled)  # type: ignore[arg-type]
        elif f.name not in data:
            then = [e.value for e in EARLIER if e.setting == name and number < e.before]
            result[f.name] = filled[name] = then[0] if then else f.default
    return result


def describe(filled: dict[str, Any], versions: Any) -> str:
    """What the user is told about settings that were filled in."""
    groups: dict[str, list[str]] = {}
    for name in filled:
        group, dot, last = name.rpartition(".")
        groups.setdefault(group + dot, []).append(last)
    names = "; ".join(f"{group}{', '.join(members)}" for group, members in groups.items())
    then = [f"{name} {filled[name]}" for name in filled if name in {e.setting for e in EARLIER}]
    return (
        f"the run was begun by an earlier version ({_writer(versions)}), which had no settings {names}. "
        + (f"What that version did: {', '.join(then)}; the others have" if then else "They have")
        + " today's defaults, which mean the same"
    )


def _number(versions: Any) -> int:
    """Of the set of settings that a run was begun with."""
    text = versions.get(KEY, "1") if isinstance(versions, dict) else "1"
    if not isinstance(text, str) or not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise ValueError(f"versions: {KEY}: expected a whole number as text, got {text!r:.40}")
    return int(text)


def _writer(versions: Any) -> str:
    known = versions if isinstance(versions, dict) else {}
    return f"admrl {known.get('admrl', 'unknown')!s:.40}, commit {known.get('commit', 'unknown')!s:.60}"
