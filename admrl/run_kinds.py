"""The kinds of run: the one page that knows `admrl train` and `admrl train-baseline` both."""

from __future__ import annotations

from pathlib import Path

from admrl.baselines.run import BaselineRun, load_baseline
from admrl.runs.families import NOBODY, NamedFamily
from admrl.runs.folder import read_config
from admrl.training.run import Run, load_run

AnyRun = Run | BaselineRun


def load_any_run(path: Path | str, named: NamedFamily = NOBODY) -> AnyRun:
    """A run with its newest sound checkpoint; warns about newer ones that are damaged.

    Args:
        named: its family, where it is not one of this package.

    Raises:
        ValueError: not a run folder, damaged files, a run that has nothing to use yet, or see `family_of`.
    """
    if read_config(Path(path)).get("kind") == BaselineRun.kind:
        return load_baseline(path, named)
    return load_run(path, family=named.family, accept_changed=named.accept_changed)
