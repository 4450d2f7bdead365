"""`admrl search-worst`"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from admrl.config import check_config
from admrl.display import Display, JobReporter
from admrl.evaluation import check_evaluation
from admrl.files import write_text
from admrl.interruption import Interrupted, Interruptible, deferred_signals
from admrl.run_store import Run, check_seed, load_run, versions
from admrl.run_worst import RunGap, replay_command
from admrl.search import ScreenedSearch, Search, WorstReport, find_worst, make_search, save_search
from task_families.family import spawn_generators

if TYPE_CHECKING:
    from admrl.commands.options import SearchWorst

REPORT, STATE, BATCHES = "worst.json", "search.safetensors", "batches"
CONFIRM_SEED = 1_000_003  # added to the seed of the search: fresh policies and episodes


def prepare(command: SearchWorst) -> tuple[Run, Search]:
    """The run and the search, checked; the folder exists afterwards.

    Raises:
        ValueError: names the argument, what was expected, what came and the remedy.
        ImportError: the search's optional package is not installed.
    """
    check_seed(command.seed)
    check_config(command.config)
    for name, value, least in (
        ("--budget", command.budget, 1),
        ("--batch", command.batch, 1),
        ("--top", command.top, 1),
        ("--num-probes", command.num_probes, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")
    if command.num_probes > command.budget:
        raise ValueError(
            f"--num-probes: expected at most the budget of {command.budget}, got {command.num_probes}"
        )
    if not 0 <= command.difference <= 1 or not math.isfinite(command.min_distance):
        raise ValueError(f"--difference: expected 0 (no gradient) to 1, got {command.difference:g}")
    if not 0 < command.confidence < 1:
        raise ValueError(f"--confidence: expected a number between 0 and 1, got {command.confidence:g}")
    run = load_run(command.run)
    check_evaluation(command.config, run.family, run.info.config.dynamics.num_members)
    if command.config.num_reference_stages == 0:
        raise ValueError(
            "config.num_reference_stages: expected 1 or more, got 0: without a reference every gap compares a policy "
            "with itself"
        )
    generator = torch.Generator().manual_seed(command.seed)
    budget = max(1, command.budget - command.num_probes)
    search = make_search(command.search, run.family.box, generator=generator, budget=budget)
    if isinstance(search, ScreenedSearch):
        raise ValueError("--search: screened chooses tasks in a training; expected another, e.g. default")
    out = command.out or run.path / "worst"
    if (out / REPORT).exists():
        raise ValueError(f"--out {out} already holds a report; nothing was changed. Choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot write there ({error.strerror})") from error
    return run, search


def execute(command: SearchWorst, run: Run, search: Search) -> WorstReport:
    """Search, confirm, print and save the report."""
    console = Console(markup=False)
    out = command.out or run.path / "worst"
    config, size = command.config, run.family.box.size
    name = f"search-worst {run.path.name}"
    updates = run.info.config.virtual.num_policy_updates
    stage = 1 + math.ceil(config.num_reference_updates / updates) * updates
    per_call = 2 * config.num_updates + config.num_reference_stages * stage
    num_calls = math.ceil(command.num_probes / command.batch)
    num_calls += math.ceil((command.budget - command.num_probes) / command.batch)
    num_calls += 2 if command.difference else 1  # those that confirm
    num_kept = len(list((out / BATCHES).glob("*")))  # of an earlier, interrupted command
    num_calls = max(1, num_calls - num_kept)
    probes, _ = spawn_generators(torch.Generator().manual_seed(command.seed), 2)
    try:
        with deferred_signals(), Display(console, {name: num_calls * per_call}) as display:
            reporter = Interruptible(JobReporter(name, display.handle))
            gap, confirm = (
                RunGap(
                    run,
                    config,
                    command.seed + shift,
                    scale=command.scale,
                    reporter=reporter,
                    folder=out / BATCHES,
                    name=part,
                )
                for part, shift in (("search", 0), ("confirm", CONFIRM_SEED))
            )
            report = find_worst(
                gap,
                run.family.box,
                search,
                budget=command.budget,
                batch=command.batch,
                num_probes=command.num_probes,
                top=command.top,
                min_distance=command.min_distance,
                confirm=confirm,
                difference=command.difference or None,
                confidence=command.confidence,
                generator=probes,
                on_batch=lambda s: save_search(s, out / STATE),
            )
    except Interrupted as interrupt:
        raise Interrupted(
            f"{len(search.history)} of {command.budget} tasks are evaluated and kept in {out}; the same command goes "
            "on from there",
            interrupt.signum,
        ) from None
    replays = [
        replay_command(run, task.psi, command.seed, config.num_updates, str(film_file(command, run, i)))
        for i, task in enumerate(report.tasks, start=1)
    ]
    costs = {
        "search_policies": gap.num_policies,
        "search_real_samples": gap.real_samples,
        "confirm_policies": confirm.num_policies,
        "confirm_real_samples": confirm.real_samples,
    }
    data = {
        "run": str(run.path),
        "search": command.search,
        "seed": command.seed,
        "scale": command.scale,
        "evaluation": asdict(config),
        "versions": versions(),
        "replay": replays,
        **costs,
        "report": asdict(report),
    }
    write_text(out / REPORT, json.dumps(data, indent=1))
    for line in (*gap.notes, *confirm.notes, *report.lines()):
        console.print(line, highlight=False)
    console.print(
        f"{gap.num_policies} zero-shot policies in the search, {confirm.num_policies} to confirm; "
        f"{gap.real_samples + confirm.real_samples:,} real samples. {size} task parameters. Wrote {out / REPORT}; "
        "to see the worst again:\n  " + "\n  ".join(replays),
        highlight=False,
    )
    return report


def film_file(command: SearchWorst, run: Run, number: int) -> str:
    """Where the film of the number-th worst task goes."""
    return str((command.out or run.path / "worst") / f"worst-{number}.gif")
