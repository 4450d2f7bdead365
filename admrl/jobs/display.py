"""What the user sees while it works: one progress row per job, for jobs of this process and of others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars
from rich.table import Column
from rich.text import Text

from admrl.jobs.progress import Progress, ProgressFile
from admrl.number_text import count, number

REPORT_EVERY = 5  # steps; a row needs no more
NUMBER = r"-?\d[\d.,]*(e[-+]?\d+)?|\bnan\b|-?\binf\b"


class TextConsole(Console):
    """Standard output. Text is no markup, and its lines are broken by the terminal alone, so that a path or a command
    is whole in a file, and where it is copied. Tables keep to the width."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        if self.width < 1:  # COLUMNS=0, where nobody knows
            self.width = 80

    def print(self, *objects: Any, **options: Any) -> None:
        """See rich."""
        super().print(*objects, **{"soft_wrap": all(isinstance(x, str) for x in objects), **options})


class _ShortenedColumn(ProgressColumn):
    """A text that gives way where the terminal is narrow: rich takes the room from columns that may wrap, and this
    one is cut instead, and says so."""

    def __init__(self, text: Callable[[Task], Text]) -> None:
        self._text = text
        super().__init__(table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = self._text(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


@dataclass(frozen=True)
class _Held:
    """An event of which the first was told, and not yet those after it."""

    kind: str  # the message without its numbers
    times: int
    message: str  # the last


class Display:
    """Progress rows by job name. In a terminal they move; elsewhere every phase is a line."""

    def __init__(self, console: Console, jobs: dict[str, int]) -> None:
        """jobs: name -> number of steps in all."""
        self._console = console
        self._progress = ProgressBars(
            _ShortenedColumn(lambda task: Text(task.description)),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%"),
            _ShortenedColumn(
                lambda task: Text(f"{task.fields['phase']} {task.fields['numbers']}", style="dim")
            ),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
        )
        self._rows = {
            name: self._progress.add_task(name, total=total, phase="", numbers="", start=False)
            for name, total in jobs.items()
        }
        self._shown: dict[str, dict[str, float]] = {name: {} for name in jobs}
        self._held: dict[str, _Held] = {}
        self._num_done, self._num_steps, self._file = 0, sum(jobs.values()), ProgressFile()

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for job in list(self._held):
            self._tell_held(job)
        self._progress.stop()

    def phase(self, job: str, name: str) -> None:
        """The job begins a phase."""
        self._tell_held(job)
        self._progress.start_task(self._rows[job])
        self._progress.update(self._rows[job], phase=name)
        self._note(name)
        if not self._console.is_terminal:
            self._console.print(f"{job}: {name} {_numbers(self._shown[job])}")

    def advance(self, job: str, num_steps: int, metrics: dict[str, float]) -> None:
        """The job did some steps."""
        self._progress.start_task(self._rows[job])
        self._shown[job] |= metrics
        self._progress.update(self._rows[job], advance=num_steps, numbers=_numbers(self._shown[job]))
        self._num_done += num_steps
        self._note(str(self._progress.tasks[self._rows[job]].fields["phase"]))

    def event(self, job: str, message: str) -> None:
        """The job has something to say. What comes again and again, but for its numbers, is told at first, and in the
        end how often it came and how the last one was."""
        held, kind = self._held.get(job), re.sub(NUMBER, "0", message)
        if held is not None and held.kind == kind:
            self._held[job] = _Held(kind, held.times + 1, message)
            return
        self._tell_held(job)
        self._held[job] = _Held(kind, 0, message)
        self._console.print(f"{job}: {message}", style="yellow")

    def _tell_held(self, job: str) -> None:
        held = self._held.pop(job, None)
        if held is not None and held.times:
            more = f"{held.times} more like it, the last: " if held.times > 1 else ""
            self._console.print(f"{job}: {more}{held.message}", style="yellow")

    def _note(self, phase: str) -> None:
        """How far all jobs together are."""
        drawn = [shown["real_samples"] for shown in self._shown.values() if "real_samples" in shown]
        self._file.note(Progress(phase, self._num_done, self._num_steps, sum(drawn) if drawn else None))

    def handle(self, message: tuple[str, str, tuple[Any, ...]]) -> None:
        """A message of a `JobReporter` in another process."""
        job, kind, arguments = message
        getattr(self, kind)(job, *arguments)


class JobReporter:
    """A `Reporter` for one job; `send` takes (job, kind, arguments) to `Display.handle`, here or over a queue."""

    def __init__(self, job: str, send: Any) -> None:
        self._job, self._send = job, send
        self._pending = 0
        self._metrics: dict[str, float] = {}

    def phase(self, name: str) -> None:
        """See `Reporter.phase`."""
        self._flush()
        self._send((self._job, "phase", (name,)))

    def advance(self, **metrics: float) -> None:
        """See `Reporter.advance`."""
        self._metrics |= metrics
        self._pending += 1
        if self._pending >= REPORT_EVERY:
            self._flush()

    def event(self, message: str) -> None:
        """See `Reporter.event`."""
        self._send((self._job, "event", (message,)))

    def _flush(self) -> None:
        if self._pending:
            self._send((self._job, "advance", (self._pending, dict(self._metrics))))
            self._pending = 0


def _numbers(metrics: dict[str, float]) -> str:
    """Return in the model and in the simulator, samples used."""
    parts = []
    if "return_model" in metrics:
        parts.append(f"model {number(metrics['return_model'])}")
    if "return_real_noisy" in metrics:
        parts.append(f"real {number(metrics['return_real_noisy'])}")
    if metrics.get("real_samples"):
        parts.append(f"{count(metrics['real_samples'])} real")
    if metrics.get("virtual_samples"):
        parts.append(f"{count(metrics['virtual_samples'])} virtual samples")
    return "| " + ", ".join(parts) if parts else ""
