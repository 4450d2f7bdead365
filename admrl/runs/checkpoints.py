"""The checkpoints of a run: the newest k of them, and the growing data that they share.

    checkpoints/000012.ckpt     all that changes, and which parts of D it has (`admrl.storage.sealed_file`)
    checkpoints/000012.damaged  one that could not be read, set aside by `CheckpointStore.load`
    replay/000007.ckpt          rows of D that were new at checkpoint 7; never written again
    replay/000007.copy          the same once more, because every later checkpoint needs them

A checkpoint counts once its own file is there; it is written last and atomically. Numbers are never used twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admrl.storage.files import DamagedFileError, StorageError, storage_error
from admrl.storage.sealed_file import read_sealed, write_sealed

CHECKPOINTS, REPLAY = "checkpoints", "replay"
SUFFIX, COPY, DAMAGED = ".ckpt", ".copy", ".damaged"
FORMAT = 1


@dataclass(frozen=True)
class Part:
    """Rows of the data in a file of their own."""

    number: int  # of the checkpoint that wrote it
    num_rows: int
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded."""

    number: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    rows: dict[str, Tensor]  # columns of D, all parts together
    parts: tuple[Part, ...]
    digest: str


class CheckpointStore:
    """Saves and loads; one that saves belongs to the holder of the run's lock."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """keep: checkpoints that stay; older ones are deleted once a newer one is safe."""
        self._folder, self.keep = folder, keep
        self._parts: tuple[Part, ...] = ()

    def numbers(self) -> list[int]:
        """Checkpoints that are there, oldest first."""
        return _numbers(self._folder / CHECKPOINTS, SUFFIX)

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any], rows: dict[str, Tensor]) -> int:
        """Write a checkpoint and delete the oldest.

        Args:
            rows: columns of D (R, ...). Rows only ever join at the end, so only new ones are written; none where no
                data outlives a step.

        Returns:
            The number of the checkpoint.

        Raises:
            StorageError: names the file and what is still intact.
        """
        folder, replay = self._folder / CHECKPOINTS, self._folder / REPLAY
        try:
            folder.mkdir(exist_ok=True)
            replay.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        number = 1 + max([0, *self.numbers(), *_numbers(folder, DAMAGED), *_numbers(replay, SUFFIX)])
        parts, saved = self._parts, sum(part.num_rows for part in self._parts)
        total = len(next(iter(rows.values()))) if rows else 0
        try:
            if total > saved:
                new = {name: column[saved:].cpu() for name, column in rows.items()}
                digest = write_sealed(_file(replay, number), new, {"format": FORMAT})
                write_sealed(_file(replay, number).with_suffix(COPY), new, {"format": FORMAT})
                parts = (*parts, Part(number, total - saved, digest))
            listed = [[part.number, part.num_rows, part.digest] for part in parts]
            write_sealed(_file(folder, number), tensors, {"format": FORMAT, "replay": listed, **meta})
        except StorageError as error:
            last = self.numbers()
            good = (
                f"the last good checkpoint is {_file(folder, last[-1])}"
                if last
                else "there is no checkpoint yet"
            )
            raise StorageError(f"{error}; {good}") from error
        self._parts = parts
        self._prune()
        return number

    def load(self, *, set_aside: bool = False) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is sound, and what was wrong with newer ones.

        Args:
            set_aside: rename those, so that they are not tried again; only for the holder of the lock.

        Raises:
            DamagedFileError: there are checkpoints, but none can be read.
        """
        notes: list[str] = []
        for number in reversed(self.numbers()):
            file = _file(self._folder / CHECKPOINTS, number)
            try:
                found = self._read(number, notes)
            except DamagedFileError as error:
                notes.append(f"{error}; using an earlier checkpoint")
                continue
            if set_aside:
                for damaged in self.numbers():
                    if damaged > number:
                        file = _file(self._folder / CHECKPOINTS, damaged)
                        file.rename(file.with_suffix(DAMAGED))
            self._parts = found.parts
            return found, notes
        if notes:
            raise DamagedFileError(
                f"{self._folder}: none of its checkpoints can be read: {notes[0].partition(';')[0]}"
            )
        return None, []

    def _read(self, number: int, notes: list[str]) -> Checkpoint:
        file = _file(self._folder / CHECKPOINTS, number)
        tensors, meta, digest = read_sealed(file)
        if meta.get("format") != FORMAT:
            raise DamagedFileError(f"{file}: format {meta.get('format')!r}, this version reads {FORMAT}")
        try:
            parts = tuple(_part(entry) for entry in meta["replay"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{file}: its list of data is damaged: {error}") from error
        pieces: list[dict[str, Tensor]] = []
        for part in parts:
            piece = self._read_part(part, notes)
            if pieces and set(piece) != set(pieces[0]):
                raise DamagedFileError(f"{file}: data with other columns in part {part.number}")
            if any(column.dim() == 0 or len(column) != part.num_rows for column in piece.values()):
                raise DamagedFileError(f"{file}: part {part.number} of the data has another length")
            pieces.append(piece)
        try:
            rows = {
                name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())
            }
        except (RuntimeError, TypeError) as error:
            raise DamagedFileError(f"{file}: its parts of the data do not fit together: {error}") from error
        return Checkpoint(number, tensors, meta, rows, parts, digest)

    def _read_part(self, part: Part, notes: list[str]) -> dict[str, Tensor]:
        """The rows of a part, from its copy if the part is damaged."""
        file = _file(self._folder / REPLAY, part.number)
        try:
            return read_sealed(file, part.digest)[0]
        except DamagedFileError as error:
            try:
                piece = read_sealed(file.with_suffix(COPY), part.digest)[0]
            except DamagedFileError as other:
                raise DamagedFileError(f"{error}; {other}") from error
            notes.append(f"{error}; using its copy")
            return piece

    def _prune(self) -> None:
        """Delete all but the newest checkpoints, and data that none of them needs."""
        for number in self.numbers()[: -self.keep]:
            _file(self._folder / CHECKPOINTS, number).unlink(missing_ok=True)
        needed = {part.number for part in self._parts}
        for number in _numbers(self._folder / REPLAY, SUFFIX):
            if number not in needed:
                for suffix in (SUFFIX, COPY):
                    _file(self._folder / REPLAY, number).with_suffix(suffix).unlink(missing_ok=True)


def _part(entry: Any) -> Part:
    """Plain data from a file that anybody may have written."""
    number, num_rows, digest = entry
    for count in (number, num_rows):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 10**12:
            raise ValueError(f"expected a positive number, got {count!r}")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("expected a checksum")
    return Part(number, num_rows, digest)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{SUFFIX}"


def _numbers(folder: Path, suffix: str) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(
        int(f.stem) for f in folder.iterdir() if f.suffix == suffix and re.fullmatch(r"\d{6,12}", f.stem)
    )
