"""`admrl study`"""

from __future__ import annotations

import io
import math
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from admrl.commands.command import Command, CommandFailed, at_least
from admrl.commands.flags import in_flags
from admrl.number_text import counted
from admrl.studies.description import Study, check_gpus, located, read_study
from admrl.studies.graph import Job, device_words, expand, select

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.studies.driver import Outcome
    from admrl.studies.engine import Engine
    from admrl.studies.lease import Lease
    from admrl.studies.store import Store


@dataclass(frozen=True)
class Prepared:
    """A study, everything checked."""

    study: Study
    jobs: tuple[Job, ...]
    wanted: set[str]
    store: Store
    lease: Lease | None
    """Of the study's folder, where jobs are run."""
    engine: Engine | None
    """What starts them."""


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
    calibrate: float | None = None
    """With --dry-run: run one job of each sort for so many seconds, and print how many CPU hours all would take."""
    status: bool = False
    """Print what has been done, and what is being done; start nothing."""
    json: bool = False
    """With --status: as JSON."""
    watch: bool = False
    """Show what is being done, and when it is expected to end, until it has ended; start nothing."""
    only: tuple[str, ...] = ()
    """Start no jobs but these: names of jobs, or kinds (train, reference, cells, evaluate,
    compare)."""
    discard: tuple[str, ...] = ()
    """First throw away what these jobs have made, by name or kind, to make it anew; their logs stay."""
    num_workers: int = 2
    """Processes that run at the same time, one thread each."""
    engine: Literal["local", "ray", "slurm"] | None = None
    """What starts the jobs: processes of this machine (local), a Ray cluster, Slurm; in place of the file's."""

    def check(self) -> None:
        """See `Command`."""
        at_least(self, num_workers=1)
        if self.calibrate is not None and not self.dry_run:
            raise ValueError("calibrate: is a part of `dry_run`; give both, or leave `calibrate` out")
        if self.calibrate is not None and not 0 < self.calibrate < math.inf:
            raise ValueError(f"calibrate: expected seconds, above 0, got {self.calibrate}")
        if self.json and not self.status:
            raise ValueError("json: is a form of `status`; give both, or leave `json` out")
        if self.status + self.watch + self.dry_run + bool(self.discard) > 1:
            raise ValueError(
                "status: `status`, `watch`, `dry_run` and `discard` exclude each other; give one"
            )
        if self.watch and not sys.stdout.isatty():
            raise ValueError(
                "watch: expected a terminal, got a file or a pipe; use `status` there, or `json` with it"
            )

    def prepare(self) -> Prepared:
        """The study and its jobs; where they are run, its folder is there, locked, and free of what was discarded."""
        from admrl.studies.store import DONE, Store

        study = read_study(self.file)
        jobs = expand(study)
        wanted, unwanted = select(jobs, self.only), set[str]()
        if self.discard:
            unwanted = select(jobs, self.discard, "discard")
        store = Store(study.folder, study.name, study.silence)
        if self.status or self.watch:
            return Prepared(study, jobs, wanted, store, None, None)
        check_commands(jobs, self.file)
        try:
            check_gpus(study, self.engine or study.engine)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error
        if self.dry_run:
            return Prepared(study, jobs, wanted, store, None, None)
        if set(store.states(jobs, store.records(jobs)).values()) != {DONE}:
            check_tasks(study, jobs, self.file)
        return Prepared(study, jobs, wanted, store, *self._take(study, jobs, unwanted, store))

    def _take(
        self, study: Study, jobs: tuple[Job, ...], unwanted: set[str], store: Store
    ) -> tuple[Lease, Engine]:
        from admrl.studies.driver import check_unchanged
        from admrl.studies.engines import make_engine

        lease = store.drive()
        try:
            check_unchanged([job for job in jobs if job.name not in unwanted], store)
            name = self.engine or study.engine
            options = study.engine_options if name == study.engine else {}
            engine = make_engine(name, study.folder, study.resources, options)
            for job in jobs:
                if job.name in unwanted:
                    store.discard(job)
        except BaseException:
            lease.release()
            raise
        return lease, engine

    def execute(self, prepared: Prepared) -> None:
        """Print what was asked for, or run the jobs and say what came out."""
        from admrl.jobs.display import TextConsole
        from admrl.studies.printing import Shown, print_graph, print_status, watch

        console, study = TextConsole(), prepared.study
        shown = Shown(study.name, prepared.jobs, prepared.wanted, prepared.store)
        if self.dry_run:
            print_graph(shown, console, self._calibrated(prepared, console))
        elif self.status:
            print_status(shown, console, self.json)
        elif self.watch:
            watch(shown, console)
        else:
            self._run(prepared, console)

    def _calibrated(self, prepared: Prepared, console: Console) -> Mapping[str, float | None]:
        """CPU seconds by job; nothing, where they were not asked for."""
        from admrl.jobs.display import Display, JobReporter
        from admrl.jobs.interruption import deferred_signals
        from admrl.studies.calibration import cpu_seconds, sorts

        study = prepared.study
        if self.calibrate is None:
            return {}
        with deferred_signals(), Display(console, {study.name: len(sorts(study))}) as display:
            return cpu_seconds(study, self.calibrate, JobReporter(study.name, display.handle))

    def _run(self, prepared: Prepared, console: Console) -> None:
        from admrl.jobs.display import Display, JobReporter
        from admrl.jobs.interruption import Interrupted, deferred_signals
        from admrl.studies.driver import Driver

        assert prepared.lease is not None and prepared.engine is not None
        study, name = prepared.study, prepared.study.name
        try:
            with deferred_signals(), Display(console, {name: len(prepared.wanted)}) as display:
                outcome = Driver(
                    prepared.jobs,
                    prepared.store,
                    prepared.engine,
                    num_workers=self.num_workers,
                    max_processes=study.resources.max_processes,
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
        settings += device_words(job.words)
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
            problem = _plain(said.getvalue())
            raise ValueError(
                f"{located(file, file.read_text('utf-8-sig'), problem)}: {job.name}: {problem}"
            ) from None
        except ValueError as error:
            problem = in_flags(str(error), page)
            raise ValueError(
                f"{located(file, file.read_text('utf-8-sig'), problem)}: {job.name}: {problem}"
            ) from error


def _plain(box: str) -> str:
    """What the parser of options says, in a line: without its frame, and with the nearest option alone."""
    lines = [line.strip(" │\n") for line in box.splitlines()]
    said = " ".join(line for line in lines if line and line[0] not in "╭╰─").partition(" For full helptext")[
        0
    ]
    problem, found, near = said.partition(" Perhaps you meant: ")
    return f"{problem} (did you mean {near.split()[0]}?)" if found else problem


def check_tasks(study: Study, jobs: tuple[Job, ...], file: Path) -> None:
    """Refuse test tasks that a family does not have, and runs of another one, before any job is started.

    Raises:
        ValueError: names the family and what does not fit.
    """
    from admrl.evaluation.task_lists import choose_tasks
    from admrl.runs.config_file import read_config
    from task_families.registry import make

    runs = [(run, read_config(run)) for run in study.runs]
    for name in study.families:
        reference = next((job.words for job in jobs if job.kind == "reference" and name in job.words), None)
        words = study.evaluation if reference is None else reference
        if "--variant" in words:
            variant = words[words.index("--variant") + 1]
        else:  # without a reference, what the runs are of
            variant = str(runs[0][1].get("variant")) if runs and reference is None else ""
        try:
            family = make(name, variant=variant) if variant else make(name)
            choose_tasks(family, study.grid, study.tasks, allow_outside="--allow-outside" in words)
            for run, config in runs:
                found = config.get("family"), config.get("variant")
                if found != (family.name, family.variant):
                    raise ValueError(
                        f"runs: {run} is of {found[0]} ({found[1]}), not of {family.name} ({family.variant})"
                    )
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


def print_reports(prepared: Prepared, outcome: Outcome, console: Console) -> None:
    """Write the page of all families, once one of them is compared; print where it is, and theirs."""
    from admrl.reports.study_page import render_study
    from admrl.storage.files import make_folder, write_text

    compared = [job for job in prepared.jobs if job.kind == "compare"]
    done = [job for job in compared if outcome.states[job.name] == "done"]
    if not done:
        return
    study = prepared.study
    page = study.report / f"{study.name}.html"
    make_folder(study.report)
    write_text(page, render_study(study.name, study.report, [job.name.partition("/")[0] for job in compared]))
    for job in done:
        console.print(f"report: {job.outputs[0]}")
    console.print(f"all families: {page}")


def print_outcome(prepared: Prepared, outcome: Outcome, console: Console) -> None:
    """The reports, and what failed.

    Raises:
        CommandFailed: a job failed, or could not be started.
    """
    print_reports(prepared, outcome, console)
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
