"""Gap tables as text in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from scipy.stats import t as student_t

from admrl.commands.text_table import print_table
from admrl.evaluation.gap_table import GapTable, WorstCase
from admrl.evaluation.scoring import tasks_by_source
from admrl.number_text import UNKNOWN, Scale, count, counted, interval, number, with_error
from admrl.reports.statistics import mean, paired_difference
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
        console.print(f"{table.method}: {name} of the {scale} gap {with_error(value, error)}")


def print_tables(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """Worst-case and mean gaps of the methods after n samples, with what they cost."""
    first = tables[0]
    num_seeds, num_tasks = first.episode_return.shape[:2]
    n = first.num_samples[j]
    after = "zero-shot" if n == 0 else f"after {n} real samples a task:"
    for table in tables:
        missing = table.num_missing(j)
        if 0 < missing < num_tasks:
            console.print(
                f"{table.method}: {counted(missing, 'task')} without a gap (a simulation broke down)",
            )
    worst, means = [_worst(t, j) for t in tables], [t.average(j) for t in tables]
    returns = [_mean_return(t, j) for t in tables]
    errors = [error for _, error in means]
    of_gaps = Scale.of(  # one for all, or they could not be compared
        [*(w.gap for w in worst), *(gap for gap, _ in means)], [*(w.standard_error for w in worst), *errors]
    )
    of_return = Scale.of(returns, errors)
    rows = [
        (
            table.method,
            of_gaps.with_error(w.gap, w.standard_error),
            _place(table, w),
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
        f"{after} {first.gap_name}, {first.family}, {counted(num_tasks, 'task')}, "
        f"{counted(num_seeds, 'policy seed')} a task"
    )
    print_table(console, columns, rows, title=title, left=("at",))
    if num_seeds > 1:
        print_intervals(tables, console, j)


def print_parts(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """The optimisation's and the model's part of gaps that were decomposed, and what would help."""
    parts = [(table.part("optimisation"), table.part("model")) for table in tables]
    means = [[part.average(j) for part in pair] for pair in parts]
    worst = [_worst(model, j) for _, model in parts]
    scale = Scale.of(
        [*(value for pair in means for value, _ in pair), *(w.gap for w in worst)],
        [*(error for pair in means for _, error in pair), *(w.standard_error for w in worst)],
    )
    rows = [
        (
            table.method,
            *(scale.with_error(*mean) for mean in pair),
            scale.with_error(w.gap, w.standard_error),
            _place(model, w),
            _samples(table.provenance.oracle_training_samples),
        )
        for table, (_, model), pair, w in zip(tables, parts, means, worst, strict=True)
    ]
    columns = ("method", *(scale.label(f"mean {part} part") for part in ("optimisation", "model")))
    columns += (scale.label("worst model part"), "at", "oracle")
    title = "parts of the gaps: optimisation A* - A_oracle, model A_oracle - A_n"
    print_table(console, columns, rows, title=title, left=("at",))
    for table, pair in zip(tables, parts, strict=True):
        console.print(f"{table.method}: {_what_helps(*pair, j)}")
    console.print(
        "A_oracle: the same optimiser with the same updates, samples and policy seeds in the true simulator; oracle: "
        "simulator samples that its updates drew, counted with no method's."
    )


def _what_helps(optimisation: GapTable, model: GapTable, j: int) -> str:
    """Which of the parts is above 0 beyond its 95 % interval."""
    seen = {name: part.average_interval(j)[0] > 0 for name, part in (("opt", optimisation), ("model", model))}
    if len(model.episode_return) < 2:
        return "with one policy seed nobody knows which part is above its noise"
    if optimisation.num_missing(j) == len(optimisation.psi):
        return (
            f"A* is unknown, and so is the optimisation's part; the model's part is {'' if seen['model'] else 'not '}"
            "above 0 beyond its noise"
        )
    if seen["model"] and seen["opt"]:
        return (
            "both parts are above 0: better tasks or more data can win the one, better optimisation the other"
        )
    if seen["model"]:
        return "the model's part is above 0: better tasks or more data can win it"
    if seen["opt"]:
        return (
            "only the optimisation's part is above 0: more updates or samples of the optimisation can win it; better "
            "tasks or more data cannot be shown to"
        )
    return (
        "neither part is above 0 beyond its noise: nothing is seen that tasks, data or optimisation could win"
    )


def _worst(table: GapTable, j: int) -> WorstCase:
    """The worst case, or that nothing is known."""
    if table.num_missing(j) == len(table.psi):
        return WorstCase(0, math.nan, math.nan, math.nan)
    return table.worst(j)


def _place(table: GapTable, worst: WorstCase) -> str:
    """Where the worst gap is."""
    if math.isnan(worst.gap):
        return UNKNOWN
    psi = table.psi[worst.task]
    return ", ".join(number(x, 3) for x in psi) if len(psi) <= 3 else f"task {worst.task + 1}"


def _mean_return(table: GapTable, j: int) -> float:
    """Over the tasks whose gap is known, or over all if none is."""
    known = np.isfinite(table.mean_gap(j))
    return float(table.adapted_return[:, known if known.any() else ~known, j].mean())


def print_intervals(tables: Sequence[GapTable], console: Console, j: int = 0) -> None:
    """95 % intervals of the mean gap and of the true worst gap, a line for each method whose gaps are known."""
    for table in tables:
        if table.num_missing(j) < len(table.psi):
            mean, worst = interval(*table.average_interval(j)), interval(*table.worst_interval(j))
            console.print(
                f"{table.method}: 95 % intervals: mean gap {mean}; worst gap, whichever task it is at, {worst}",
            )


def print_difference(a: GapTable, b: GapTable, console: Console, j: int = 0) -> None:
    """Gaps of one run minus another's with the same policy seeds, and whether that is more than the policies' luck.

    Nothing is printed where their luck cannot be told: one policy seed, or no task with both gaps.
    """
    known = ~(np.isnan(a.mean_gap(j)) | np.isnan(b.mean_gap(j)))
    if len(a.gap) < 2 or not known.any():
        return
    x, y = a.gap[:, known, j], b.gap[:, known, j]  # (R, M)
    found = {
        "mean gap": paired_difference(x, y, mean).interval,
        "worst gap": paired_difference(x, y, lambda gap: gap.mean(-2).max(-1)).interval,
    }
    shown = (f"{what} {number(d.value, 2)} ({interval(d.low, d.high)})" for what, d in found.items())
    told = [
        f"{a.method if d.high < 0 else b.method} has the smaller {what}"
        for what, d in found.items()
        if d.high < 0 or d.low > 0
    ]
    console.print(
        f"{a.method} - {b.method}, 95 % intervals: {', '.join(shown)}: {', '.join(told) or 'not told apart'}. Each "
        "was trained once; what other trainings would give is not in these intervals."
    )


def print_notes(tables: Sequence[GapTable], console: Console) -> None:
    """What the columns of `print_tables` mean, and where A* comes from."""
    first, drawn = tables[0], tables[0].provenance.reference_real_samples
    names = first.task_names if len(first.task_names) <= 3 else ("the task's number on the list",)
    tasks = tasks_by_source(first.optimal_source)
    best = (
        f"A* averages {number(_mean_known(first.optimal_return))}, best from: "
        + ", ".join(f"{name} ({round(share, 2):g} tasks)" for name, share in list(tasks.items())[:6])
        + ("" if len(tasks) <= 6 else f" and {len(tasks) - 6} more")
        if np.isfinite(first.optimal_return).any()
        else "A* is unknown"
    )
    console.print(
        f"± is the standard error: {_covered(first)}; corrected: the worst task is chosen on one half of the seeds "
        "and its gap measured on the other (worst gap is too large, corrected too small); at: "
        + ", ".join(names)
        + "; A_n: mean return; real, virtual: training samples. "
        + f"{best}; the methods may see of a task: {_seen(tables)}"
        + ("." if drawn is None else f"; reference: {drawn:,} real samples."),
    )


def _seen(tables: Sequence[GapTable]) -> str:
    """What the methods may see of a task, together where it is the same."""
    of: dict[str, list[str]] = {}
    for table in tables:
        of.setdefault(table.provenance.sees or "not recorded", []).append(table.method)
    if len(of) == 1 < len(tables):
        return f"all: {next(iter(of))}"
    return "; ".join(f"{' and '.join(methods)}: {sees}" for sees, methods in of.items())


def _mean_known(values: np.ndarray) -> float:
    """Mean of what is known; nan if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


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
