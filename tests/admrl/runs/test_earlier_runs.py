"""A run of an earlier version (earlier_run/, made by commit ee64f32) opens, and says what it lacked."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from fault_tools import EVALUATION

from admrl import evaluate_gaps, load_run
from admrl.cli import main
from admrl.config.earlier import KEY, SETTINGS
from admrl.runs.config_file import read_config
from admrl.storage.files import DamagedFileError
from admrl.training.run import Run

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def earlier(tmp_path):
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def changed(path, change):
    data = read_config(path)
    change(data)
    (path / "config.json").write_text(json.dumps(data))


def test_it_opens_and_says_once_what_was_filled_in(earlier):
    before = (earlier / "config.json").read_bytes()
    with pytest.warns(UserWarning) as told:
        run = load_run(earlier)
    (said,) = [str(w.message) for w in told]
    for settings in (
        "tasks_per_round, learner; mbpo.rollout_length, real_share, ",
        "virtual.steps_per_lane, rollout_precision, patience;",
        "search.screen_by, ",
    ):
        assert settings in said
    assert "What that version did: search.screen_by disagreement" in said
    assert run.info.config.search.screen_by == "disagreement"
    assert run.info.config.virtual.rollout_precision == "full"
    assert run.info.config.dynamics.hidden_sizes == (4,) and run.finished
    assert (earlier / "config.json").read_bytes() == before, "reading changes nothing"


def test_it_is_evaluated(earlier):
    config = replace(EVALUATION, num_samples=200)
    with pytest.warns(UserWarning, match="earlier version"):
        (table,) = evaluate_gaps([load_run(earlier)], (2, 2), config)
    assert table.gap.shape == (2, 4, 1)


def test_going_on_is_refused_because_of_its_random_numbers_not_as_damaged(earlier):
    with pytest.raises(ValueError, match="random streams are of version"):
        Run.resume(earlier)
    assert not (earlier / "lock.json").exists()


def test_a_setting_missing_from_a_present_run_is_damage(earlier):
    changed(earlier, lambda data: data["versions"].update({KEY: str(SETTINGS)}))
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged: .*missing field"):
        Run.open(earlier)


def test_a_newer_run_is_not_called_damaged(earlier, monkeypatch, capsys):
    changed(earlier, lambda data: data["versions"].update({KEY: str(SETTINGS + 1), "admrl": "0.9.0"}))
    with pytest.raises(
        ValueError, match=r"config\.json: the run was begun by a newer version, admrl 0\.9\.0"
    ) as refused:
        Run.open(earlier)
    assert not isinstance(refused.value, DamagedFileError)
    monkeypatch.setattr("sys.argv", ["admrl", "evaluate", str(earlier)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "0.9.0" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_setting_names_the_version_that_wrote_it(earlier):
    changed(earlier, lambda data: data["config"]["search"].update(novelty=1))
    with pytest.raises(ValueError, match=r"no setting 'search\.novelty'; the run was begun by admrl 0\.1\.0"):
        Run.open(earlier)


def test_records_are_no_settings_and_are_not_filled_in(earlier):
    changed(earlier, lambda data: data.pop("preset"))
    with pytest.raises(DamagedFileError, match="missing field 'preset'"):
        Run.open(earlier)


def test_a_checkpoint_that_does_not_fit_says_that_the_run_is_of_an_earlier_version(earlier):
    changed(earlier, lambda data: data["config"]["dynamics"].update(num_members=1))
    with pytest.raises(
        DamagedFileError, match=r"does not fit the run's configuration: .*begun by an earlier version"
    ):
        Run.open(earlier)


def test_present_runs_say_nothing(clean):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = load_run(clean()[0])
    assert run.notes == [] and run.info.versions[KEY] == str(SETTINGS)
