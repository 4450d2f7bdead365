"""`admrl heatmap`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from admrl.evaluation import GapTable
from admrl.figures import plot_gap_heatmap
from admrl.run_store import GAPS

if TYPE_CHECKING:
    from admrl.cli import Heatmap

FORMATS = (".png", ".pdf", ".svg")


def execute(command: Heatmap) -> None:
    """Draw the figure.

    Raises:
        ValueError: no or unfit tables, or a file format that cannot be written.
    """
    if not command.runs:
        raise ValueError("RUNS: expected at least one run folder, got none")
    if command.out.suffix not in FORMATS:
        raise ValueError(f"--out: expected a file ending in {', '.join(FORMATS)}, got {command.out}")
    if command.out.is_dir():
        raise ValueError(f"--out: {command.out} is a folder; name a file")
    if not command.out.parent.is_dir():
        raise ValueError(f"--out: the folder {command.out.parent} does not exist; make it first")
    tables = []
    for path in command.runs:
        file = path / GAPS if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{path} has no {GAPS}; run: admrl evaluate {path} --grid 6 6")
        tables.append(GapTable.load(file))
    plot_gap_heatmap(tables, command.out)
    print(f"wrote {command.out}")
