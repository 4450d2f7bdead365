"""Dataclasses from plain data (JSON), every value checked against its annotation."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def from_dict(cls: type[Any], data: Any) -> Any:
    """The inverse of `dataclasses.asdict` for dataclasses of numbers, strings, lists, tuples and dataclasses.

    Raises:
        ValueError: a missing or unknown field, or a value of another type; names the field.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__}: expected an object, got {data!r}")
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    if unknown := set(data) - names:
        raise ValueError(f"{cls.__name__}: unknown field {sorted(unknown)[0]!r}")
    if missing := names - set(data):
        raise ValueError(f"{cls.__name__}: missing field {sorted(missing)[0]!r}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = from_dict(hint, value)  # type: ignore[arg-type]
            continue
        parts = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if isinstance(value, list) and any(get_origin(part) is tuple for part in parts):  # JSON has no tuples
            value = tuple(value)
        check_field(cls, name, value)
        values[name] = value
    return cls(**values)


def check_field(cls: type[Any], name: str, value: Any) -> None:
    """Refuse a plain value that does not fit the field of a dataclass.

    Raises:
        ValueError: names the field.
    """
    hint = get_type_hints(cls)[name]
    if not _is_instance(value, hint):
        raise ValueError(f"{cls.__name__}.{name}: expected {hint}, got {value!r:.60}")


def _is_instance(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a hint; the contents of containers are left to `check_config`."""
    origin = get_origin(hint)
    if origin is UnionType:
        return any(_is_instance(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
