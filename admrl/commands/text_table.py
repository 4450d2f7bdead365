"""Tables in a terminal whose names and numbers are never cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

NAME_WIDTH = 12  # characters of a name on one line, at least


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    left: Sequence[str] = (),
) -> None:
    """A table whose first column, of names, folds and whose others keep their width. On a console that is too narrow
    for that, columns move together, or a name is followed by its row as a list.

    Args:
        left: columns beside the first one that are aligned on the left.
    """
    rows = [[_harmless(row[0]), *row[1:]] for row in rows]
    short = [[row[0][:NAME_WIDTH], *row[1:]] for row in rows]
    wide = console.options.update(max_width=10_000)
    for space in (1, 0):
        if Measurement.get(console, wide, _table(columns, short, left, space)).minimum <= console.width:
            table = _table(columns, rows, left, space)
            table.title = title or None
            console.print(table)
            return
    if title:
        console.print(title)
    for row in rows:
        console.print(row[0])
        fields = [
            f"{name} {text.replace(chr(10), ', ')}" for name, text in zip(columns[1:], row[1:], strict=True)
        ]
        line = " "
        for field in fields:
            if cell_len(line) + cell_len(field) + 2 > console.width and line.strip():
                console.print(line)
                line = " "
            line += f" {field}" + ";" * (field is not fields[-1])
        console.print(line)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str], space: int) -> Table:
    """
    Args:
        space: beside every column, in characters; one more divides them.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False, padding=(0, space))
    for i, name in enumerate(columns):
        column = name.replace(" (", "\n(")
        lines = [*column.split("\n"), *(line for row in rows for line in row[i].split("\n"))]
        width = max(map(cell_len, lines))
        if i == 0:
            table.add_column(column, overflow="fold", min_width=min(width, NAME_WIDTH))
        else:
            side = "left" if name in left else "right"
            table.add_column(column, justify=side, no_wrap=True, min_width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def _harmless(name: str) -> str:
    """A name without characters that a terminal obeys."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in name)
