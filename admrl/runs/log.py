"""What a run writes down while it goes: metrics.csv, events.jsonl, TensorBoard if installed, `--log`."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from admrl.jobs.reporter import Reporter
from admrl.runs.trackers import Trackers
from admrl.storage.fence import check_fence
from admrl.storage.files import storage_error


@dataclass(frozen=True)
class LogPosition:
    """Where metrics.csv stood at a checkpoint; what came later is computed again."""

    size: int = 0  # bytes
    num_rows: int = 0
    seconds: float = 0.0  # of work, over all sessions

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class BoardFile:
    """Scalars for TensorBoard in one events file; written by this thread, so that a full disk is an error here."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """
        Args:
            first_step: TensorBoard forgets what earlier files say from here on: it is computed again.

        Raises:
            StorageError: the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            self._writer = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115
            self._write(file_version="brain.Event:2")
            self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))
        except OSError as error:
            raise storage_error(folder, error) from error

    def add(self, metrics: dict[str, float], step: int) -> None:
        """One point for each metric."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Make it visible."""
        self._writer.flush()

    def close(self) -> None:
        """No more points."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())


class RunLog:
    """Passes everything on to a reporter and writes it down."""

    def __init__(
        self,
        path: Path,
        reporter: Reporter,
        position: LogPosition | None,
        *,
        columns: tuple[str, ...],
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            columns: metrics that metrics.csv has.
            trackers: that are told the metrics, too, beside those that were before; see `admrl.runs.trackers`.
            settings: of the run, for them.
            position: of the checkpoint that the run goes on from; None: it begins.

        Raises:
            StorageError: a file cannot be written.
            ValueError: a tracker that does not exist or is not installed.
        """
        self._trackers = Trackers(path, trackers, settings or {}, self.event)
        self._reporter, self._phase, self._columns = reporter, "", columns
        self._metrics, self._events = path / "metrics.csv", path / "events.jsonl"
        start = position or LogPosition()
        self._step, self._started = start.num_rows, time.monotonic() - start.seconds
        self._board: BoardFile | None = None
        try:
            lost = self._cut(start)
            self._file = open(self._metrics, "a", newline="", encoding="utf-8")  # noqa: SIM115
            self._csv = csv.writer(self._file)
            if start.size == 0:
                self._csv.writerow(("step", "phase", "seconds", *self._columns))
        except OSError as error:
            raise storage_error(self._metrics, error) from error
        if lost:
            self.event(lost)
        if find_spec("tensorboard") is None:
            reporter.event(
                'metrics go to metrics.csv alone; for TensorBoard: pip install "admrl[tensorboard]"'
            )
        else:
            self._board = BoardFile(path / "tensorboard", first_step=self._step + 1)
        self._trackers.start()

    def _cut(self, start: LogPosition) -> str | None:
        """Cut metrics.csv to the position; what to say if it is shorter than it should be."""
        size = self._metrics.stat().st_size if self._metrics.is_file() else 0
        if size > start.size:
            with open(self._metrics, "r+b") as file:
                file.truncate(start.size)
        if size >= start.size:
            return None
        if size and not self._metrics.read_bytes().endswith(b"\n"):
            with open(self._metrics, "ab") as file:
                file.write(b"\r\n")
        return f"metrics.csv has {size} of {start.size} bytes: rows are missing before step {self._step}"

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trackers.close(failed=kind is not None)
        for what in (self._file, self._board):
            try:
                if what is not None:
                    what.close()
            except OSError as trouble:
                if kind is None:  # otherwise the first error is the one to tell
                    raise storage_error(self._metrics, trouble) from trouble

    def position(self) -> LogPosition:
        """Where the log stands, everything up to here written.

        Raises:
            StorageError: metrics.csv cannot be written.
        """
        try:
            check_fence()
            self._file.flush()
            if self._board is not None:
                self._board.flush()
            size = self._metrics.stat().st_size
        except OSError as error:
            raise storage_error(self._metrics, error) from error
        self._trackers.flush()
        return LogPosition(size, self._step, round(time.monotonic() - self._started, 2))

    def phase(self, name: str) -> None:
        """See `Reporter.phase`."""
        self._phase = name
        self._reporter.phase(name)

    def advance(self, **metrics: float) -> None:
        """See `Reporter.advance`."""
        self._step += 1
        seconds = round(time.monotonic() - self._started, 2)
        try:
            check_fence()
            self._csv.writerow(
                (self._step, self._phase, seconds, *(metrics.get(name, "") for name in self._columns))
            )
            if self._board is not None:
                self._board.add(metrics, self._step)
        except OSError as error:
            raise storage_error(self._metrics, error) from error
        self._trackers.add(metrics, self._step)
        self._reporter.advance(**metrics)

    def event(self, message: str) -> None:
        """See `Reporter.event`. Events are a journal: a step that is computed again may report again."""
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "step": self._step,
            "phase": self._phase,
            "message": message,
        }
        try:
            check_fence()
            torn = self._events.is_file() and self._events.read_bytes()[-1:] not in (b"", b"\n")
            with open(self._events, "a", encoding="utf-8") as file:
                file.write("\n" * torn + json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:
            raise storage_error(self._events, error) from error
        self._reporter.event(message)
