"""`admrl compare`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from admrl.any_run import is_baseline
from admrl.comparison import (
    Comparison,
    Row,
    cell_rows,
    compare_tables,
    paired_rows,
    provenance_rows,
    summary_rows,
    to_csv,
)
from admrl.comparison_figures import (
    plot_average_return,
    plot_learning_curves,
    plot_model_error,
    plot_paths,
    plot_visited,
    plot_worst_gap,
)
from admrl.figures import plot_method_heatmap
from admrl.files import write_text
from admrl.gap_files import load_tables
from admrl.report import render_report
from admrl.run_records import RunRecords, read_records

if TYPE_CHECKING:
    from admrl.commands.options import Compare

SUFFIXES = (".png", ".pdf")


def execute(command: Compare) -> None:
    """Write tables, figures and the report.

    Raises:
        ValueError: runs that cannot be compared, or a place that cannot be written to.
    """
    if command.out.exists() and not command.out.is_dir():
        raise ValueError(f"--out: {command.out} is a file; name a folder")
    comparison = compare_tables(load_tables(command.runs, command.tasks))
    # paths of psi and learning curves of models; a baseline's curve is in its own folder
    records = [read_records(path) for path in command.runs if path.is_dir() and not is_baseline(path)]
    try:
        command.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {command.out}: cannot write there ({error.strerror})") from error
    summary, paired = summary_rows(comparison), paired_rows(comparison)
    cells, provenance = cell_rows(comparison), provenance_rows(comparison)
    for name, rows in (
        ("summary", summary),
        ("paired", paired),
        ("cells", cells),
        ("provenance", provenance),
    ):
        write_text(command.out / f"{name}.csv", to_csv(rows))
    figures = draw_all(comparison, summary, records, command.out)
    page = command.out / "report.html"
    write_text(page, render_report(comparison, summary, paired, cells, provenance, figures))
    console = Console(markup=False)
    print_summary(summary, console)
    for note in comparison.notes():
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(
        f"wrote {page} and {len(figures)} figures (PNG, PDF) and 4 tables (CSV) beside it", highlight=False
    )


def draw_all(
    comparison: Comparison, summary: list[Row], records: list[RunRecords], out: Path
) -> list[tuple[Path, str]]:
    """Every figure that the tables allow, as PNG and PDF; the PNG files with their captions."""
    drawn: list[tuple[Path, str]] = []

    def draw(name: str, caption: str, plot: Callable[[Path], bool | None]) -> None:
        files = [out / f"{name}{suffix}" for suffix in SUFFIXES]
        done = [plot(file) is not False for file in files]
        if all(done):
            drawn.append((files[0], caption))
        else:
            for file in files:  # of an earlier comparison in the same folder
                file.unlink(missing_ok=True)

    for j, n in enumerate(comparison.first.num_samples):
        draw(
            f"gap-n{n}",
            f"Sub-optimality gap by task after n = {n} real samples, one colour scale.",
            lambda file, j=j: plot_method_heatmap(comparison, file, j),  # type: ignore[misc]
        )
    draw(
        "worst-gap",
        "Worst-case gap against n: the largest mean (filled, too large); corrected for the choice (open, too small).",
        lambda file: plot_worst_gap(comparison, summary, file),
    )
    draw(
        "average-return",
        "Average return over the test tasks against n.",
        lambda file: plot_average_return(comparison, summary, file),
    )
    draw("visited", "Tasks that the trainings visited.", lambda file: plot_visited(comparison, file))
    draw(
        "model-error",
        "One-step error of the learned models on the same real transitions of the test tasks.",
        lambda file: plot_model_error(comparison, file),
    )
    draw(
        "paths",
        "Path of psi with the task gradients and the agreement of the two halves of their data.",
        lambda file: plot_paths(records, comparison, file),
    )
    draw("learning", "Learning curves of the trainings.", lambda file: plot_learning_curves(records, file))
    return drawn


def print_summary(rows: list[Row], console: Console) -> None:
    """Gap statistics with their intervals over training runs."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("method", "n", "statistic", "value", "95 % interval"):
        shown.add_column(name, justify="left" if name in ("method", "statistic") else "right", no_wrap=True)
    for row in rows:
        known = row["low"] == row["low"]
        shown.add_row(
            row["method"],
            str(row["n"]),
            row["statistic"],
            f"{row['value']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}" if known else "one seed",
        )
    console.print(shown)
