"""Gap tables as text in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from admrl.evaluation.gap_table import GapTable
from admrl.jobs.display import short
from admrl.number_text import UNKNOWN, interval, number, to_error, with_error
from admrl.search.objective import Objective


def print_objective(
    tables: Sequence[GapTable], objective: Objective, scale: str, console: Console, j: int = 0
) -> None:
    """One number for each method's gaps over the tasks, where it is not the worst gap of the table anyway."""
    if (objective.name, scale) == ("worst", "absolute"):
        return
    name = objective.name + (f" {objective.alpha:g}" if objective.name == "cvar" else "")
    for table in tables:
        known = table.num_missing(j) < len(table.psi)
        value, error = table.objective(objective, j, scale=scale) if known else (math.nan, math.nan)
        console.print(
            f"{table.method}: {name} of the {scale} gap {with_error(value, error)}", highlight=False
        )


def print_tables(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """Worst-case and mean gaps of the methods after n samples, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    n = first.num_samples[j]
    after = "zero-shot" if n == 0 else f"after {n} real samples a task:"
    shown = Table(
        title=f"{after} {first.gap_name}, {first.family}, {num_tasks} tasks, {num_seeds} policy seeds a task",
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
        unknown = table.num_missing(j) == num_tasks
        if table.num_missing(j) and not unknown:
            console.print(
                f"{table.method}: {table.num_missing(j)} tasks have no gap (a simulation broke down)"
            )
        shown.add_row(
            table.method,
            *([UNKNOWN] * 4 if unknown else _gap_cells(table, j)),
            number(float(table.adapted_return[:, :, j].mean())),
            _samples(table.provenance.training_real_samples),
            _samples(table.provenance.training_virtual_samples),
        )
    console.print(shown)
    if num_seeds > 1:
        print_intervals(tables, console, j)


def _gap_cells(table: GapTable, j: int) -> tuple[str, str, str, str]:
    """Worst gap, where, corrected, mean gap."""
    worst = table.worst(j)
    psi = table.psi[worst.task]
    return (
        with_error(worst.gap, worst.standard_error),
        ", ".join(f"{x:.2f}" for x in psi) if len(psi) <= 3 else f"task {worst.task + 1}",
        to_error([worst.corrected], worst.standard_error)[0],
        with_error(*table.average(j)),
    )


def print_intervals(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """95 % intervals of the mean gap and of the true worst gap, a line for each method whose gaps are known."""
    for table in tables:
        if table.num_missing(j) < len(table.psi):
            mean, worst = interval(*table.average_interval(j)), interval(*table.worst_interval(j))
            console.print(
                f"{table.method}: 95 % intervals: mean gap {mean}; worst gap, whichever task it is at, {worst}",
                highlight=False,
            )


def print_notes(tables: Sequence[GapTable], console: Console) -> None:
    """What the columns of `print_tables` mean, and where A* comes from."""
    first, drawn = tables[0], tables[0].provenance.reference_real_samples
    names = first.task_names if len(first.task_names) <= 3 else ("the task's number on the list",)
    # a task's A* may come from two policies, half from each
    halves = Counter(part for source in first.optimal_source for part in (source.split(" / ") * 2)[:2])
    console.print(
        f"± is the standard error: {_covered(first)}; corrected: the worst task is chosen on one half of the seeds "
        "and its gap measured on the other (worst gap is too large, corrected too small); at: "
        + ", ".join(names)
        + "; A_n: mean return; real, virtual: training samples. "
        f"A* averages {number(float(first.optimal_return.mean()))}, best from: "
        + ", ".join(f"{name} ({count / 2:g} tasks)" for name, count in halves.most_common(6))
        + ("" if len(halves) <= 6 else f" and {len(halves) - 6} more")
        + "; the methods may see of a task: "
        + "; ".join(f"{t.method}: {t.provenance.sees or 'not recorded'}" for t in tables)
        + f"; reference: {'unknown' if drawn is None else f'{drawn:,}'} real samples.",
        highlight=False,
    )


def _covered(table: GapTable) -> str:
    """What a standard error says, and what a 95 % interval is."""
    num = len(table.episode_return)
    if num < 2:
        return "unknown (?) with one policy seed"
    if table.not_covered:
        return f"over policy seeds; it leaves out {table.not_covered}"
    times = student_t.isf(0.025, num - 1)
    return f"policies, episodes and A*, over {num} policy seeds (95 %: ± {times:.1f} times it)"


def _samples(count: int | None) -> str:
    """A budget, or that it is not known."""
    return "?" if count is None else short(count)
