"""Gap tables as text in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from scipy.stats import t as student_t

from admrl.commands.text_table import print_table
from admrl.evaluation.gap_table import GapTable
from admrl.number_text import UNKNOWN, Scale, count, counted, interval, number, with_error
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
    unknown = [table.num_missing(j) == num_tasks for table in tables]
    for table, none in zip(tables, unknown, strict=True):
        if not none and (missing := table.num_missing(j)):
            console.print(
                f"{table.method}: {counted(missing, 'task')} without a gap (a simulation broke down)",
                highlight=False,
            )
    known = [table for table, none in zip(tables, unknown, strict=True) if not none]
    worst, means = [t.worst(j) for t in known], [t.average(j) for t in known]
    returns = [_mean_return(t, j) for t in tables]
    errors = [error for _, error in means]
<<<<<<< HEAD
    of_worst = Scale.of([w.gap for w in worst], [w.standard_error for w in worst])
    of_mean, of_return = Scale.of([gap for gap, _ in means], errors), Scale.of(returns, errors)
    gaps = iter(zip(worst, means, strict=True))
    rows = []
    for table, none, adapted in zip(tables, unknown, returns, strict=True):
        cells, error = (UNKNOWN,) * 4, math.nan
        if not none:
            w, mean = next(gaps)
            error = mean[1]
            cells = (
                of_worst.with_error(w.gap, w.standard_error),
                _task(table, w.task),
                of_worst.pair(w.corrected, w.standard_error)[0],
                of_mean.with_error(*mean),
            )
        budget = (table.provenance.training_real_samples, table.provenance.training_virtual_samples)
        rows.append((table.method, *cells, of_return.pair(adapted, error)[0], *map(_samples, budget)))
=======
    of_gaps = Scale.of(  # one for all, or they could not be compared
        [*(w.gap for w in worst), *(gap for gap, _ in means)], [*(w.standard_error for w in worst), *errors]
    )
    of_return = Scale.of(returns, errors)
    rows = [
        (
            table.method,
            of_gaps.with_error(w.gap, w.standard_error),
            ", ".join(number(x, 3) for x in table.psi[w.task])
            if table.psi.shape[1] <= 3
            else f"task {w.task + 1}",
            of_gaps.pair(w.corrected, w.standard_error)[0],
            of_gaps.with_error(*mean),
            of_return.pair(adapted, mean[1])[0],
            _samples(table.provenance.training_real_samples),
            _samples(table.provenance.training_virtual_samples),
        )
        for table, w, mean, adapted in zip(tables, worst, means, returns, strict=True)
    ]
>>>>>>> x-terminal
    columns = (
        "method",
        of_gaps.label("worst gap"),
        "at",
        of_gaps.label("corrected"),
        of_gaps.label("mean gap"),
        of_return.label(f"A_{n}"),
        "real",
        "virtual",
    )
    title = (
        f"{after} {first.gap_name}, {first.family}, {counted(num_tasks, 'task')}, "
        f"{counted(num_seeds, 'policy seed')} a task"
    )
    print_table(console, columns, rows, title=title, left=("at",))
    if num_seeds > 1:
        print_intervals(tables, console, j)


def _mean_return(table: GapTable, j: int) -> float:
    """Over the tasks that no simulation broke."""
    return _mean(table.adapted_return[:, :, j].mean(0))


def _mean(values: np.ndarray) -> float:
    """Of those that are known; nan if none is."""
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else math.nan


def _task(table: GapTable, i: int) -> str:
    """Task i for a narrow column."""
    return ", ".join(number(x, 3) for x in table.psi[i]) if table.psi.shape[1] <= 3 else f"task {i + 1}"


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
        f"A* averages {number(_mean(first.optimal_return))}, best from: "
        + ", ".join(f"{name} ({half / 2:g} tasks)" for name, half in halves.most_common(6))
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


def _samples(samples: int | None) -> str:
    """A budget, or that it is not known."""
    return "?" if samples is None else count(samples)
