"""`admrl study`"""

from __future__ import annotations

import io
import re
import shlex
import textwrap
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, CommandFailed, at_least
from admrl.commands.flags import in_flags
from admrl.number_text import counted
from admrl.studies.description import Study, read_study
from admrl.studies.graph import Job, counted_kinds, expand, select

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.studies.driver import Outcome
    from admrl.studies.lease import Lease
    from admrl.studies.store import Store

WIDTH = 80  # of what --dry-run prints


@dataclass(frozen=True)
class Prepared:
    """A study, everything checked."""

    study: Study
    jobs: tuple[Job, ...]
    wanted: set[str]
    store: Store
    lease: Lease | None
    """Of the study's folder, where jobs are run."""


@dataclass(frozen=True)
class RunStudy(Command):
    """Train, evaluate and compare everything that a study file names, and write one report for each family.

    Run it again, and what is done stays done; what was interrupted or killed goes on; what is new in the file is
    added. Settings that have changed are refused. See docs/studies.md.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """What is trained, on what it is tested, where everything goes: a TOML file, see docs/studies.md."""
    dry_run: bool = False
    """Print the jobs, what they need and their commands; start none."""
    status: bool = False
    """Print what has been done, and what is being done; start nothing."""
    json: bool = False
    """With --status: as JSON."""
    only: tuple[str, ...] = ()
    """Start no jobs but these: names of jobs, or kinds (train, reference, evaluate, compare)."""
    discard: tuple[str, ...] = ()
    """First throw away what these jobs have made, by name or kind, to make it anew; their logs stay."""
    num_workers: int = 2
    """Processes, one thread each."""

    def check(self) -> None:
        """See `Command`."""
        at_least(self, num_workers=1)
        if self.json and not self.status:
            raise ValueError("json: is a form of `status`; give both, or leave `json` out")
        if self.status + self.dry_run + bool(self.discard) > 1:
            raise ValueError("status: `status`, `dry_run` and `discard` exclude each other; give one")

    def prepare(self) -> Prepared:
        """The study and its jobs; where they are run, its folder is there, locked, and free of what was discarded."""
        from admrl.studies.store import DONE, Store

        study = read_study(self.file)
        jobs = expand(study)
        wanted, unwanted = select(jobs, self.only), set[str]()
        if self.discard:
            unwanted = select(jobs, self.discard, "discard")
        store = Store(study.folder, study.name)
        if self.status:
            return Prepared(study, jobs, wanted, store, None)
        check_commands(jobs, self.file)
        if self.dry_run:
            return Prepared(study, jobs, wanted, store, None)
        if set(store.states(jobs, store.records(jobs)).values()) != {DONE}:
            check_tasks(study, jobs, self.file)
        return Prepared(study, jobs, wanted, store, self._take(jobs, unwanted, store))

    def _take(self, jobs: tuple[Job, ...], unwanted: set[str], store: Store) -> Lease:
        from admrl.studies.driver import check_unchanged

        lease = store.drive()
        try:
            check_unchanged([job for job in jobs if job.name not in unwanted], store)
            for job in jobs:
                if job.name in unwanted:
                    store.discard(job)
        except BaseException:
            lease.release()
            raise
        return lease

    def execute(self, prepared: Prepared) -> None:
        """Print what was asked for, or run the jobs and say what came out."""
        from admrl.jobs.display import TextConsole

        console = TextConsole()
        if self.dry_run:
            print_graph(prepared, console)
        elif self.status:
            print_status(prepared, console, self.json)
        else:
            self._run(prepared, console)

    def _run(self, prepared: Prepared, console: Console) -> None:
        from admrl.jobs.display import Display, JobReporter
        from admrl.jobs.interruption import Interrupted, deferred_signals
        from admrl.studies.driver import Driver
        from admrl.studies.local import LocalEngine

        assert prepared.lease is not None
        name = prepared.study.name
        try:
            with deferred_signals(), Display(console, {name: len(prepared.wanted)}) as display:
                outcome = Driver(
                    prepared.jobs,
                    prepared.store,
                    LocalEngine(),
                    num_workers=self.num_workers,
                    wanted=prepared.wanted,
                    reporter=JobReporter(name, display.handle),
                    is_finished=is_finished,
                ).run()
        except Interrupted as interrupt:
            again = shlex.join(["admrl", "study", str(self.file)])
            raise Interrupted(f"what was running is saved; go on with: {again}", interrupt.signum) from None
        finally:
            prepared.lease.release()
        print_outcome(prepared, outcome, console)


def check_commands(jobs: tuple[Job, ...], file: Path) -> None:
    """Refuse options that a command of a study does not have, or values that it does not take.

    Raises:
        ValueError: names the job, and says what its command says.
    """
    from admrl.commands.compare import Compare
    from admrl.commands.evaluate import Evaluate
    from admrl.commands.reference import ReferenceReturns
    from admrl.commands.train import Train
    from admrl.commands.train_baseline import TrainBaseline

    pages: dict[str, type[Command]] = {
        "train": Train,
        "train-baseline": TrainBaseline,
        "reference": ReferenceReturns,
        "evaluate": Evaluate,
        "compare": Compare,
    }
    checked = set()
    for job in jobs:
        page, options = pages[job.words[1]], list(job.words[2:])
        settings = tuple(
            re.sub(r"^\d+$", "", word) for word in job.settings
        )  # seeds do not make another command
        if settings in checked:
            continue
        checked.add(settings)
        if page is ReferenceReturns:  # its folder is made when it begins
            options = options[: options.index("--out")]
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                default = page.defaults(options)
                page = page if default is None else type(default)
                given = {} if default is None else {"default": default}
                tyro.cli(page, args=options, prog=f"admrl {job.words[1]}", **given).check()  # type: ignore[call-overload]
        except SystemExit:
            raise ValueError(f"{file}: {job.name}: {_plain(said.getvalue())}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {job.name}: {in_flags(str(error), page)}") from error


def _plain(box: str) -> str:
    """What the parser of options says, in a line: without its frame, and with the nearest option alone."""
    lines = [line.strip(" │\n") for line in box.splitlines()]
    said = " ".join(line for line in lines if line and line[0] not in "╭╰─").partition(" For full helptext")[
        0
    ]
    problem, found, near = said.partition(" Perhaps you meant: ")
    return f"{problem} (did you mean {near.split()[0]}?)" if found else problem


def check_tasks(study: Study, jobs: tuple[Job, ...], file: Path) -> None:
    """Refuse test tasks that a family does not have, before any job is started.

    Raises:
        ValueError: names the family and what does not fit.
    """
    from admrl.evaluation.task_lists import choose_tasks
    from task_families.registry import make

    for job in jobs:
        if job.kind == "reference":
            name = job.words[job.words.index("--family") + 1]
            outside = "--allow-outside" in job.words
            try:
                choose_tasks(make(name), study.grid, study.tasks, allow_outside=outside)
            except ValueError as error:
                raise ValueError(f"{file}: {name}: {error}") from error


def is_finished(job: Job) -> bool:
    """Whether the run of a training has nothing left to train."""
    from admrl.run_kinds import load_any_run
    from admrl.runs.families import NamedFamily
    from task_families.registry import names

    family = job.words[job.words.index("--family") + 1]
    try:
        run = load_any_run(job.outputs[0], NamedFamily(None if family in names() else family))
    except ValueError:
        return False
    return run.finished


def print_graph(prepared: Prepared, console: Console) -> None:
    """Every job that is wanted, what it needs and its command, in 80 columns."""
    jobs = [job for job in prepared.jobs if job.name in prepared.wanted]
    folder = prepared.store.folder
    console.print(f"{prepared.study.name}: {counted(len(jobs), 'job')} in {folder} ({counted_kinds(jobs)})")
    for job in jobs:
        console.print(f"\n{job.name} ({job.kind})")
        if job.needs:
            console.print(_wrapped(f"needs {', '.join(job.needs)}", 2))
        console.print(_wrapped(job.text, 2))


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


def print_status(prepared: Prepared, console: Console, as_json: bool) -> None:
    """The state of every job that is wanted."""
    from admrl.storage.files import json_text
    from admrl.studies.store import LOST, RUNNING, WAITING

    store, jobs = prepared.store, prepared.jobs
    records = store.records(jobs)
    states = store.states(jobs, records)
    if store.is_driven:
        states = {name: RUNNING if state == LOST else state for name, state in states.items()}
    rows = [
        {
            "job": job.name,
            "kind": job.kind,
            "state": states[job.name],
            "attempt": records[job.name].attempt,
            "seconds": None if states[job.name] in (LOST, WAITING) else round(records[job.name].seconds, 1),
            "log": str(store.log(job.name, records[job.name].attempt)) if records[job.name].attempt else None,
        }
        for job in jobs
        if job.name in prepared.wanted
    ]
    strangers = store.strangers(jobs)
    if as_json:
        summary = {
            "study": prepared.study.name,
            "folder": str(store.folder),
            "jobs": rows,
            "not_in_file": strangers,
        }
        print(json_text(summary))
        return
    number = Counter(row["state"] for row in rows)
    counts = ", ".join(f"{n} {state}" for state, n in number.most_common())
    console.print(f"{prepared.study.name} in {store.folder}: {counted(len(rows), 'job')}: {counts}")
    width = max(len(str(row["job"])) for row in rows)
    console.print(f"{'job':<{width}}  {'state':<12}{'attempt':>7}{'seconds':>10}")
    for row in rows:
        tries, seconds = row["attempt"] or "", "" if row["seconds"] is None else row["seconds"]
        console.print(f"{row['job']:<{width}}  {row['state']:<12}{tries:>7}{seconds:>10}".rstrip())
    if strangers:
        console.print(f"no longer in the file, and left as they are: {', '.join(strangers)}")


def print_outcome(prepared: Prepared, outcome: Outcome, console: Console) -> None:
    """The reports, and what failed.

    Raises:
        CommandFailed: a job failed, or could not be started.
    """
    for job in prepared.jobs:
        if job.kind == "compare" and outcome.states[job.name] == "done":
            console.print(f"report: {job.outputs[0]}")
    for failure in outcome.failures:
        console.print(f"\n{failure.job} failed; the end of {failure.log}:", style="yellow")
        console.print(textwrap.indent("\n".join(failure.end.splitlines()[-10:]), "  "))
    left = [name for name in outcome.states if name in prepared.wanted and outcome.states[name] != "done"]
    if not left:
        return
    failed = {failure.job for failure in outcome.failures}
    waiting = [name for name in left if name not in failed]
    say = [f"{counted(len(failed), 'job')} failed"] if failed else []
    if waiting:
        say.append(f"{counted(len(waiting), 'job')} could not start, as what they need is not done")
    raise CommandFailed(
        f"{'; '.join(say)}; what is done stays done, and the same command tries the rest again"
    )
