"""`admrl heatmap`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from admrl.evaluation import GapTable
from admrl.figures import plot_gap_heatmap
from admrl.gap_files import load_tables

if TYPE_CHECKING:
    from admrl.commands.options import Heatmap

FORMATS = (".png", ".pdf", ".svg")


def execute(command: Heatmap) -> None:
    """Draw the figure.

    Raises:
        ValueError: no or unfit tables, or a file format that cannot be written.
    """
    if command.out.suffix not in FORMATS:
        raise ValueError(f"--out: expected a file ending in {', '.join(FORMATS)}, got {command.out}")
    if command.out.is_dir():
        raise ValueError(f"--out: {command.out} is a folder; name a file")
    if not command.out.parent.is_dir():
        raise ValueError(f"--out: the folder {command.out.parent} does not exist; make it first")
    tables = load_tables(command.runs, command.tasks)
    plot_gap_heatmap(tables, command.out, stage_index(tables, command.num_samples))
    print(f"wrote {command.out}")


def stage_index(tables: Sequence[GapTable], num_samples: int) -> int:
    """Which of the tables' sample counts n is.

    Raises:
        ValueError: a table was not evaluated at n.
    """
    for table in tables:
        if num_samples not in table.num_samples:
            raise ValueError(
                f"--num-samples: expected one of {table.num_samples.tolist()} (of {table.method}), got "
                f"{num_samples}; adaptation needs admrl evaluate --config.num-stages 3"
            )
    return int(np.flatnonzero(tables[0].num_samples == num_samples)[0])
