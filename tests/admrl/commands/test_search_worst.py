"""What `admrl search-worst` says at its end."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from admrl.commands.search_worst import SearchWorst
from admrl.search.worst import MassBound, WorstReport, WorstTask
from task_families import make, names


def report(size=1.0):
    task = WorstTask((1.5, 1.3), 2 * size, 1.5 * size, 1.2 * size, 1.9 * size, 4, 0.3 * size, 0.05 * size)
    return WorstReport((task,), ("a", "b"), ("m/s", "1"), 5, 0, 3, MassBound(3, 1.1 * size, 0.6, 0.95), 0.95)


def saved(family, folder):
    console = Console(width=1000, markup=False, file=io.StringIO())
    run = SimpleNamespace(path=folder / "run", family=make(family), info=SimpleNamespace(source=None))
    counts = SimpleNamespace(num_policies=1, real_samples=1, notes=[])
    SearchWorst(folder / "run", out=folder)._save(run, report(), counts, counts, console)
    return console.file.getvalue(), json.loads((folder / "worst.json").read_text())


@pytest.mark.parametrize("family", ["hopper2d", "point_robot", "linear_quadratic"])
def test_a_film_is_recommended_where_there_is_something_to_see(tmp_path, family):
    """`admrl render` refuses a family without a body, but was recommended for it."""
    assert family in names()
    said, data = saved(family, tmp_path)
    filmed = family == "hopper2d"
    assert ("admrl render" in said) is filmed and bool(data["replay"]) is filmed
    assert ("to see the worst again" in said) is filmed and "Wrote" in said


@pytest.mark.parametrize(
    ("size", "gap", "slope"),
    [
        (1.0, "gap 1.50 [1.20, 1.90] (95%, 4 replicates); in the search 2;", "0.300 \u00b1 0.050 per"),
        (1e-6, "gap 1.50e-6 [1.20e-6, 1.90e-6] (95%, 4", "(3.00 \u00b1 0.50)e-7 per"),
        (1e8, "gap 1.50e8 [1.20e8, 1.90e8] (95%, 4", "(3.00 \u00b1 0.50)e7 per"),
    ],
)
def test_the_report_has_the_digits_of_its_interval(size, gap, slope):
    text = "\n".join(report(size).lines())
    assert gap in text and f"projected gradient {slope}" in text
