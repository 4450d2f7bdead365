"""How far an attempt of a study is (`admrl.studies`), in a file beside its log, for those who watch it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from admrl.storage.fence import present_attempt

NOTED_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Progress:
    """Of a process with a display."""

    phase: str
    num_done: int
    """Steps."""
    num_steps: int
    """In all."""
    real_samples: float | None
    """Since the start of what it trains or evaluates."""


class ProgressFile:
    """Written now and then, where this process is an attempt; the newest content may be missing."""

    def __init__(self) -> None:
        attempt = present_attempt()
        self._file = None if attempt is None else progress_file(attempt[1].parent, attempt[0])
        self._noted = -NOTED_EVERY

    def note(self, progress: Progress) -> None:
        """Write it down, unless that was done a moment ago. Only a display: a full disk is told elsewhere."""
        if self._file is None or time.monotonic() - self._noted < NOTED_EVERY:
            return
        self._noted = time.monotonic()
        unfinished = self._file.with_suffix(".unfinished")
        try:
            unfinished.write_text(json.dumps(asdict(progress)), encoding="utf-8")
            os.replace(unfinished, self._file)
        except OSError:
            unfinished.unlink(missing_ok=True)


def progress_file(folder: Path, number: int) -> Path:
    """Of an attempt."""
    return folder / f"attempt-{number}.progress"


def read_progress(folder: Path, number: int) -> Progress | None:
    """What an attempt has written last; None: nothing, or nothing sound."""
    try:
        data = json.loads(progress_file(folder, number).read_bytes())
        samples = data["real_samples"]
        return Progress(
            str(data["phase"])[:100],
            int(data["num_done"]),
            int(data["num_steps"]),
            None if samples is None else float(samples),
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
