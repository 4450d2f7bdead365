"""`admrl search-worst`"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from admrl.commands.command import Command, CommandFailed, at_least, check_own_family, check_own_search
from admrl.commands.flags import in_flags
from admrl.commands.outside import create_all, fitted_to, open_together
from admrl.commands.render import Render
from admrl.config.checks import check_config, check_reported, check_seed
from admrl.config.evaluation import EvaluationConfig
from admrl.config.search import SCALES, SEARCHES
from task_families.choices import check_name

if TYPE_CHECKING:
    from rich.console import Console

    from admrl.evaluation.evaluable_run import EvaluableRun
    from admrl.evaluation.worst_gap import RunGap
    from admrl.jobs.reporter import Reporter
    from admrl.run_kinds import AnyRun
    from admrl.search.base import Search
    from admrl.search.worst import WorstReport
    from admrl.streams import Purpose

REPORT, STATE, BATCHES = "worst.json", "search.safetensors", "batches"
IN_TRAININGS = ("screened", "population")  # searches that choose the tasks of a training


@dataclass(frozen=True)
class Subject:
    """What is judged, and the run whose model A* is made of: itself, unless a policy is named."""

    judged: AnyRun
    source: AnyRun


@dataclass(frozen=True)
class SearchWorst(Command):
    """Search the tasks on which a run, or a policy from elsewhere, fails most, and say with how much certainty.

    Every task is solved zero-shot in the run's frozen model and by a reference run, in batches; the worst distinct
    tasks are evaluated anew with fresh policies, and filmed. Writes worst.json, search.safetensors and the films.
    Interrupted, the same command goes on after the last finished batch.
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = (
        None
    )
    """Run folder. With --policy or --method: of whose model the reference A* is made."""
    search: str = "default"
    """How tasks are searched: default, gp, multistart, cem, uniform, grid, ..., see docs/search.md; or your own:
    FILE.py:NAME, MODULE:NAME or a registered name."""
    budget: int = 36
    """Tasks to evaluate, the uniform probes among them."""
    min_gain: float | None = None
    """Stop before the budget once the largest expected improvement of the gap, by the model of the search (default
    and gp have one), is less than this, in the gap's unit (see --scale). Default: the whole budget is used."""
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
    policy: tuple[str, ...] = ()
    """The policy to search in place of the run: a file of stable-baselines3 (.zip), ONNX (.onnx), TorchScript (.pt),
    a function FILE.py:NAME, or a program with its arguments in quotes. NAME=... names it; see docs/baselines.md."""
    method: tuple[str, ...] = ()
    """A method of your own in its place: FILE.py:NAME, called with the family, returns an Adapter or a function."""
    sees_psi: bool = False
    """The policy takes psi behind the observation."""
    accept_changed: bool = False
    """Open the run although the file of its family has changed since it was made."""
    config: EvaluationConfig = EvaluationConfig()

    def check(self) -> None:
        """See `Command`."""
        check_own_family(self.family)
        if self.search in IN_TRAININGS:
            raise ValueError(
                f"search: {self.search} chooses tasks in a training; expected another, e.g. default"
            )
        check_own_search("search", self.search, IN_TRAININGS)
        check_name("scale", self.scale, SCALES)
        check_seed(self.seed)
        check_config(self.config)
        if self.run is None and not (self.policy or self.method):
            raise ValueError("run: expected a run folder, or a `policy` or `method`, got none")
        if len(self.policy) + len(self.method) > 1:
            raise ValueError("policy: expected one policy or method to search, got several")
        at_least(self, budget=1, batch=1, top=1, num_probes=0)
        if self.num_probes > self.budget:
            raise ValueError(
                f"num_probes: expected at most the budget of {self.budget}, got {self.num_probes}"
            )
        check_reported(self.min_distance, self.difference or None, self.confidence)
        if self.config.num_reference_stages == 0:
            raise ValueError(
                "config.num_reference_stages: expected 1 or more, got 0: without a reference every gap compares a "
                "policy with itself"
            )

    def folder(self, subject: EvaluableRun) -> Path:
        """Where everything goes."""
        return self.out or subject.path / "worst"

    def prepare(self) -> tuple[Subject, Search]:
        """What is judged and the search; the folder exists afterwards."""
        from admrl.search.factory import make_search
        from admrl.search.own import checked_search
        from admrl.search.worst import check_min_gain
        from admrl.streams import Purpose, stream

        subject = self._subject()
        run, folder = subject.judged, self.folder(subject.judged)
        space = run.family.box
        own = None if self.search in SEARCHES else checked_search("search", self.search, space)[0]
        search = make_search(
            own or self.search,
            space,
            generator=stream(self.seed, Purpose.WORST_SEARCH),
            budget=max(1, self.budget - self.num_probes),
        )
        check_min_gain(self.min_gain, search)
        if (folder / REPORT).exists():
            raise ValueError(
                f"out: {folder} already holds a report; nothing was changed. Choose another `out`"
            )
        create_all([run])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: cannot write to {folder} ({error.strerror})") from error
        return subject, search

    def _subject(self) -> Subject:
        """What is judged, and what A* is made of.

        Raises:
            ValueError: nothing to make A* of, or impossible counts.
        """
        from admrl.evaluation.reference_pooled import check_pooled

        runs = open_together((self.run,) if self.run else (), self, self.accept_changed)
        judged, source = runs[-1], runs[0]
        config, _ = fitted_to(self.config, [source])
        judged.adapter(config)  # refuses impossible counts
        if source.model_source is not None:
            check_pooled([source.model_source], config)
        elif judged.family.optimal_policy(judged.family.first_psi[None]) is None:
            raise ValueError(
                f"run: expected one of `admrl train`, from whose model A* is made: {judged.family.name} has no "
                "optimal policy in closed form, and against itself a method has no gap"
            )
        return Subject(judged, source)

    def execute(self, prepared: tuple[Subject, Search]) -> None:
        """Search, confirm, print and save the report, film the worst tasks."""
        from admrl.jobs.display import TextConsole

        config, notes = fitted_to(self.config, [prepared[0].source])
        console = TextConsole()
        for note in notes:
            console.print(in_flags(note, type(self)))
        replace(self, config=config)._execute(prepared, console)

    def _execute(self, prepared: tuple[Subject, Search], console: Console) -> None:
        from admrl.jobs.display import Display, JobReporter
        from admrl.jobs.interruption import Interrupted, Interruptible, deferred_signals
        from admrl.streams import Purpose

        subject, search = prepared
        run = subject.judged
        name = f"search-worst {run.path.name}"
        try:
            with deferred_signals(), Display(console, {name: self._num_steps(subject)}) as display:
                reporter = Interruptible(JobReporter(name, display.handle))
                purposes = (Purpose.WORST_BATCH, Purpose.WORST_CONFIRM)
                gap, confirm = (self._gap(subject, purpose, reporter) for purpose in purposes)
                report = self._find(run, search, gap, confirm)
        except Interrupted as interrupt:
            raise Interrupted(
                f"{len(search.history)} of {self.budget} tasks are evaluated and kept in {self.folder(run)}; the "
                "same command goes on from there",
                interrupt.signum,
            ) from None
        self._save(run, report, gap, confirm, console)
        if self.film and self._is_filmed(run):
            self._film(report, run)

    def _is_filmed(self, judged: EvaluableRun) -> bool:
        """Films are of zero-shot policies in a run's model, on families with a body."""
        return judged.family.has_body and not (self.policy or self.method)

    def _num_steps(self, subject: Subject) -> int:
        """Of the progress bar: every call of a gap is a zero-shot training and a reference run."""
        from admrl.evaluation.reference_pooled import num_pooled_steps

        num_calls = math.ceil(self.num_probes / self.batch)
        num_calls += math.ceil((self.budget - self.num_probes) / self.batch)
        num_calls += 2 if self.difference else 1  # those that confirm
        folder, source = self.folder(subject.judged) / BATCHES, subject.source.model_source
        num_kept = len(list(folder.glob("*")))  # of an earlier, interrupted command
        num_steps = self.config.num_updates * (subject.judged is subject.source)
        num_steps += 0 if source is None else num_pooled_steps(source, self.config)
        return max(1, num_calls - num_kept) * max(1, num_steps)

    def _gap(self, subject: Subject, purpose: Purpose, reporter: Reporter) -> RunGap:
        from admrl.evaluation.worst_gap import RunGap

        return RunGap(
            subject.judged,
            self.config,
            self.seed,
            scale=self.scale,
            reporter=reporter,
            folder=self.folder(subject.judged) / BATCHES,
            purpose=purpose,
            source=subject.source,
        )

    def _find(self, run: EvaluableRun, search: Search, gap: RunGap, confirm: RunGap) -> WorstReport:
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
            min_gain=self.min_gain,
            generator=stream(self.seed, Purpose.WORST_PROBES),
            on_batch=lambda s: save_search(s, self.folder(run) / STATE),
        )

    def _save(
        self, run: EvaluableRun, report: WorstReport, gap: RunGap, confirm: RunGap, console: Console
    ) -> None:
        """Write worst.json and say what is in it."""
        from admrl.evaluation.worst_gap import replay_command
        from admrl.runs.versions import versions
        from admrl.storage.files import write_json

        replays = [
            replay_command(run, task.psi, self.seed, self.config.num_updates, str(self._film_file(i, run)))
            for i, task in enumerate(report.tasks, start=1)
            if self._is_filmed(run)
        ]
        data = {
            "run": str(run.path),
            "search": self.search,
            "seed": self.seed,
            "scale": self.scale,
            "stopped_by": "gain" if report.stopped else "budget",
            "evaluation": asdict(self.config),
            "versions": versions(),
            "replay": replays,
            "search_policies": gap.num_policies,
            "search_real_samples": gap.real_samples,
            "confirm_policies": confirm.num_policies,
            "confirm_real_samples": confirm.real_samples,
            "report": asdict(report),
        }
        write_json(self.folder(run) / REPORT, data)
        for line in (*gap.notes, *confirm.notes, *report.lines()):
            console.print(line)
        console.print(
            f"{gap.num_policies} zero-shot policies in the search, {confirm.num_policies} to confirm; "
            f"{gap.real_samples + confirm.real_samples:,} real samples. {run.family.box.size} task parameters. Wrote "
            f"{self.folder(run) / REPORT}"
            + "\n  ".join(["; to see the worst again:", *replays] if replays else []),
        )

    def _film_file(self, number: int, run: EvaluableRun) -> Path:
        return self.folder(run) / f"worst-{number}.gif"

    def _film(self, report: WorstReport, run: EvaluableRun) -> None:
        for number, task in enumerate(report.tasks, start=1):
            film = Render(
                family=self.family,
                accept_changed=self.accept_changed,
                run=self.run,
                psi=task.psi,
                seed=self.seed,
                num_updates=self.config.num_updates,
                out=self._film_file(number, run),
            )
            try:
                film.execute(film.prepare())
            except CommandFailed as error:  # no OpenGL without a screen; the report is written
                print(f"no film: {error}", file=sys.stderr)
                return
