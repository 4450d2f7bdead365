"""Gap tables as text in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from admrl.commands.text_table import print_table
from admrl.evaluation.gap_table import GapTable
from admrl.number_text import Scale, count, counted, number, with_error
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
        console.print(
            f"{table.method}: {name} of the {scale} gap {with_error(value, error)}", highlight=False
        )


def print_tables(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """Worst-case and mean gaps of the methods after n samples, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    n = first.num_samples[j]
    after = "zero-shot" if n == 0 else f"after {n} real samples a task:"
    for table in tables:
        if missing := table.num_missing(j):
            console.print(
                f"{table.method}: {counted(missing, 'task')} without a gap (a simulation broke down)",
                highlight=False,
            )
    worst, means = [t.worst(j) for t in tables], [t.average(j) for t in tables]
    returns = [float(t.adapted_return[:, np.isfinite(t.mean_gap(j)), j].mean()) for t in tables]
    errors = [error for _, error in means]
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
        f"{after} sub-optimality gap, {first.family}, {counted(num_tasks, 'task')}, "
        f"{counted(num_seeds, 'policy seed')} a task"
    )
    print_table(console, columns, rows, title=title, left=("at",))


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
        f"A* averages {number(float(np.nanmean(first.optimal_return)))}, best from: "
        + ", ".join(f"{name} ({half / 2:g} tasks)" for name, half in halves.most_common(6))
        + ("" if len(halves) <= 6 else f" and {len(halves) - 6} more")
        + "; the methods may see of a task: "
        + "; ".join(f"{t.method}: {t.provenance.sees or 'not recorded'}" for t in tables)
        + f"; reference: {'unknown' if drawn is None else f'{drawn:,}'} real samples.",
        highlight=False,
    )


def _samples(samples: int | None) -> str:
    """A budget, or that it is not known."""
    return "?" if samples is None else count(samples)
