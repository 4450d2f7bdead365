"""Every table of a command at 80 columns and fewer, with numbers of every size: nothing is cut, nothing is lost."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from gradient_tools import draws
from report_tools import HOSTILE, any_comparison, any_tables
from rich.cells import cell_len
from rich.console import Console

from admrl.commands.compare import print_summary
from admrl.commands.gap_printing import (
    print_difference,
    print_notes,
    print_objective,
    print_tables,
)
from admrl.commands.gradcheck import print_check
from admrl.commands.text_table import print_table
from admrl.gradient.check import GradientCheck, Truth
from admrl.number_text import with_error
from admrl.reports.rows import summary_rows
from admrl.search.objective import Objective

SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)
SIZES = [1e-6, 1e-3, 1.0, 1e3, 1e7, 1e9]


def printed(show, *arguments, width=80):
    console = Console(width=width, markup=False, file=io.StringIO())
    show(*arguments, console)
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines()), default=0) <= width
    assert "\u2026" not in text
    return text


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("width", [24, 80, 200])
@pytest.mark.parametrize("size", SIZES)
def test_gaps_are_printed_with_the_digits_of_their_error(size, width):
    """Gaps of order 1 were "0 ± 0"; at 80 columns long ones were cut."""
    tables = any_tables(HOSTILE, size=size, num_seeds=1)
    text = printed(print_tables, tables, width=width)
    power = re.search("\\(\u00d710([\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+)", text)
    unit = 10.0 ** int(power[1].translate(SUPERSCRIPTS)) if power else 1.0
    found = [
        (float(x) * unit, float(e) * unit) for x, e in re.findall(r"([0-9.]+)\s+\u00b1\s+([0-9.]+)", text)
    ]
    for table in tables:
        worst = table.worst()
        right = [
            e for x, e in found if abs(x - worst.gap) <= max(0.06 * worst.standard_error, 1e-4 * worst.gap)
        ]
        assert right and any(e == pytest.approx(worst.standard_error, rel=0.5) for e in right)
    assert "\u00b10" not in squeezed(text).replace("\u00b10.", "")
    assert "nan" not in text and "e+" not in text


def test_a_missing_task_does_not_hide_the_mean_return():
    tables = any_tables(["a"], num_seeds=1, missing=True)
    text = printed(print_tables, tables, width=100)
    assert "1 task without a gap" in text and "?" not in text.splitlines()[-1][:-20]


def test_the_notes_count_every_candidate_that_a_task_owes_its_reference_to():
    (table,) = any_tables(["a"], num_seeds=1)
    num = len(table.psi)
    sources = ("x / y / z", "x", *["z"] * (num - 2))
    text = " ".join(printed(print_notes, [replace(table, optimal_source=sources)]).split())
    assert f"z ({num - 2}.33 tasks), x (1.33 tasks), y (0.33 tasks)" in text


def test_one_number_and_the_notes():
    tables = any_tables(["a", "b"], size=1e-4, num_seeds=1)
    value, error = tables[0].objective(Objective("cvar", 0.2, 0.5), 0, scale="absolute")

    def show(console):
        print_objective(tables, Objective("cvar", 0.2, 0.5), "absolute", console)
        print_notes(tables, console)

    text = printed(show)
    assert f"a, seed 0: cvar 0.2 of the absolute gap {with_error(value, error)}" in text
    assert "A* averages 0.01," in text


def test_the_notes_say_once_what_all_methods_see_and_that_nothing_is_known_of_a_star():
    tables = any_tables(["a", "b"], num_seeds=1)
    seen = [
        replace(t, provenance=replace(t.provenance, sees=sees))
        for t, sees in zip(tables, ("psi", "rewards"), strict=True)
    ]
    same = [replace(t, provenance=replace(t.provenance, sees="psi")) for t in tables]
    unknown = [replace(t, optimal_return=np.full_like(t.optimal_return, np.nan)) for t in same]
    end = "the methods may see of a task: "
    for shown, note in (
        (seen, f"{end}a, seed 0: psi; b, seed 0: rewards"),
        (same, f"{end}all: psi."),
        (same[:1], f"{end}a, seed 0: psi."),
        (unknown, f"A* is unknown; {end}all: psi."),
    ):
        assert note in " ".join(printed(print_notes, shown).split())


def test_a_difference_is_told_only_beyond_the_luck_of_the_policies():
    """Gaps of b are those of a and 3, 4, 5 more with the three policy seeds: 4, and t(2) / sqrt(3) around it."""
    a, b = any_tables(["a", "b"], num_seeds=1)
    more = np.array([3.0, 4.0, 5.0])[:, None, None]
    return_ = np.repeat(a.episode_return[:1], 3, axis=0)  # as if the policies of a had no luck
    first, second = replace(a, episode_return=return_), replace(b, episode_return=return_ - more[..., None])
    half = 4.303 / 3**0.5
    text = squeezed(printed(print_difference, first, second, width=60))
    low, high = map(float, re.search(r"meangap-4\(-([0-9.]+)to-([0-9.]+)\)", text).groups())
    assert (low, high) == (pytest.approx(4 + half, abs=0.1), pytest.approx(4 - half, abs=0.1))
    assert "a,seed0hasthesmallermeangap,a,seed0hasthesmallerworstgap" in text
    assert "a,seed0hasthesmallermeangap" in squeezed(printed(print_difference, second, first))
    lucky = replace(second, episode_return=return_ - (more - 4)[..., None])
    assert "nottoldapart" in squeezed(printed(print_difference, first, lucky))
    one = [replace(table, episode_return=table.episode_return[:1]) for table in (first, second)]
    assert printed(print_difference, *one) == ""


@pytest.mark.parametrize("size", SIZES)
def test_the_summary_of_compare(size):
    rows = summary_rows(any_comparison(["adversarial", "uniform"], size=size))
    lines = printed(print_summary, rows).splitlines()
    row = next(r for r in rows if r["statistic"] == "worst gap" and r["method"] == "uniform")
    line = next(x for x in lines if "uniform" in x and " worst gap " in x)
    value, low, high = (float(x) for x in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", line)[1:4])
    error = (row["high"] - row["low"]) / 4
    assert value == pytest.approx(row["value"], abs=0.06 * error)
    assert (low, high) == pytest.approx((row["low"], row["high"]), abs=0.06 * error)


@pytest.mark.parametrize("num_parameters", [1, 2, 10])
@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_check_is_whole_at_80_columns(size, num_parameters):
    """Names and numbers were cut."""
    truth = size * np.linspace(1, 3, num_parameters)
    found = [draws([(truth * x).tolist() for x in (0.9, 1.0, 1.2)])]
    known = Truth(*[truth.tolist()] * 4)
    check = GradientCheck("hopper2d", [1e-6] * num_parameters, known, found, {})
    text = printed(print_check, check)
    for heading in ("estimator", "implicit", "halves", "residual", "real"):
        assert heading in text
    factor = re.search("\\(\u00d710([\u2070-\u209f\u00b2\u00b3\u00b9\u207b]+)\\)", text)
    assert bool(factor) is not (1e-2 <= 3.1 * size < 1e6)
    table = text.partition("optimal - adapted")[0]
    assert len(re.findall(r"\b\d\.\d+|\b\d{4}\b", table)) >= 2 * num_parameters
    assert "fisher" in table and "1.00" in table


def test_a_table_folds_names_before_it_becomes_a_list():
    rows = [("a name of many words that is long", "1.5 \u00b1 0.5", "2"), ("b", "10.5 \u00b1 0.5", "3")]

    def show(console):
        print_table(console, ("name", "number", "n"), rows, title="t")

    assert "a name of many words that is long   1.5 \u00b1 0.5  2" in printed(show, width=60)
    folded = printed(show, width=30)
    assert "10.5 \u00b1 0.5  3" in folded and len(folded.splitlines()) > 6
    listed = printed(show, width=20)
    assert "number 10.5 \u00b1 0.5;" in listed and "n 3" in listed


def test_a_name_does_not_command_the_terminal():
    text = printed(
        lambda c: print_table(c, ("name", "n"), [("\x1b[31mred\x07\n", "1"), ("[bold]b[/bold]", "2")])
    )
    assert "\x1b" not in text and "\x07" not in text and "[31mred" in text and "[bold]b[/bold]" in text
