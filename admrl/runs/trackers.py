"""Where people log: the metrics of a run for Weights & Biases or MLflow, beside metrics.csv and TensorBoard.

    trackers.json    RUN: which trackers follow it, the name of its run there, and the last step that they were given

Metrics are handed on whenever a checkpoint is written, so that a step that is computed again is told once. A tracker
that fails is left out from then on, with one event: it never ends a training. Without settings of the user's own,
nothing leaves the machine: wandb is offline, MLflow writes RUN/mlflow.db, and neither reports usage or errors.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from admrl.storage.files import DamagedFileError, parse_json, write_json
from task_families.choices import check_name

FILE, PROJECT = "trackers.json", "admrl"
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""Every tracker, and the packages of its extra."""
MOST = 100  # parameters or metrics in one message to MLflow, which takes 100 and 1000


class Tracker(Protocol):
    """One service that follows a run."""

    id: str  # of the run there

    def add(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Steps and their metrics, later than all before."""

    def close(self, failed: bool) -> None:
        """No more of them in this session."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed, before any work.

    Raises:
        ValueError: names the argument and the remedy.
    """
    for name in names:
        check_name("log", name, tuple(PACKAGES))
        if missing := [package for package in PACKAGES[name] if find_spec(package) is None]:
            raise ValueError(
                f'log: {name} needs the package {missing[0]}, which is not installed: pip install "admrl[{name}]"'
            )


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """What trackers.json says: name -> id and step.

    Raises:
        DamagedFileError: it is none.
    """
    file = path / FILE
    if not file.exists():
        return {}
    try:
        data = parse_json(file.read_bytes())
        return {str(name): {"id": str(kept["id"]), "step": int(kept["step"])} for name, kept in data.items()}
    except (ValueError, OSError, TypeError, LookupError, AttributeError) as error:
        raise DamagedFileError(
            f"{file} is damaged: {error}; remove it to go on without the trackers of before"
        ) from error


class Trackers:
    """Those of one session: the ones that are named, and those that followed the run before."""

    def __init__(
        self, path: Path, names: Sequence[str], settings: Mapping[str, Any], on_event: Callable[[str], None]
    ) -> None:
        """
        Args:
            settings: of the run, plain data.
            on_event: is told once of every tracker that fails.

        Raises:
            ValueError: an unknown tracker, one that is not installed, or a damaged trackers.json.
        """
        self._path, self._settings, self._tell = path, settings, on_event
        self._kept = recorded(path)
        self._names = list(dict.fromkeys((*self._kept, *names)))
        check_trackers(self._names)
        self._open: dict[str, Tracker] = {}
        self._rows: list[tuple[int, dict[str, float]]] = []

    def start(self) -> None:
        """Find or make the run with each of them."""
        for name in self._names:
            self._guarded(name, lambda name=name: self._start(name))  # type: ignore[misc]
        self._remember()

    def _start(self, name: str) -> None:
        known = self._kept.get(name, {}).get("id")
        make = WandbTracker if name == "wandb" else MlflowTracker
        tracker: Tracker = make(self._path, known, self._settings)
        self._open[name] = tracker
        step = self._kept[name]["step"] if tracker.id == known else 0
        self._kept[name] = {"id": tracker.id, "step": step}

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step, for the next `flush`."""
        if self._open:
            self._rows.append((step, dict(metrics)))

    def flush(self) -> None:
        """Hand on what came since the last time."""
        rows, self._rows = self._rows, []
        for name, tracker in list(self._open.items()):
            new = [row for row in rows if row[0] > self._kept[name]["step"]]
            if new and self._guarded(name, lambda tracker=tracker, new=new: tracker.add(new)):  # type: ignore[misc]
                self._kept[name]["step"] = new[-1][0]
        if rows:
            self._remember()

    def close(self, failed: bool) -> None:
        """No more metrics; those since the last `flush` are of no checkpoint, and will be computed again."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(failed))  # type: ignore[misc]
        self._open = {}

    def _remember(self) -> None:
        if self._kept:
            self._guarded(FILE, lambda: write_json(self._path / FILE, self._kept))

    def _guarded(self, name: str, call: Callable[[], None]) -> bool:
        """Whether it went well; what fails is told once and left out."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its dependencies' deprecations
                call()
            return True
        except Exception as error:  # whatever another package raises must not end a training
            self._open.pop(name, None)
            self._tell(
                f"log: {name} failed and is left out from here on; the training and metrics.csv go on "
                f"({type(error).__name__}: {error!s:.300})"
            )
            return False


class WandbTracker:
    """Weights & Biases, by the user's own settings; offline (RUN/wandb) where these name neither a mode nor a key."""

    def __init__(self, path: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        """
        Args:
            known: its run there, to go on with.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.id = known or uuid.uuid4().hex[:8]
        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and "WANDB_API_KEY" not in os.environ and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=path.name,
            resume="allow",
            mode=mode,
            dir=os.environ.get("WANDB_DIR", str(path)),
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def add(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """See `Tracker`."""
        for step, metrics in rows:
            self._run.log(dict(metrics), step=step)

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """MLflow, where MLFLOW_TRACKING_URI says; without it, in RUN/mlflow.db."""

    def __init__(self, path: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        """
        Args:
            known: its run there, to go on with.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._metric, uri = Metric, os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{path.resolve() / 'mlflow.db'}")
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        place = None if uri else (path.resolve() / "mlflow-artifacts").as_uri()
        number = found.experiment_id if found else self._client.create_experiment(name, place)
        self.id = self._client.create_run(number, run_name=path.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(settings)]
        for part in range(0, len(params), MOST):
            self._client.log_batch(self.id, params=params[part : part + MOST])

    def add(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        found = [self._metric(k, float(v), now, step) for step, row in rows for k, v in row.items()]
        for part in range(0, len(found), MOST):
            self._client.log_batch(self.id, metrics=found[part : part + MOST])

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def flat(settings: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """Nested settings as names and values: config.fit.num_horizon, 5."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        found += flat(value, f"{where}{key}.") if isinstance(value, Mapping) else [(f"{where}{key}", value)]
    return found
