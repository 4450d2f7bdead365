"""Runs of earlier versions lack settings: they get what those versions did, and a new setting is counted."""

import json
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from admrl.baselines.config import BaselineConfig
from admrl.config.earlier import EARLIER, KEY, SETTINGS, OtherVersionError, complete, describe
from admrl.config.plain_data import from_dict
from admrl.config.training import MetaTrainConfig
from admrl.inner_loop.config import InnerLoopConfig

HERE = Path(__file__).parent
FIRST = json.loads((HERE / "first_version.json").read_text())
"""What the first version wrote, before searches, estimators and checkpoints between steps."""


def names(cls, where=""):
    """Of all settings of a configuration."""
    for f in fields(cls):
        hint = get_type_hints(cls)[f.name]
        yield from names(hint, f"{where}{f.name}.") if is_dataclass(hint) else [where + f.name]


def test_a_new_setting_is_counted():
    """Else runs of the present version would be damaged for the next one."""
    now = {c.__name__: sorted(names(c)) for c in (MetaTrainConfig, BaselineConfig, InnerLoopConfig)}
    listed = json.loads((HERE / f"settings_{SETTINGS}.json").read_text())
    assert now == listed, (
        "settings have changed: raise admrl.config.earlier.SETTINGS, write the new list to tests/admrl/config/, and "
        "enter into EARLIER what runs did before, where that is not the new default"
    )
    assert {e.setting for e in EARLIER} <= {name for settings in now.values() for name in settings}
    assert all(1 < e.before <= SETTINGS for e in EARLIER)


def test_the_first_version_is_read_as_it_worked():
    data, filled = complete(MetaTrainConfig, FIRST["config"], FIRST["versions"])
    config = from_dict(MetaTrainConfig, data)
    assert (config.num_tasks, config.gradient.max_steps, config.slbo.num_samples) == (2, 3, 800)  # as written
    assert config.gradient.estimator == "reinforce" and config.gradient.num_extra_episodes == 0
    assert config.search == replace(MetaTrainConfig().search, screen_by="disagreement")
    assert (
        config.virtual.rollout_precision == "full"
        and config.gradient.resolve == MetaTrainConfig().gradient.resolve
    )
    present = set(names(MetaTrainConfig))
    assert set(filled) == present - {n for n in present if known(FIRST["config"], n)} and len(filled) == 48
    said = describe(filled, FIRST["versions"])
    assert (
        "search.objective, alpha, " in said
        and "gradient.estimator reinforce" in said
        and "admrl 0.1.0" in said
    )


def known(data, name):
    for part in name.split("."):
        if part not in data:
            return False
        data = data[part]
    return True


@pytest.mark.parametrize("cls", [MetaTrainConfig, BaselineConfig, InnerLoopConfig])
def test_every_missing_setting_is_filled_in_older_runs_and_refused_in_present_ones(cls):
    whole = json.loads(json.dumps(asdict(cls())))
    assert complete(cls, whole, {KEY: str(SETTINGS)}) == (whole, {})
    for name in [*names(cls), *{n.rpartition(".")[0] for n in names(cls)} - {""}]:
        data = json.loads(json.dumps(whole))
        part, *path = data, *name.split(".")
        for step in path[:-1]:
            part = part[step]
        del part[path[-1]]
        older, filled = complete(cls, data, {})
        assert filled and all(f == name or f.startswith(name + ".") for f in filled)
        then = {e.setting: e.value for e in EARLIER}
        for f in filled:
            value, default = older, whole
            for step in f.split("."):
                value, default = value[step], default[step]
            assert json.loads(json.dumps(value)) == then.get(f, default)
        from_dict(cls, older)
        same, filled = complete(cls, data, {KEY: str(SETTINGS)})
        assert filled == {}
        with pytest.raises(ValueError, match="missing field"):
            from_dict(cls, same)


def test_newer_settings_are_refused_and_say_whose_they_are():
    data = asdict(MetaTrainConfig())
    newer = {KEY: str(SETTINGS + 1), "admrl": "0.9.0", "commit": "abc"}
    with pytest.raises(
        OtherVersionError, match=r"newer version, admrl 0\.9\.0, commit abc \(settings 9.* up to 8\)"
    ):
        complete(MetaTrainConfig, data, newer)
    data["gradient"]["curvature"] = 1
    with pytest.raises(
        OtherVersionError, match=r"no setting 'gradient\.curvature'.* begun by admrl 0\.9\.0, commit abc"
    ):
        complete(MetaTrainConfig, data, newer | {KEY: str(SETTINGS)})


@pytest.mark.parametrize("number", ["", "0", "-1", "x", "9" * 9, 2, None, ["2"]])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match="settings: expected a whole number"):
        complete(MetaTrainConfig, {}, {KEY: number})


@pytest.mark.parametrize("data", [None, 3, "x", [1]])
def test_what_is_no_object_is_left_to_the_reader(data):
    assert complete(MetaTrainConfig, data, None) == (data, {})
    with pytest.raises(ValueError, match="expected an object"):
        from_dict(MetaTrainConfig, data)
