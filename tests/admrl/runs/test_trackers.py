"""`--log wandb|mlflow`, offline: what they are told is what metrics.csv says; their faults end no training."""

import csv
import importlib
import json
import math
import struct
from dataclasses import replace

import pytest
from fault_tools import SMALL, SignalAt, small_run

from admrl.commands.train import Train
from admrl.jobs.interruption import Interrupted, deferred_signals
from admrl.jobs.reporter import Silent
from admrl.runs import trackers
from admrl.runs.trackers import FILE, PACKAGES, check_trackers, flat, recorded
from admrl.storage.files import DamagedFileError
from admrl.training.run import Run, train_run

ONE = replace(SMALL, num_tasks=1)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    """Nothing of the user's own: no key, no mode, no server."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def need(name):
    for package in PACKAGES[name]:
        pytest.importorskip(package, reason=f"the extra {name} is not installed")


def train(path, *names, reporter=None, every=0.0):
    train_run(Run.resume(path), reporter or Silent(), checkpoint_seconds=every, trackers=names)


def known(value):
    """None in place of nan, which equals nothing."""
    return None if math.isnan(value) else value


def in_csv(path):
    """Step -> metrics that are there."""
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = ("step", "phase", "seconds")
    return {int(r["step"]): {k: known(float(v)) for k, v in r.items() if v and k not in own} for r in rows}


def in_mlflow(uri, number):
    from mlflow import MlflowClient

    client, found = MlflowClient(tracking_uri=uri), {}
    run = client.get_run(number)
    for name in run.data.metrics:
        for point in client.get_metric_history(number, name):
            found.setdefault(point.step, []).append((name, known(point.value)))
    assert all(len(row) == len(dict(row)) for row in found.values()), "told twice"
    return run, {step: dict(row) for step, row in found.items()}


def in_wandb(path):
    """Of all offline files of a run, in order: record files of leveldb's format, see wandb's own `datastore`."""
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found, ids = {}, set()
    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        data, at, record = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # too little for a header: the block's end is empty
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind not in (1, 4):  # a whole one, or the last part
                continue
            message, record = proto.Record.FromString(record), b""
            if message.WhichOneof("record_type") == "run":
                ids.add(message.run.run_id)
            if message.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: item.value_json for item in message.history.item}
                step = int(row.get("_step", message.history.step.num))
                assert step not in found, "told twice"
                found[step] = {k: number(v) for k, v in row.items() if not k.startswith("_")}
    return ids, found


def number(text):
    value = json.loads(text)
    return None if value == "NaN" else known(float(value))


def interrupted_and_resumed(tmp_path, name):
    path = small_run(tmp_path / "run", config=ONE)
    with pytest.raises(Interrupted), deferred_signals():
        train(path, name, reporter=SignalAt(3), every=1e6)
    first = recorded(path)[name]
    assert first["step"] == 3
    train(path)  # it goes on with the one that followed it
    last = recorded(path)[name]
    assert last == {"id": first["id"], "step": len(in_csv(path))}
    return path, last["id"]


def test_mlflow_is_told_what_the_csv_says_and_goes_on_with_its_run(tmp_path):
    need("mlflow")
    path, number = interrupted_and_resumed(tmp_path, "mlflow")
    run, found = in_mlflow(f"sqlite:///{path / 'mlflow.db'}", number)
    assert found == in_csv(path) and len(found) > 3
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["config.virtual.num_samples"] == "400" and run.data.params["seed"] == "3"
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()


def test_mlflow_writes_where_the_user_says(tmp_path, monkeypatch):
    need("mlflow")
    uri = f"sqlite:///{tmp_path / 'mine.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    path = small_run(tmp_path / "run", config=ONE)
    train(path, "mlflow")
    assert in_mlflow(uri, recorded(path)["mlflow"]["id"])[1] == in_csv(path)
    assert not (path / "mlflow.db").exists()


@pytest.mark.parametrize("mode", [None, "offline"])
def test_wandb_is_told_what_the_csv_says_and_goes_on_with_its_run(tmp_path, monkeypatch, mode):
    """Without a mode and a key it is offline, too."""
    need("wandb")
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    path, number = interrupted_and_resumed(tmp_path, "wandb")
    ids, found = in_wandb(path)
    assert ids == {number} and found == in_csv(path) and len(found) > 3
    assert not (tmp_path / "wandb").exists()


class Events(Silent):
    def __init__(self):
        self.events = []

    def event(self, message):
        self.events.append(message)


@pytest.mark.parametrize("moment", ["__init__", "add", "close"])
def test_a_tracker_that_fails_is_told_once_and_ends_no_training(tmp_path, monkeypatch, moment):
    class Failing:
        id = "x"

        def __init__(self, path, known, settings):
            self._at("__init__")

        def _at(self, where):
            if where == moment:
                raise OSError(28, "No space left on device")

        def add(self, rows):
            self._at("add")

        def close(self, failed):
            self._at("close")

    monkeypatch.setattr(trackers, "WandbTracker", Failing)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    path, reporter = small_run(tmp_path / "run", config=ONE), Events()
    train(path, "wandb", reporter=reporter)
    assert Run.open(path).finished
    said = [event for event in reporter.events if "log: wandb failed and is left out" in event]
    assert len(said) == 1 and "No space left" in said[0]


def test_a_missing_package_is_one_message_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in PACKAGES:
        with pytest.raises(ValueError, match=rf'log: {name} needs .* pip install "admrl\[{name}\]"'):
            Train(out=tmp_path / "run", log=(name,)).check()
        path = small_run(tmp_path / name, config=ONE)
        (path / FILE).write_text(json.dumps({name: {"id": "x", "step": 0}}))
        with pytest.raises(ValueError, match=rf"log: {name} needs"):
            train(path)  # it followed the run on another machine
        assert Run.open(path).checkpoint is None
    assert not (tmp_path / "run").exists()


def test_unknown_trackers_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        check_trackers(("wandbb",))
    for text in ("[]", "{", '{"wandb": {"id": "x"}}', '{"wandb": 3}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(DamagedFileError, match=r"trackers\.json is damaged"):
            recorded(tmp_path)


def test_a_run_without_trackers_has_no_file_of_them(tmp_path):
    path = small_run(tmp_path / "run", config=ONE)
    train(path)
    assert not (path / FILE).exists() and not list(path.glob("wandb")) and not list(path.glob("mlflow*"))


def test_settings_are_named_by_their_place():
    assert flat({"a": 1, "b": {"c": {"d": 2}}}) == [("a", 1), ("b.c.d", 2)]
