"""Runs of families from outside this package: named again to be opened, refused when their file has changed."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from admrl.config.presets import PRESETS
from admrl.runs.config_file import read_config
from admrl.runs.families import CODE, NamedFamily
from admrl.training.run import Run, prepare_run
from task_families import make

FAMILY = """
import torch
from task_families.point_robot import PointRobot


class Mine(PointRobot):
    name, formula = "{name}", "-|s' - psi|"


class NoFamily:
    pass


class Wrong(Mine):
    name = "wrong"
    gamma = 2.0
"""


def small():
    smoke = PRESETS["smoke"]
    return replace(
        smoke,
        slbo=replace(smoke.slbo, num_samples=80),
        virtual=replace(smoke.virtual, num_samples=80),
        gradient=replace(smoke.gradient, num_samples=80),
    )


def begun(path, family):
    settings = {"variant": "released", "selector": "uniform", "preset": "smoke", "seed": 0}
    return prepare_run(path, family=family, config=small(), **settings)


@pytest.fixture
def file(tmp_path):
    """A file of its own name in every test, as one process imports a name once."""
    file = tmp_path / f"tasks_{abs(hash(tmp_path))}.py"
    file.write_text(FAMILY.format(name="mine"))
    return file


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{}:NoFamily", "is a class, but no family"),
        ("{}:Min", "has no 'Min' .did you mean 'Mine'"),
        ("{}", "expected FILE.py:NAME or MODULE:NAME"),
        ("nowhere.py:Mine", "no such file"),
        ("no_such_module:Mine", "does not import: ModuleNotFoundError"),
    ],
)
def test_what_is_no_family_gets_one_message(file, word, message):
    with pytest.raises(ValueError, match=message):
        make(word.format(file))


def test_a_file_that_does_not_import_says_where(file):
    file.write_text("x = 1\nraise RuntimeError('broken')\n")
    with pytest.raises(ValueError, match=r"RuntimeError: broken \(.*, line 2\)"):
        make(f"{file}:Mine")


def test_the_first_failing_check_is_named_and_nothing_is_written(file, tmp_path):
    with pytest.raises(ValueError, match=r"wrong: declarations: gamma: expected in \(0, 1\], got 2"):
        begun(tmp_path / "run", f"{file}:Wrong")
    assert not (tmp_path / "run").exists()


def test_a_run_records_its_source_and_is_opened_by_name_alone(file, tmp_path):
    path = tmp_path / "run"
    run = begun(path, f"{file}:Mine")
    run.save()
    source = read_config(path)["source"]
    assert (source["file"], source["name"]) == (str(file), f"{file.name}:Mine")
    assert run._identity()[CODE] == source["sha256"]
    with pytest.raises(ValueError, match=rf"add `family` {file}:Mine"):
        Run.open(path)
    assert Run.open(path, named=NamedFamily(f"{file}:Mine")).family.name == "mine"
    with pytest.raises(ValueError, match=r"the run .* is of 'mine'"):
        Run.open(path, named=NamedFamily("point_robot"))


def test_opening_imports_nothing_and_a_changed_file_is_refused(file, tmp_path):
    path = tmp_path / "run"
    begun(path, f"{file}:Mine")
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + FAMILY.format(name="mine"))
    code = (
        "import sys; from pathlib import Path; from admrl.training.run import Run\n"
        "from admrl.runs.families import NamedFamily\n"
        f"path, word = Path({str(path)!r}), {str(file) + ':Mine'!r}\n"
        "try: Run.open(path)\n"
        "except ValueError as error: print(error)\n"
        f"print((path.parent / 'ran').exists())\n"
        "try: Run.open(path, named=NamedFamily(word))\n"
        "except ValueError as error: print(error)\n"
        "print(Run.open(path, named=NamedFamily(word, accept_changed=True)).family.name)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    unnamed, ran, changed, accepted = answer.stdout.splitlines()
    assert "code that you did not name is not run" in unnamed and ran == "False"
    assert "has changed since the run was made" in changed and "accept_changed" in changed
    assert accepted == "mine"


def test_config_of_our_families_is_as_it_was(tmp_path):
    run = begun(tmp_path / "run", "point_robot")
    assert "source" not in json.loads((tmp_path / "run" / "config.json").read_text())
    assert CODE not in run._identity()
