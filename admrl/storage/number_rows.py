"""Rows of numbers from a file that a user wrote, JSON or CSV: every row is read or refused, none is lost in silence.

CSV: one row a line; cells apart by commas, semicolons or tabs, or else by spaces; what follows a # is a note. The
first line may name the columns: only a line whose every cell consists of words of its column's own name is one of
names, so that neither a typo in a number nor columns in another order pass for a header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admrl.storage.files import expect, parse_json, plain_number

SEPARATORS = ";,\t"  # the first of them that a line has; a decimal comma is then no separator, and is refused


@dataclass(frozen=True)
class NumberRow:
    """One row of a file."""

    where: str
    """The file and the row's number."""
    number: int
    """Counted from 1; of CSV, the line."""
    numbers: tuple[float, ...]
    """One for each column; of CSV also nan and infinities."""


def read_number_rows(file: Path, names: Sequence[str]) -> list[NumberRow]:
    """The rows of a .json file (a list of lists of numbers), or of any other as CSV.

    Args:
        names: of the columns.

    Raises:
        ValueError: names the file and, where it is one, the row and the column.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")  # with or without a byte-order mark
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected text in UTF-8, got something else at byte {error.start}; save it as UTF-8"
        ) from error
    if file.suffix.lower() == ".json":
        return _json_rows(file, text, names)
    return _csv_rows(file, text, names)


def _json_rows(file: Path, text: str, names: Sequence[str]) -> list[NumberRow]:
    try:
        data = expect(parse_json(text), list, "all rows")
    except ValueError as error:
        raise ValueError(f"{file}: expected a list of lists of numbers in JSON; {error}") from error
    rows = []
    for i, row in enumerate(data, start=1):
        where = f"{file}, row {i}"
        _check_count(expect(row, list, where), names, where)
        numbers = [plain_number(x, _column(where, c, names)) for c, x in enumerate(row)]
        rows.append(NumberRow(where, i, tuple(numbers)))
    return rows


def _csv_rows(file: Path, text: str, names: Sequence[str]) -> list[NumberRow]:
    lines = [(i, _cells(line)) for i, line in enumerate(text.splitlines(), start=1)]
    lines = [(i, cells) for i, cells in lines if cells]
    if lines and _is_header(lines[0][1], names):
        lines = lines[1:]
    rows: list[NumberRow] = []
    for i, cells in lines:
        where = f"{file}, row {i}"
        try:
            _check_count(cells, names, where)
            numbers = [_number(x, _column(where, c, names)) for c, x in enumerate(cells)]
        except ValueError as error:
            if rows or any(_is_number(cell) for cell in cells):
                raise
            raise ValueError(
                f"{error}; a first row of names must name these columns, in this order: {', '.join(names)} "
                "(begin a row of anything else with #)"
            ) from error
        rows.append(NumberRow(where, i, tuple(numbers)))
    return rows


def _cells(line: str) -> list[str]:
    """The cells of a line of CSV, without empty ones at its end."""
    line = line.split("#")[0]
    separator = next((s for s in SEPARATORS if s in line), None)
    if separator is None:
        return line.split()
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _is_header(cells: Sequence[str], names: Sequence[str]) -> bool:
    if len(cells) != len(names) or any(_is_number(cell) for cell in cells):
        return False
    return all(_words(cell) and _words(cell) <= _words(name) for cell, name in zip(cells, names, strict=True))


def _words(name: str) -> set[str]:
    """Of a column's name, without a unit in brackets: "Target_velocity (m/s)" -> target, velocity."""
    return set(re.sub(r"[(\[].*?[)\]]", " ", name).replace("_", " ").casefold().split())


def _check_count(row: Sequence[Any], names: Sequence[str], where: str) -> None:
    if len(row) != len(names):
        raise ValueError(f"{where}: expected {len(names)} numbers ({', '.join(names)}), got {len(row)}")


def _column(where: str, column: int, names: Sequence[str]) -> str:
    return f"{where}, column {column + 1} ({names[column]})"


def _number(cell: str, where: str) -> float:
    if not _is_number(cell):
        comma = "; write decimals with a point" if re.fullmatch(r"[+-]?\d*,\d+", cell) else ""
        raise ValueError(f"{where}: expected a number, got {cell!r:.40}{comma}")
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python's 1_000 is nobody's number in a table
