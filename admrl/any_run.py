"""Run folders of either kind: `admrl train` and `admrl train-baseline`."""

from __future__ import annotations

import warnings
from pathlib import Path

from admrl.baselines.baseline_run import BaselineRun, open_baseline
from admrl.files import parse_json
from admrl.run_store import BASELINE_KIND, CONFIG, Run, load_run

AnyRun = Run | BaselineRun


def is_baseline(path: Path) -> bool:
    """Whether a folder is a run of a baseline; everything else is left to `load_run` to judge."""
    try:
        data = parse_json((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("kind") == BASELINE_KIND


def load_any_run(path: Path | str) -> AnyRun:
    """A run with its newest sound checkpoint; warns about newer ones that are damaged.

    Raises:
        ValueError: not a run folder, damaged files, or a run that has nothing to use yet.
    """
    path = Path(path)
    if not is_baseline(path):
        return load_run(path)
    run = open_baseline(path)
    if run.state.num_updates == 0:
        raise ValueError(f"{path}: the run has made no gradient step yet, so there is nothing to use")
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return run


def progress(run: AnyRun) -> str:
    """How far a training is, for messages."""
    if isinstance(run, BaselineRun):
        return run.progress
    return f"{len(run.state.records)} of {run.info.config.num_tasks} tasks are done"


def resume_command(run: AnyRun) -> str:
    """The command that goes on with it."""
    return run.resume_command if isinstance(run, BaselineRun) else f"admrl train --resume {run.path}"
