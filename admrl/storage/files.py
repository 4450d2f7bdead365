"""Files that are either the old or the new one, never half of one. Free of torch."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from admrl.storage.fence import check_fence


def digest(content: object) -> str:
    """Twelve hexadecimal digits that identify plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


TEMPORARY = ".tmp-"  # every unfinished file begins so


SPELT = "spelt"  # how to encode text that an encoding does not have, for `str.encode` and streams


def _spelt(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of a file name that are no text in the locale stay what they are; other characters become \\xb1."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]  # one at a time; the others come again
    handler = "surrogateescape" if "\udc80" <= first <= "\udcff" else "backslashreplace"
    return first.encode("ascii", handler), error.start + 1


codecs.register_error(SPELT, _spelt)


def legible(data: Any) -> Any:
    """Plain data whose text can be written and drawn everywhere: names of files as they are in UTF-8."""
    if isinstance(data, str):
        return data.encode("utf-8", SPELT).decode("utf-8", "backslashreplace")
    if isinstance(data, dict):
        return {legible(k): legible(v) for k, v in data.items()}
    return [legible(x) for x in data] if isinstance(data, list) else data


class StorageError(RuntimeError):
    """A file could not be written: disk full, quota, folder gone. What was there before is intact."""


class DamagedFileError(ValueError):
    """A file is not what it should be: truncated, altered, of another kind, or made to do harm."""


def write_bytes(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write to a temporary neighbour, flush it to the disk, rename it into place; see also `admrl.storage.fence`.

    Args:
        flush: False: after a power failure the file may be the old one, or empty.

    Raises:
        StorageError: it cannot be written; a file that was there before stays as it was.
    """
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        check_fence()
        os.replace(name, path)
        if flush:
            _flush_folder(path.parent)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(path, error) from error
        raise


def write_text(path: Path, content: str, *, flush: bool = True) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, legible(content).encode("utf-8"), flush=flush)


def write_json(path: Path, data: Any, *, flush: bool = True) -> None:
    """`write_text` of `json_text`."""
    write_text(path, json_text(data), flush=flush)


def json_text(data: Any) -> str:
    """Plain data as JSON; infinities and nan, which JSON does not have, become null."""
    return json.dumps(without_nan(data), indent=1, allow_nan=False)


def without_nan(data: Any) -> Any:
    """Plain data with None in place of what is not finite."""
    if isinstance(data, dict):
        return {k: without_nan(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def check_place(path: Path) -> None:
    """Before the work: a file or folder of that name can be made. Nothing is.

    Raises:
        ValueError: the folder that it is to be in does not exist, or may not be written to.
    """
    if not path.parent.is_dir():
        raise ValueError(f"out: the folder {path.parent} does not exist; make it first")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"out: nothing can be written into the folder {path.parent}: {error.strerror}; choose another"
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell the user about a file that could not be written."""
    return StorageError(f"cannot write {path}: {error.strerror or error}; what was saved before is intact")


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder; only for the one who may write there."""
    for file in folder.glob(f"{TEMPORARY}*"):
        file.unlink(missing_ok=True)


def parse_json(content: bytes | str) -> Any:
    """JSON from anywhere, with or without a byte-order mark.

    Raises:
        ValueError: not JSON, not UTF-8, or nested without end.
    """
    try:
        return json.loads(content.removeprefix("\ufeff") if isinstance(content, str) else content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain_count(value: Any, name: str) -> int:
    """A count from 0 up, from plain data.

    Raises:
        ValueError: something else; names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{name}: expected a count, got {value!r:.40}")
    return value


def expect(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r:.40}")
    return value


def plain_number(value: Any, name: str) -> float:
    """A finite number of plain data.

    Raises:
        ValueError: it is something else.
    """
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # false for nan, too
        raise ValueError(f"{name}: expected a number, got {value!r:.40}")
    return float(value)
