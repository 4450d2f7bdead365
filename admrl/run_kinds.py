"""The kinds of run: the one page that knows `admrl train`, every kind of `admrl train-baseline`, methods from
elsewhere, and runs that are not told psi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from admrl.baselines.outside_run import OutsideRun
from admrl.baselines.run import BaselineRun
from admrl.devices.names import CPU, find_device
from admrl.inner_loop.run import InnerLoopRun
from admrl.methods.run import MethodRun
from admrl.mql.run import MqlRun
from admrl.offline.run import MacawRun
from admrl.recurrent.run import RecurrentRun
from admrl.runs.config_file import read_config
from admrl.runs.families import NOBODY, NamedFamily
from admrl.training.inferred_run import InferredRun
from admrl.training.run import Run, load_run

TrainedRun = Run | MethodRun[Any]
AnyRun = TrainedRun | OutsideRun | InferredRun
METHOD_RUNS: dict[str | None, type[MethodRun[Any]]] = {
    run.kind: run for run in (BaselineRun, InnerLoopRun, MacawRun, RecurrentRun, MqlRun)
}
"""The kinds of `admrl train-baseline`."""


def load_on(path: Path | str, named: NamedFamily = NOBODY, *, device: str = CPU) -> AnyRun:
    """`load_any_run`, then moved to a device, if its method can go there.

    Raises:
        ValueError: see `load_any_run` and `find_device`.
    """
    run = load_any_run(path, named)
    run.move_to(find_device(device))
    return run


def load_any_run(path: Path | str, named: NamedFamily = NOBODY) -> AnyRun:
    """A run with its newest sound checkpoint; warns about newer ones that are damaged.

    Args:
        named: its family, where it is not one of this package.

    Raises:
        ValueError: not a run folder, damaged files, a run that has nothing to use yet, or see `family_of`.
    """
    kind = read_config(Path(path)).get("kind")
    if kind == OutsideRun.kind:
        return OutsideRun.open(Path(path), named=named)
    if kind == InferredRun.kind:
        return InferredRun.open(Path(path), named=named)
    if kind in METHOD_RUNS:
        return METHOD_RUNS[kind].load(path, named)
    return load_run(path, family=named.family, accept_changed=named.accept_changed)
