"""config.json, which makes a folder a run: what was asked for, of which kind, and what command goes on with it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from admrl.runs.families import family_words
from admrl.runs.lock import HOLDER, LOCK, RunLock
from admrl.storage.files import DamagedFileError, parse_json, write_json

CONFIG, TASKS, CURVE, GAP_MAP = "config.json", "tasks.json", "curve.json", "gap_map.csv"
SELECTOR_SOURCE = "selector_source"  # in config.json: where the code of a search from outside comes from
POLICY = "policy"  # kind of a folder of a method from elsewhere
INFERRED = "inferred"  # kind of a folder of a run that is not told psi
INNER_LOOP = "inner-loop"  # kind of a run of a method that adapts by policy-gradient steps
OFFLINE = "offline"  # kind of a run of a method that learns from recorded data
RECURRENT = "recurrent"  # kind of a run of a method that adapts by its hidden state
COMMANDS: dict[str | None, str] = {
    None: "train",
    "baseline": "train-baseline",
    INNER_LOOP: "train-baseline",
    OFFLINE: "train-baseline",
    RECURRENT: "train-baseline",
    "mql": "train-baseline",
    POLICY: "evaluate",
    INFERRED: "evaluate",
}
"""`kind` in config.json: the command that makes such runs and goes on with them."""


def read_config(path: Path, *, command: str = "train") -> dict[str, Any]:
    """The config.json of a run of any kind, as plain data.

    Args:
        command: that makes such folders, for the message.

    Raises:
        ValueError: not a run folder, or damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{path} is not a run folder (it has no {CONFIG}); `admrl {command} --out DIR` makes one"
        )
    try:
        data = parse_json(file.read_bytes())
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise DamagedFileError(f"{file} is damaged: expected an object, got {data!r:.40}")
    return data


def resume_command(
    path: Path, kind: str | None, source: dict[str, str] | None = None, selector: dict[str, str] | None = None
) -> str:
    """The command that goes on with a run of that kind, whose family and search come from there."""
    named = [*family_words(source), *family_words(selector, "--selector")]
    if kind in (POLICY, INFERRED):  # nothing is trained there
        return shlex.join(["admrl", "evaluate", str(path), *named])
    return shlex.join(["admrl", COMMANDS.get(kind, "train"), "--resume", str(path), *named])


def create_run(path: Path, info: Any) -> None:
    """Make the folder and write its config.json, a dataclass as plain data.

    Raises:
        ValueError: the folder already holds a run (or anything else), or cannot be made.
        StorageError: config.json cannot be written.
    """
    _check_empty(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot write to {path} ({error.strerror}); choose another folder") from error
    lock = RunLock(path)
    try:
        _check_empty(path)  # another process may have been faster
        write_config(path, info)
    finally:
        lock.release()


def write_config(path: Path, info: Any) -> None:
    """What was asked for, a dataclass, as config.json; a source or an extension only where there is one."""
    written = {k: v for k, v in asdict(info).items() if v or k not in ("source", SELECTOR_SOURCE, "extended")}
    write_json(path / CONFIG, written)


def _check_empty(path: Path) -> None:
    if not path.exists() or (path.is_dir() and not {p.name for p in path.iterdir()} - {LOCK, HOLDER}):
        return
    if not (path / CONFIG).exists():
        raise ValueError(
            f"out: {path} exists and is not an empty folder; nothing was changed. Choose another one"
        )
    try:
        config = read_config(path)
    except ValueError:
        config = {}
    raise ValueError(
        f"out: {path} already holds a run; nothing was changed. Choose another folder, or continue it with: "
        f"{resume_command(path, config.get('kind'), config.get('source'), config.get(SELECTOR_SOURCE))}"
    )
