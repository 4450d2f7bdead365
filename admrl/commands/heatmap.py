"""`admrl heatmap`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command
from admrl.commands.outside import with_folders
from admrl.config.evaluation import PARTS
from admrl.storage.files import check_place
from task_families.choices import check_name

if TYPE_CHECKING:
    from admrl.evaluation.gap_table import GapTable

FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Heatmap(Command):
    """Draw the gap heat maps of evaluated runs side by side on one colour scale."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS", help_behavior_hint="")
    ] = ()
    """Run folders (or table files) that `admrl evaluate` has been given together."""
    out: Path = Path("gap.png")
    """Figure to write: .png, .pdf or .svg."""
    tasks: str | None = None
    """Which of the runs' tables, by name. Default: the only one."""
    num_samples: int = 0
    """Adaptation samples n, 0 for zero-shot."""
    policy: tuple[str, ...] = ()
    """Policies from elsewhere that `admrl evaluate` was given, named in the same way."""
    method: tuple[str, ...] = ()
    """The same for methods of your own."""
    sees_psi: bool = False
    """As it was for `admrl evaluate`."""
    family: str | None = None
    """Their family, where no run is given."""

    part: str = "gap"
    """gap; or, of evaluations with --decompose, its parts: optimisation (A* - A_oracle), model (A_oracle - A_n)."""

    def check(self) -> None:
        """See `Command`."""
        check_name("part", self.part, PARTS)
        if self.out.suffix not in FORMATS:
            raise ValueError(f"out: expected a file ending in {', '.join(FORMATS)}, got {self.out}")
        if self.out.is_dir():
            raise ValueError(f"out: {self.out} is a folder; name a file")
        check_place(self.out)

    def prepare(self) -> tuple[list[GapTable], int]:
        """The tables, and which of their sample counts is drawn."""
        from admrl.evaluation.gap_files import load_tables
        from admrl.reports.comparison import check_comparable

        tables = load_tables(with_folders(self.runs, self), self.tasks)
        for table in tables:
            if self.num_samples not in table.num_samples:
                raise ValueError(
                    f"num_samples: expected one of {table.num_samples.tolist()} (of {table.method}), got "
                    f"{self.num_samples}; adaptation needs admrl evaluate --config.num-stages 3"
                )
        for other in tables[1:]:
            check_comparable(tables[0], other)
        j = tables[0].num_samples.tolist().index(self.num_samples)
        for table in tables:
            table.part(self.part).worst(j)  # refuses one without any gap
        return tables, j

    def execute(self, prepared: tuple[list[GapTable], int]) -> None:
        """Draw the figure."""
        from admrl.reports.heatmap import plot_gap_heatmap

        tables, j = prepared
        plot_gap_heatmap(tables, self.out, j, part=self.part)
        print(f"wrote {self.out}")
