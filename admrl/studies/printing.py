"""What is said of a study on a terminal: its jobs, how far each is, and what runs at the moment."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from admrl.number_text import count, counted
from admrl.storage.files import json_text
from admrl.studies.graph import Job, counted_kinds
from admrl.studies.status import clock, statuses, summary
from admrl.studies.store import FAILED, RUNNING, Store

WIDTH = 80  # of what --dry-run prints
WATCHED_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Shown:
    """A study, and which of its jobs somebody wants to know about."""

    name: str
    jobs: tuple[Job, ...]
    """All of them."""
    wanted: set[str]
    store: Store


def print_graph(study: Shown, console: Console, seconds: Mapping[str, float | None]) -> None:
    """Every job that is wanted, what it needs and its command, in 80 columns; and how long they take, if known."""
    jobs = [job for job in study.jobs if job.name in study.wanted]
    folder = study.store.folder
    console.print(f"{study.name}: {counted(len(jobs), 'job')} in {folder} ({counted_kinds(jobs)})")
    for job in jobs:
        known = seconds.get(job.name)
        console.print(
            f"\n{job.name} ({job.kind}{'' if known is None else f', about {known / 60:.1f} CPU minutes'})"
        )
        if job.needs:
            console.print(_wrapped(f"needs {', '.join(job.needs)}", 2))
        console.print(_wrapped(job.text, 2))
    if seconds:
        known = sum(seconds.get(job.name) or 0.0 for job in jobs)
        console.print(f"\nabout {known / 3600:.2g} CPU hours, without reports")
        unknown = [job.name for job in jobs if job.name in seconds and seconds[job.name] is None]
        if unknown:
            console.print(_wrapped(f"and what was not measured (too short): {', '.join(unknown)}", 2))


def _wrapped(text: str, indent: int) -> str:
    """Lines of 80 columns; a path that is longer stays whole."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_status(study: Shown, console: Console, as_json: bool) -> None:
    """The state of every job that is wanted."""
    store = study.store
    rows = statuses(study.jobs, store, study.wanted)
    strangers = store.strangers(study.jobs)
    if as_json:
        said = {
            "study": study.name,
            "folder": str(store.folder),
            "jobs": [asdict(row) for row in rows],
            "not_in_file": strangers,
        }
        print(json_text(said))
        return
    console.print(f"{study.name} in {store.folder}: {summary(rows)}")
    width = max(len(row.job) for row in rows)
    lines = [f"{'job':<{width}}  {'state':<12}{'attempt':>7}{'seconds':>10}"]
    for row in rows:
        tries, seconds = row.attempt or "", "" if row.seconds is None else row.seconds
        lines.append(f"{row.job:<{width}}  {row.state:<12}{tries:>7}{seconds:>10}".rstrip())
    console.print("\n".join(lines))
    if strangers:
        console.print(f"no longer in the file, and left as they are: {', '.join(strangers)}")


def watch(study: Shown, console: Console) -> None:
    """Show how far it is, until nobody drives the study any more, or Ctrl-C."""
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                is_driven = study.store.is_driven
                live.update(_running_table(study), refresh=True)
                if not is_driven:
                    break
                time.sleep(WATCHED_EVERY)
    except KeyboardInterrupt:  # the study goes on
        return
    console.print("nobody drives this study at the moment")


def _running_table(study: Shown) -> Group:
    """What runs, and how many jobs are in which state."""
    rows = statuses(study.jobs, study.store, study.wanted)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "host"):
        table.add_column(name, overflow="fold")
    table.add_column("phase", no_wrap=True, overflow="ellipsis")
    for name in ("done", "samples", "minutes", "ends"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        if row.state == RUNNING:
            table.add_row(
                Text(row.job),
                Text(row.host or "(starting)"),
                Text(row.phase or ""),
                "" if row.share is None else f"{100 * row.share:.0f} %",
                "" if row.real_samples is None else count(row.real_samples),
                "" if row.seconds is None else f"{row.seconds / 60:.1f}",
                "" if row.ends is None else clock(row.ends),
            )
    failed = [
        Text(f"failed: {row.job}, see {row.log}", style="yellow") for row in rows if row.state == FAILED
    ]
    return Group(Text(f"{study.name}: {summary(rows)}"), table, *failed)
