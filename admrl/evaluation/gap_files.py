"""Where gap tables are kept in run folders: RUN/gaps/NAME.json, one for every set of tasks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from admrl.config.evaluation import EvaluationConfig
from admrl.evaluation.gap_table import GapTable
from admrl.number_text import counted
from admrl.runs.config_file import CONFIG
from admrl.streams import unit_keys
from task_families.task_space import TaskSpace

FOLDER = "gaps"


def gaps_file(run: Path, name: str) -> Path:
    """The table of a run of that name.

    Raises:
        ValueError: a name that is not one file's.
    """
    if not name or name.startswith(".") or any(c in name for c in '/\\: \t"'):
        raise ValueError(f"name: expected letters, digits and dashes, got {name!r}")
    return run / FOLDER / f"{name}.json"


def load_tables(paths: Sequence[Path], name: str | None = None) -> list[GapTable]:
    """The tables of run folders, all of one name, or of table files.

    Args:
        name: None: the only one that is there.

    Raises:
        ValueError: no folder, no table, or several to choose from; says what to do.
    """
    if not paths:
        raise ValueError("runs: expected at least one run folder, got none")
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        found = {file.stem: file for file in sorted((path / FOLDER).glob("*.json"))}
        hint = f"run: {shlex.join(['admrl', 'evaluate', *map(str, paths)])}"
        if not found:
            half = path.is_dir() and (path / CONFIG).is_file()
            raise ValueError(f"{path} has no gap tables{'' if half else ' (it is not a run folder)'}; {hint}")
        if name is None and len(found) > 1:
            raise ValueError(f"{path} has several gap tables; choose one as `tasks`: {' | '.join(found)}")
        wanted = next(iter(found)) if name is None else name
        if wanted not in found:
            raise ValueError(f"{path} has no gap table {wanted!r}, only {', '.join(found)}; {hint}")
        files.append(found[wanted])
    return [GapTable.load(file) for file in files]


def _table_there(file: Path) -> GapTable:
    """
    Raises:
        ValueError: it is no table, and stands where one is to go.
    """
    try:
        return GapTable.load(file)
    except ValueError as error:
        raise ValueError(
            f"{error}; nothing was changed. Remove it, or give this evaluation another `name`"
        ) from error


def check_same_tasks(file: Path, box: TaskSpace, psi: Tensor) -> None:
    """A finished table is not replaced by one that lacks some of its tasks.

    Args:
        psi: (M, k) of the new table.

    Raises:
        ValueError: there are others in the table of that name.
    """
    if not file.exists():
        return
    there = torch.from_numpy(_table_there(file).psi).to(psi)
    same = there.shape[1] == psi.shape[1]
    lacking = len(there) if not same else len({*_keys(box, there)} - {*_keys(box, psi)})
    if lacking:
        raise ValueError(
            f"{file} holds {counted(lacking, 'task')} that this evaluation lacks; nothing was changed. Give this one "
            "another `name`"
        )


def _keys(box: TaskSpace, psi: Tensor) -> list[tuple[int, ...]]:
    return unit_keys(box.to_unit(psi))


def check_same_settings(file: Path, config: EvaluationConfig, seed: int, decompose: bool = False) -> None:
    """A finished table is only replaced by one that was made with the same settings, and has as much in it.

    Raises:
        ValueError: another evaluation of that name is there, or one that was decomposed.
    """
    if not file.exists():
        return
    table = _table_there(file)
    there = table.provenance
    if table.oracle_return is not None and not decompose:
        raise ValueError(
            f"{file} holds the parts of its gaps, which this evaluation would not; nothing was changed. Repeat it "
            "with `decompose`, or give this one another `name`"
        )
    settings = there.evaluation
    if settings is None:
        raise ValueError(f"{file} does not say how it was made; give this one another `name`")
    same = json.loads(json.dumps({f: getattr(config, f) for f in settings if hasattr(config, f)}))
    changed = {k: v for k, v in settings.items() if k != "tasks_per_batch" and same.get(k) != v}
    if there.evaluation_seed != seed:
        changed["seed"] = there.evaluation_seed
    if changed:
        field, value = next(iter(changed.items()))
        raise ValueError(
            f"{file} holds an evaluation with other settings ({field} {value}); nothing was changed. "
            "Give this one another `name`"
        )
