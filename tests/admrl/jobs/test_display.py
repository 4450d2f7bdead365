"""Progress rows in a terminal of some width."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from admrl.jobs.display import Display, JobReporter

NUMBERS = {
    "return_model": 1234.5,
    "return_real_noisy": -0.00123,
    "real_samples": 132_000,
    "virtual_samples": 4_600_000,
}


def shown(width, name, **metrics):
    console = Console(
        width=width, force_terminal=True, markup=False, file=io.StringIO(), legacy_windows=False
    )
    display = Display(console, {name: 100})
    reporter = JobReporter(name, display.handle)
    reporter.phase("task 3: virtual training, stage 2 of 4")
    for _ in range(45):
        reporter.advance(**metrics)
    console.file.truncate(0)
    with console.capture() as capture:
        console.print(display._progress.get_renderable())
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "name", ["runs/a", "[red]runs[/red]/a/folder/with/a/very/long/name, seed 12", "\u6f22\u5b57" * 30]
)
def test_bar_percentage_and_time_left_stay_visible(width, name):
    """At 80 columns the bar, the percentage and the time left vanished behind the name and the numbers."""
    (line,) = shown(width, name, **NUMBERS).splitlines()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert cell_len(plain) <= width
    assert " 45%" in plain and plain.count("\u2501") + plain.count("\u2578") + plain.count("\u257a") == 16
    assert len(re.findall(r"\d+:\d\d:\d\d", plain)) >= 1, "the time that has passed"
    assert re.search(r"(\d+:\d\d:\d\d|-:--:--)\s*$", plain), "the time that is left"
    assert plain[0] == name[0], "the name is shortened, not left out, and is no markup"


def test_numbers_of_every_size():
    """Returns below 1 were 0, 200 samples were 0k."""
    line = shown(200, "run", return_model=0.00123, return_real_noisy=12_345_678.0, real_samples=200)
    assert "model 0.00123, real 1.235e7, 200 real" in line


def told(*messages, width=100):
    """The lines of a file for these messages (job, kind, argument)."""
    console = Console(width=width, file=io.StringIO())
    with Display(console, {"a": 10, "b": 10}) as display:
        for job, kind, text in messages:
            JobReporter(job, display.handle).__getattribute__(kind)(text)
    return console.file.getvalue().splitlines()


def test_what_is_said_again_and_again_is_told_once_with_its_number():
    """On a hard family every update of a policy had a line of its own."""
    lanes = [
        ("a", "event", f"{n} lanes broke down (loss {x})") for n, x in ((9, "1e-05"), (7, "0.25"), (3, "nan"))
    ]
    assert told(("a", "phase", "one"), *lanes, ("a", "phase", "two"), *lanes[:2]) == [
        "a: one ",
        "a: 9 lanes broke down (loss 1e-05)",
        "a: 2 more like it, the last: 3 lanes broke down (loss nan)",
        "a: two ",
        "a: 9 lanes broke down (loss 1e-05)",
        "a: 7 lanes broke down (loss 0.25)",
    ]


def test_other_events_and_other_jobs_are_told_at_once():
    events = [
        ("a", "event", "task 1 fell"),
        ("b", "event", "task 1 fell"),
        ("a", "event", "the model diverged"),
    ]
    assert told(*events) == ["a: task 1 fell", "b: task 1 fell", "a: the model diverged"]
    ordered = told(events[0], ("a", "event", "task 2 fell"), events[1], events[2])
    assert ordered == ["a: task 1 fell", "b: task 1 fell", "a: task 2 fell", "a: the model diverged"]
