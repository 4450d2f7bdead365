"""`admrl compare`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command
from admrl.commands.outside import with_folders

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.reports.comparison import Comparison
    from admrl.reports.rows import Row
    from admrl.runs.records import RunRecords


@dataclass(frozen=True)
class Compare(Command):
    """Compare evaluated runs: tables with intervals, all figures (PNG and PDF), and one HTML report.

    Runs of one selector and several seeds are one method, or see --names. Everything is drawn from the tables and
    metrics of the run folders; nothing is computed again. The report opens from the disk, without network.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS", help_behavior_hint="")
    ] = ()
    """Run folders of one family that `admrl evaluate` has been given together, or with one --reference."""
    out: Path = Path("report")
    """Folder to write into; files of the same names are replaced."""
    tasks: str | None = None
    """Which of the runs' gap tables, by name. Default: the only one."""
    names: tuple[str, ...] = ()
    """Names of the runs' methods, one for each run, where runs of one selector are of several methods. Default: their
    selectors."""
    policy: tuple[str, ...] = ()
    """Policies from elsewhere that `admrl evaluate` was given, named in the same way."""
    method: tuple[str, ...] = ()
    """The same for methods of your own."""
    sees_psi: bool = False
    """As it was for `admrl evaluate`."""
    family: str | None = None
    """Their family, where no run is given."""

    def check(self) -> None:
        """See `Command`."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: {self.out} is a file; name a folder")
        if not all(name.strip() for name in self.names):
            raise ValueError(f"names: expected a name for every run, got {self.names}")
        if self.names and len(self.names) != len(self.runs):
            raise ValueError(
                f"names: expected one for each of {len(self.runs)} runs, in their order, got {len(self.names)}"
            )

    def prepare(self) -> tuple[Comparison, list[RunRecords]]:
        """What is compared; the folder exists afterwards."""
        from admrl.evaluation.gap_files import load_tables
        from admrl.reports.comparison import check_gaps, compare_tables
        from admrl.runs.config_file import read_config
        from admrl.runs.records import read_records

        comparison = compare_tables(load_tables(with_folders(self.runs, self), self.tasks), self.names)
        check_gaps(comparison)
        # paths of psi and learning curves of models; a baseline's curve is in its own folder
        records = []
        for path, name in zip_longest(self.runs, self.names):
            if path.is_dir() and read_config(path).get("kind") is None:
                found = read_records(path)
                records.append(found if name is None else replace(found, selector=name))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.out} ({error.strerror})") from error
        return comparison, records

    def execute(self, prepared: tuple[Comparison, list[RunRecords]]) -> None:
        """Write tables, figures and the report."""
        from admrl.jobs.display import TextConsole
        from admrl.reports.figures import draw_all
        from admrl.reports.page import render_report
        from admrl.reports.rows import cell_rows, paired_rows, provenance_rows, summary_rows, to_csv
        from admrl.storage.files import write_text

        (comparison, records), console = prepared, TextConsole()
        summary = summary_rows(comparison)
        tables = {
            "summary": summary,
            "paired": paired_rows(comparison),
            "cells": cell_rows(comparison),
            "provenance": provenance_rows(comparison),
        }
        for name, rows in tables.items():
            write_text(self.out / f"{name}.csv", to_csv(rows))
        figures = draw_all(comparison, summary, records, self.out)
        page = self.out / "report.html"
        write_text(page, render_report(comparison, **tables, figures=figures))
        print_summary(summary, console)
        for note in comparison.notes():
            console.print(f"note: {note}", style="yellow")
        console.print(
            f"wrote {page} and {len(figures)} figures (PNG, PDF) and 4 tables (CSV) beside it",
        )


def print_summary(rows: list[Row], console: Console) -> None:
    """Gap statistics with their intervals over training runs."""
    from admrl.commands.text_table import print_table
    from admrl.reports.rows import texts

    shown = []
    for row in rows:
        text = texts(row)
        interval = f"{text['low']} to {text['high']}" if row["low"] == row["low"] else "unknown"
        shown.append((text["method"], text["n"], text["statistic"], text["value"], interval))
    columns = ("method", "n", "statistic", "value", "95 % interval")
    print_table(console, columns, shown, left=("statistic",))
