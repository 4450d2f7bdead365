"""Where gap tables are kept in run folders: RUN/gaps/NAME.json, one for every set of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from admrl.evaluation import GapTable
from admrl.run_store import CONFIG

FOLDER = "gaps"


def gaps_file(run: Path, name: str) -> Path:
    """The table of a run of that name.

    Raises:
        ValueError: a name that is not one file's.
    """
    if not name or name.startswith(".") or any(c in name for c in '/\\: \t"'):
        raise ValueError(f"--name: expected letters, digits and dashes, got {name!r}")
    return run / FOLDER / f"{name}.json"


def load_tables(paths: Sequence[Path], name: str | None = None) -> list[GapTable]:
    """The tables of run folders, all of one name, or of table files.

    Args:
        name: None: the only one that is there.

    Raises:
        ValueError: no folder, no table, or several to choose from; says what to do.
    """
    if not paths:
        raise ValueError("RUNS: expected at least one run folder, got none")
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        found = {file.stem: file for file in sorted((path / FOLDER).glob("*.json"))}
        hint = f"run: admrl evaluate {' '.join(map(str, paths))}"
        if not found:
            half = path.is_dir() and (path / CONFIG).is_file()
            raise ValueError(f"{path} has no gap tables{'' if half else ' (it is not a run folder)'}; {hint}")
        if name is None and len(found) > 1:
            raise ValueError(f"{path} has several gap tables; choose one: --tasks {' | '.join(found)}")
        wanted = next(iter(found)) if name is None else name
        if wanted not in found:
            raise ValueError(f"{path} has no gap table {wanted!r}, only {', '.join(found)}; {hint}")
        files.append(found[wanted])
    return [GapTable.load(file) for file in files]
