"""What the figures share: colours, line styles, saving."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from admrl.evaluation.gap_table import GapTable
from admrl.storage.files import write_bytes

COLOURS = "viridis_r"  # light is a small gap, as in the paper; readable in grey and by the colour-blind


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix, and close it."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix[1:])
    plt.close(figure)
    write_bytes(path, picture.getvalue())


def axis_label(table: GapTable, i: int) -> str:
    """Name and unit of a task parameter."""
    unit = table.task_units[i]
    return f"{table.task_names[i]} ({unit})" if unit else table.task_names[i]


STYLES = (  # colour, marker, line
    ("#d55e00", "o", "-"),
    ("#0072b2", "s", "--"),
    ("#009e73", "^", "-."),
    ("#cc79a7", "D", ":"),
    ("#e69f00", "v", "-"),
    ("#56b4e9", "P", "--"),
)


def styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of every method; the three of the paper keep theirs in every comparison."""
    known = ["adversarial", "uniform", "gaussian"]
    order = [n for n in known if n in names] + [n for n in names if n not in known]
    slots = [i for i in range(len(STYLES)) if i >= len(known)]
    return {n: STYLES[known.index(n) if n in known else slots[order.index(n) % len(slots)]] for n in order}
