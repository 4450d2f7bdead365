"""The jobs of a study: command lines, what they write, and which jobs they need.

train (family x method x seed) -> cells (its evaluation, but for the tables); cells of all runs of a family, reference
(family) -> evaluate (family: the tables) -> compare (family). Runs that are there already begin with their cells.
Without a reference (num_reference_stages 0), A* is the optimal policy's, if it is known.

    FOLDER/runs/FAMILY/METHOD-SEED      run folders
    FOLDER/reference/FAMILY.json        A*
    REPORT/FAMILY/report.html           and its tables and figures
    FOLDER/jobs/JOB/                    what is known of a job (`admrl.studies.store`)
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from admrl.config.evaluation import EvaluationConfig
from admrl.config.search import SEARCHES
from admrl.studies.description import Method, Study
from task_families.choices import check_name, file_digest
from task_families.registry import names

KINDS = ("train", "reference", "cells", "evaluate", "compare")
PROGRAM = "admrl"
DEVICE = "--device"
"""Where a command computes is no setting: a study whose machine has another one goes on with what it has."""
OUTSIDE = ("--policy", "--method", "--sees-psi")
"""Options of an evaluation that name what is evaluated beside the runs."""
OF_TRAININGS = {"--methods": ("slbo",), "--seeds": ("0",)}
"""Options of `admrl reference` that say which trainings there are, and their defaults."""


@dataclass(frozen=True)
class Job:
    """A command line that can be repeated: done already, it changes nothing; interrupted, it goes on."""

    name: str
    kind: str
    settings: tuple[str, ...]
    """What its result depends on, beside the results of the jobs that it needs; no folder is in it."""
    words: tuple[str, ...]
    """The command line; the first is a module that is run as `python -m` runs it."""
    outputs: tuple[Path, ...]
    """Files and folders that are there when it is done."""
    work: tuple[Path, ...] = ()
    """What else it writes, and needs no longer when it is done."""
    needs: tuple[str, ...] = ()
    """Names of jobs that are done before it begins."""
    resume: tuple[str, ...] | None = None
    """The command line that goes on, once `begun` exists; None: the same as the first."""
    begun: Path | None = None
    max_workers: int | None = None
    """Processes that it can use, by its option --num-workers; None: it is one process, and has no such option."""
    trainings: tuple[str, ...] = ()
    """Parts of its result that more may be added to later, which are no settings."""

    def command(self, num_workers: int) -> tuple[str, ...]:
        """The command line that does what is left to do."""
        words = self.words
        if self.resume is not None and self.begun is not None and self.begun.exists():
            words = self.resume
        return words if self.max_workers is None else (*words, "--num-workers", str(num_workers))

    @property
    def text(self) -> str:
        """The command line as one types it."""
        return shlex.join(self.words)


def expand(study: Study) -> tuple[Job, ...]:
    """All jobs; each comes after those that it needs.

    Raises:
        ValueError: the file of test tasks cannot be read, or two families have one name.
    """
    tested = _test_settings(study)
    jobs = []
    for family in study.families:
        trained = [_train(study, family, method, seed) for method in study.methods for seed in study.seeds]
        references = [_reference(study, family, tested)] if study.has_reference else []
        cells = [_cells(study, family, tested, job.outputs[0], job.name, (job.name,)) for job in trained]
        cells += [_cells(study, family, tested, run, f"{_short(family)}/{run.name}") for run in study.runs]
        evaluate = _evaluate(study, family, tested, cells, references)
        jobs += [*trained, *references, *cells, evaluate, _compare(study, family, evaluate)]
    if twice := [name for name, number in Counter(job.name for job in jobs).items() if number > 1]:
        family = twice[0].partition("/")[0]
        raise ValueError(
            f"families: two are called {family}, as are their folders; give each a study of its own"
        )
    return tuple(jobs)


def select(jobs: Sequence[Job], wanted: Sequence[str], argument: str = "only") -> set[str]:
    """Names of the jobs that are named, by name or by kind; all, if nothing is.

    Raises:
        ValueError: there is none of that name; says which is nearest.
    """
    found = set()
    for word in wanted:
        if word in KINDS:
            found |= {job.name for job in jobs if job.kind == word}
            continue
        if word not in {job.name for job in jobs}:
            choices = tuple(job.name for job in jobs)
            shown = (*KINDS, *choices[:3], "...") if len(choices) > 20 else (*KINDS, *choices)
            try:
                check_name(argument, word, (*KINDS, *choices))
            except ValueError as error:
                hint = re.search(r" \(did you mean .*\)$", str(error))
                raise ValueError(
                    f"{argument}: got {word!r}, expected kinds or names of jobs: {', '.join(shown)}"
                    f"{hint[0] if hint else ''}"
                ) from None
        found.add(word)
    return found if wanted else {job.name for job in jobs}


def counted_kinds(jobs: Iterable[Job]) -> str:
    """How many there are of each kind: 4 train, 1 reference."""
    number = Counter(job.kind for job in jobs)
    return ", ".join(f"{number[kind]} {kind}" for kind in KINDS if number[kind])


def _train(study: Study, family: str, method: Method, seed: int) -> Job:
    name = _run_name(family, method, seed)
    run = study.folder / "runs" / name
    command = ("train-baseline", method.word) if method.is_baseline else ("train",)
    selector = () if method.is_baseline else ("--selector", method.word)
    options, device = _without(method.options, (DEVICE,)), device_words(method.options)
    settings = (
        *command, "--family", family, *selector, "--seed", str(seed), "--preset", study.preset, *options
    )  # fmt: skip
    named = selector if method.word not in SEARCHES else ()
    return Job(
        name,
        "train",
        settings,
        (PROGRAM, *settings, *device, "--out", str(run)),
        (run,),
        resume=(PROGRAM, command[0], "--resume", str(run), *_own(family), *named, *device),
        begun=run / "config.json",
    )


def _reference(study: Study, family: str, tested: tuple[str, ...]) -> Job:
    file = study.folder / "reference" / f"{_short(family)}.json"
    settings = ("reference", "--family", family, *study.test_words, *_without(study.reference, OF_TRAININGS))
    trainings = _trainings(study.reference)
    return Job(
        f"{_short(family)}/reference",
        "reference",
        (*settings, *tested),
        (PROGRAM, "reference", "--family", family, *study.test_words, *study.reference, "--out", str(file)),
        (file,),
        work=(file.with_suffix(".work"),),
        max_workers=len(trainings),
        trainings=trainings,
    )


def _cells(
    study: Study, family: str, tested: tuple[str, ...], run: Path, name: str, needs: tuple[str, ...] = ()
) -> Job:
    """What the evaluation of one run solves; it stays in the run's folder, where `_evaluate` finds it."""
    settings = (
        "evaluate", *study.test_words, *_own(family), *_without(study.evaluation, (DEVICE, *OUTSIDE)), "--only-cells"
    )  # fmt: skip
    asked = "".join(_values(study.evaluation, "--config.num-policy-seeds"))
    return Job(
        f"{name}-cells",
        "cells",
        (*settings, *tested),
        (PROGRAM, settings[0], str(run), *settings[1:], *device_words(study.evaluation)),
        (),
        needs=needs,
        max_workers=int(asked) if asked.isdecimal() else EvaluationConfig().num_policy_seeds,
    )


def _evaluate(
    study: Study, family: str, tested: tuple[str, ...], cells: Sequence[Job], references: Sequence[Job]
) -> Job:
    """references: one, or none."""
    settings = (*study.test_words, *_own(family), *_without(study.evaluation, (DEVICE,)))
    device = device_words(study.evaluation)
    folders = [run for run, _ in _runs(study, family)]
    return Job(
        f"{_short(family)}/evaluate",
        "evaluate",
        ("evaluate", *settings, *tested),
        (
            PROGRAM, "evaluate", *map(str, folders), *settings, *device,
            *(word for job in references for word in ("--reference", str(job.outputs[0]))), "--name", study.name,
        ),
        tuple(folder / "gaps" / f"{study.name}.json" for folder in folders),
        needs=tuple(job.name for job in (*cells, *references)),
        max_workers=1,
    )  # fmt: skip


def _compare(study: Study, family: str, evaluate: Job) -> Job:
    folder, runs = study.report / _short(family), _runs(study, family)
    return Job(
        f"{_short(family)}/compare",
        "compare",
        ("compare",),
        (
            PROGRAM,
            "compare",
            *(str(run) for run, _ in runs),
            "--names",
            *(name for _, name in runs),
            "--tasks",
            study.name,
            "--out",
            str(folder),
        ),
        (folder / "report.html",),
        needs=(evaluate.name,),
    )


def _runs(study: Study, family: str) -> list[tuple[Path, str]]:
    """Folders of all runs of a family, and the names of their methods: those that are trained, and those that are
    there."""
    trained = [
        (study.folder / "runs" / _run_name(family, method, seed), method.name)
        for method in study.methods
        for seed in study.seeds
    ]
    return [*trained, *((run, re.sub(r"-\d+$", "", run.name)) for run in study.runs)]


def _own(family: str) -> tuple[str, ...]:
    """The option that names a family which is not of this package."""
    return () if family in names() else ("--family", family)


def _run_name(family: str, method: Method, seed: int) -> str:
    return f"{_short(family)}/{method.name}-{seed}"


def _short(family: str) -> str:
    """A family's name as a part of a path: tasks/mine.py:Cart -> mine-Cart."""
    where, _, name = family.rpartition(":")
    return "-".join(filter(None, (PurePath(where).stem, name)))


def device_words(options: Sequence[str]) -> tuple[str, ...]:
    """The option that says where a command computes, if it is among these."""
    return (DEVICE, *_values(options, DEVICE)) if DEVICE in options else ()


def _test_settings(study: Study) -> tuple[str, ...]:
    """What a result depends on and its command line does not say: the content of the file of test tasks."""
    file = Path(study.tasks)
    if study.grid is not None or not (file.suffix or file.is_file()):
        return ()
    try:
        return (f"sha256 {file_digest(file)}",)
    except OSError as error:
        raise ValueError(f"tasks: {file} cannot be read ({error.strerror})") from error


def _trainings(options: Sequence[str]) -> tuple[str, ...]:
    """Of a reference: one of each method with each seed, as `admrl reference` has them."""
    methods, seeds = (_values(options, flag) or default for flag, default in OF_TRAININGS.items())
    return tuple(f"{method} {seed}" for method in methods for seed in seeds)


def _values(options: Sequence[str], flag: str) -> tuple[str, ...]:
    """What stands behind an option; nothing, if it is not there."""
    if flag not in options:
        return ()
    rest = options[options.index(flag) + 1 :]
    return tuple(itertools.takewhile(lambda word: not word.startswith("--"), rest))


def _without(options: Sequence[str], flags: Collection[str]) -> tuple[str, ...]:
    """The options but for these and what stands behind them."""
    left = list(options)
    for flag in flags:
        if flag in left:
            begin = left.index(flag)
            del left[begin : begin + 1 + len(_values(left, flag))]
    return tuple(left)
