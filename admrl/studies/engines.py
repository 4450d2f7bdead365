"""The engines by name. Each page is imported when it is asked for, and so is what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from admrl.studies.engine import Engine, Resources

ENGINES: Mapping[str, tuple[str, str, Mapping[str, type]]] = {
    "local": ("admrl.studies.local", "LocalEngine", {}),
    "ray": ("admrl.studies.ray_engine", "RayEngine", {"address": str}),
    "slurm": (
        "admrl.studies.slurm_engine",
        "SlurmEngine",
        {"partition": str, "account": str, "time_limit_minutes": int},
    ),
}
"""Page, class, and the options that it alone has, which the study file may give."""


def make_engine(name: str, folder: Path, resources: Resources, options: Mapping[str, Any]) -> Engine:
    """The engine, ready for attempts.

    Args:
        folder: of the study, which every machine must see; it is there.
        resources: that each process needs.

    Raises:
        ValueError: what it needs is not installed or not running, the folder is not seen everywhere, or there are no
            such resources.
    """
    if name != "local" and resources.max_processes is None:
        raise ValueError(
            f"engine.max_processes: with {name}, a reference, or the cells of a run, have all their processes on one "
            "machine; say in [engine] for how many of them one machine has room, e.g. max_processes = 8"
        )
    page, kind, _ = ENGINES[name]
    engine: Engine = getattr(import_module(page), kind)(folder, resources, **options)
    return engine
