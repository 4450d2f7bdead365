"""`admrl search-worst`"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, CommandFailed, at_least, check_own_family, check_own_search
from admrl.commands.render import Render
from admrl.config.checks import check_config, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.search import SCALES, SEARCHES
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.evaluation.worst_gap import RunGap
    from admrl.jobs.reporter import Reporter
    from admrl.search.base import Search
    from admrl.search.worst import WorstReport
    from admrl.streams import Purpose
    from admrl.training.run import Run

REPORT, STATE, BATCHES = "worst.json", "search.safetensors", "batches"


@dataclass(frozen=True)
class SearchWorst(Command):
    """Search the tasks on which a run fails most, and say with how much certainty.

    Every task is solved zero-shot in the run's frozen model and by a reference run, in batches; the worst distinct
    tasks are evaluated anew with fresh policies, and filmed. Writes worst.json, search.safetensors and the films.
    Interrupted, the same command goes on after the last finished batch.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    search: str = "default"
    """How tasks are searched: default, gp, multistart, cem, uniform, grid, ..., see docs/search.md; or your own:
    FILE.py:NAME, MODULE:NAME or a registered name."""
    budget: int = 36
    """Tasks to evaluate, the uniform probes among them."""
    batch: int = 6
    """Tasks solved together."""
    num_probes: int = 12
    """Uniform tasks evaluated first; they bound the mass of the tasks that are worse."""
    top: int = 3
    """Worst distinct tasks to report."""
    min_distance: float = 0.1
    """Between two of them, in unit coordinates per root of the number of task parameters."""
    difference: float = 0.1
    """Half-step of the differences that give the gradient at the worst tasks, in unit coordinates; 0: no gradient."""
    scale: str = "absolute"
    """The gap: absolute (A* - A), or ratio (A* - A) / |A*|."""
    confidence: float = 0.95
    """Of intervals and bounds."""
    seed: int = 0
    """Seed of the search, of its policies and episodes."""
    film: bool = True
    """Film the worst tasks, if the family has a body."""
    out: Path | None = None
    """Folder to write to. Default: RUN/worst."""
    family: str | None = None
    """The family of the run, where it is not one of this package: FILE.py:NAME, MODULE:NAME or a registered name."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""
    config: EvaluationConfig = EvaluationConfig()

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        check_own_search("search", self.search)
        check_name("scale", self.scale, SCALES)
        check_seed(self.seed)
        check_config(self.config)
        at_least(self, budget=1, batch=1, top=1, num_probes=0)
        if self.num_probes > self.budget:
            raise ValueError(
                f"num_probes: expected at most the budget of {self.budget}, got {self.num_probes}"
            )
        if not math.isfinite(self.min_distance):
            raise ValueError(f"min_distance: expected a finite number, got {self.min_distance:g}")
        if not 0 <= self.difference <= 1:
            raise ValueError(f"difference: expected 0 (no gradient) to 1, got {self.difference:g}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, got {self.confidence:g}")
        if self.config.num_reference_stages == 0:
            raise ValueError(
                "config.num_reference_stages: expected 1 or more, got 0: without a reference every gap compares a "
                "policy with itself"
            )
        if self.search == "screened":
            raise ValueError("search: screened chooses tasks in a training; expected another, e.g. default")

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.out or self.run / "worst"

    def prepare(self) -> tuple[Run, Search]:
        """The run and the search; the folder exists afterwards."""
        from admrl.evaluation.reference_pooled import check_pooled
        from admrl.search.factory import make_search
        from admrl.search.own import checked_search
        from admrl.streams import Purpose, stream
        from admrl.training.run import load_run

        run = load_run(self.run, family=self.family, accept_changed=self.accept_changed)
        run.adapter(self.config)  # refuses impossible counts
        check_pooled([run], self.config)
        space = run.family.box
        own = None if self.search in SEARCHES else checked_search("search", self.search, space)[0]
        search = make_search(
            own or self.search,
            space,
            generator=stream(self.seed, Purpose.WORST_SEARCH),
            budget=max(1, self.budget - self.num_probes),
        )
        if (self.folder / REPORT).exists():
            raise ValueError(
                f"out: {self.folder} already holds a report; nothing was changed. Choose another `out`"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.folder} ({error.strerror})") from error
        return run, search

    def execute(self, prepared: tuple[Run, Search]) -> None:
        """Search, confirm, print and save the report, film the worst tasks."""
        from admrl.jobs.display import Display, JobReporter, TextConsole
        from admrl.jobs.interruption import Interrupted, Interruptible, deferred_signals
        from admrl.streams import Purpose

        (run, search), console = prepared, TextConsole()
        name = f"search-worst {run.path.name}"
        try:
            with deferred_signals(), Display(console, {name: self._num_steps(run)}) as display:
                reporter = Interruptible(JobReporter(name, display.handle))
                purposes = (Purpose.WORST_BATCH, Purpose.WORST_CONFIRM)
                gap, confirm = (self._gap(run, purpose, reporter) for purpose in purposes)
                report = self._find(run, search, gap, confirm)
        except Interrupted as interrupt:
            raise Interrupted(
                f"{len(search.history)} of {self.budget} tasks are evaluated and kept in {self.folder}; the same "
                "command goes on from there",
                interrupt.signum,
            ) from None
        self._save(run, report, gap, confirm, console)
        if self.film and run.family.has_body:
            self._film(report)

    def _num_steps(self, run: Run) -> int:
        """Of the progress bar: every call of a gap is a zero-shot training and a reference run."""
        from admrl.evaluation.reference_pooled import num_pooled_steps

        num_calls = math.ceil(self.num_probes / self.batch)
        num_calls += math.ceil((self.budget - self.num_probes) / self.batch)
        num_calls += 2 if self.difference else 1  # those that confirm
        num_kept = len(list((self.folder / BATCHES).glob("*")))  # of an earlier, interrupted command
        return max(1, num_calls - num_kept) * (self.config.num_updates + num_pooled_steps(run, self.config))

    def _gap(self, run: Run, purpose: Purpose, reporter: Reporter) -> RunGap:
        from admrl.evaluation.worst_gap import RunGap

        return RunGap(
            run,
            self.config,
            self.seed,
            scale=self.scale,
            reporter=reporter,
            folder=self.folder / BATCHES,
            purpose=purpose,
        )

    def _find(self, run: Run, search: Search, gap: RunGap, confirm: RunGap) -> WorstReport:
        from admrl.search.storage import save_search
        from admrl.search.worst import find_worst
        from admrl.streams import Purpose, stream

        return find_worst(
            gap,
            run.family.box,
            search,
            budget=self.budget,
            batch=self.batch,
            num_probes=self.num_probes,
            top=self.top,
            min_distance=self.min_distance,
            confirm=confirm,
            difference=self.difference or None,
            confidence=self.confidence,
            generator=stream(self.seed, Purpose.WORST_PROBES),
            on_batch=lambda s: save_search(s, self.folder / STATE),
        )

    def _save(self, run: Run, report: WorstReport, gap: RunGap, confirm: RunGap, console: Console) -> None:
        """Write worst.json and say what is in it."""
        from admrl.evaluation.worst_gap import replay_command
        from admrl.runs.versions import versions
        from admrl.storage.files import write_json

        replays = [
            replay_command(run, task.psi, self.seed, self.config.num_updates, str(self._film_file(i)))
            for i, task in enumerate(report.tasks, start=1)
            if run.family.has_body
        ]
        data = {
            "run": str(run.path),
            "search": self.search,
            "seed": self.seed,
            "scale": self.scale,
            "evaluation": asdict(self.config),
            "versions": versions(),
            "replay": replays,
            "search_policies": gap.num_policies,
            "search_real_samples": gap.real_samples,
            "confirm_policies": confirm.num_policies,
            "confirm_real_samples": confirm.real_samples,
            "report": asdict(report),
        }
        write_json(self.folder / REPORT, data)
        for line in (*gap.notes, *confirm.notes, *report.lines()):
            console.print(line)
        console.print(
            f"{gap.num_policies} zero-shot policies in the search, {confirm.num_policies} to confirm; "
            f"{gap.real_samples + confirm.real_samples:,} real samples. {run.family.box.size} task parameters. Wrote "
            f"{self.folder / REPORT}"
            + "\n  ".join(["; to see the worst again:", *replays] if replays else []),
        )

    def _film_file(self, number: int) -> Path:
        return self.folder / f"worst-{number}.gif"

    def _film(self, report: WorstReport) -> None:
        for number, task in enumerate(report.tasks, start=1):
            film = Render(
                family=self.family,
                accept_changed=self.accept_changed,
                run=self.run,
                psi=task.psi,
                seed=self.seed,
                num_updates=self.config.num_updates,
                out=self._film_file(number),
            )
            try:
                film.execute(film.prepare())
            except CommandFailed as error:  # no OpenGL without a screen; the report is written
                print(f"no film: {error}", file=sys.stderr)
                return
