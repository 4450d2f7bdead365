"""Gap tables as text in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from admrl.evaluation.gap_table import GapTable
from admrl.jobs.display import short
from admrl.search.objective import Objective


def print_objective(
    tables: Sequence[GapTable], objective: Objective, scale: str, console: Console, j: int = 0
) -> None:
    """One number for each method's gaps over the tasks, where it is not the worst gap of the table anyway."""
    if (objective.name, scale) == ("worst", "absolute"):
        return
    name = objective.name + (f" {objective.alpha:g}" if objective.name == "cvar" else "")
    for table in tables:
        value, error = table.objective(objective, j, scale=scale)
        console.print(f"{table.method}: {name} of the {scale} gap {value:.4g} ± {error:.2g}", highlight=False)


def print_tables(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """Worst-case and mean gaps of the methods after n samples, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    n = first.num_samples[j]
    after = "zero-shot" if n == 0 else f"after {n} real samples a task:"
    shown = Table(
        title=f"{after} sub-optimality gap, {first.family}, {num_tasks} tasks, {num_seeds} policy seeds a task",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("method", "worst gap", "at", "corrected", "mean gap", f"A_{n}", "real", "virtual"):
        shown.add_column(
            column,
            justify="left" if column in ("method", "at") else "right",
            no_wrap=column != "method",
            overflow="fold",
        )
    for table in tables:
        if table.num_missing(j):
            console.print(
                f"{table.method}: {table.num_missing(j)} tasks have no gap (a simulation broke down)"
            )
        worst, (mean, error) = table.worst(j), table.average(j)
        psi = table.psi[worst.task]
        shown.add_row(
            table.method,
            f"{worst.gap:.0f} ± {worst.standard_error:.0f}",
            ", ".join(f"{x:.2f}" for x in psi) if len(psi) <= 3 else f"task {worst.task + 1}",
            f"{worst.corrected:.0f}",
            f"{mean:.0f} ± {error:.0f}",
            f"{table.adapted_return[:, :, j].mean():.0f}",
            _samples(table.provenance.training_real_samples),
            _samples(table.provenance.training_virtual_samples),
        )
    console.print(shown)


def print_notes(tables: Sequence[GapTable], console: Console) -> None:
    """What the columns of `print_tables` mean, and where A* comes from."""
    first, drawn = tables[0], tables[0].provenance.reference_real_samples
    names = first.task_names if len(first.task_names) <= 3 else ("the task's number on the list",)
    # a task's A* may come from two policies, half from each
    halves = Counter(part for source in first.optimal_source for part in (source.split(" / ") * 2)[:2])
    console.print(
        "± is the standard error over policy seeds; corrected: the worst task is chosen on one half of the seeds "
        "and its gap measured on the other (worst gap is too large, corrected too small); at: "
        + ", ".join(names)
        + "; A_n: mean return; real, virtual: training samples. "
        f"A* averages {first.optimal_return.mean():.0f}, best from: "
        + ", ".join(f"{name} ({count / 2:g} tasks)" for name, count in halves.most_common(6))
        + ("" if len(halves) <= 6 else f" and {len(halves) - 6} more")
        + "; the methods may see of a task: "
        + "; ".join(f"{t.method}: {t.provenance.sees or 'not recorded'}" for t in tables)
        + f"; reference: {'unknown' if drawn is None else f'{drawn:,}'} real samples.",
        highlight=False,
    )


def _samples(count: int | None) -> str:
    """A budget, or that it is not known."""
    return "?" if count is None else short(count)
