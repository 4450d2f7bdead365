"""Searches of the user's own: named, checked before anything is trained, recorded, and needed again only to go on."""

import re
from dataclasses import replace

import pytest
import torch
from command_tools import prepared, run_command

from admrl.baselines.outside import load_outside, parse_methods
from admrl.commands.command import check_own_search
from admrl.commands.search_worst import SearchWorst
from admrl.commands.train import Train
from admrl.config.presets import PRESETS
from admrl.jobs.reporter import Silent
from admrl.runs.config_file import read_config
from admrl.runs.families import NamedFamily
from admrl.search.own import KeptSearch
from admrl.training.run import Run, load_run, prepare_run, train_run
from task_families import make

SEARCH = """
import torch
from admrl.search import Search


class Corner(Search):
    '''Always the upper corner, after the first task.'''

    def __init__(self, space, generator, first=None):
        super().__init__(space, generator, first)
        self.num = 0

    def _propose(self, n):
        self.num += n
        return self.space.project(self.space.high.expand(n, -1)), torch.zeros(n, dtype=torch.long)

    def _state(self):
        return {"num": torch.tensor([self.num])}

    def _load(self, state):
        self.num = int(state["num"])


class Outside(Corner):
    def ask(self, n=1):
        return super().ask(n) + 100 * self.space.high.abs()


class NoSearch:
    pass


def make(space, generator, first=None, step_size=None):
    assert step_size == 2.0  # what it has a parameter for, it is given
    return Corner(space, generator, first)


def wrong(space, generator):
    return 3
"""


def small(num_tasks=2):
    smoke = PRESETS["smoke"]
    return replace(
        smoke,
        num_tasks=num_tasks,
        slbo=replace(smoke.slbo, num_samples=80),
        virtual=replace(smoke.virtual, num_samples=80),
        gradient=replace(smoke.gradient, num_samples=80),
    )


def begun(path, selector, num_tasks=2):
    settings = {"variant": "released", "preset": "smoke", "seed": 0, "config": small(num_tasks)}
    return prepare_run(path, family="point_robot", selector=selector, **settings)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / f"searches_{abs(hash(tmp_path))}.py"
    file.write_text(SEARCH)
    return file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSearch", "is no search: expected a function of"),
        ("wrong", "returned int: expected a function of"),
        ("Outside", "selector: .*Outside: feasible stopped with .*nothing was searched"),
        ("Crner", "did you mean 'Corner'"),
    ],
)
def test_what_is_no_search_is_refused_before_anything_is_written(file, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        begun(tmp_path / "run", f"{file}:{name}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["Corner", "make"])
def test_it_chooses_the_tasks_and_is_needed_to_go_on_alone(file, tmp_path, name):
    path, word = tmp_path / "run", f"{file}:{name}"
    run = begun(path, word)
    train_run(run, Silent())
    corner = run.family.box.project(run.family.box.high)
    assert torch.allclose(torch.tensor(run.state.records[1].psi), corner)
    assert read_config(path)["selector_source"]["file"] == str(file)
    assert f"--selector {file}:{name}" in run.resume_command
    loaded = load_run(path)  # evaluating needs no search, so its code is not run
    assert isinstance(loaded.state.search, KeptSearch)
    kept, own = loaded.state.search.state_dict(), run.state.search.state_dict()
    assert kept.keys() == own.keys() and torch.equal(kept["history.psi"], own["history.psi"])
    with pytest.raises(ValueError, match=rf"If you trust it, add `selector` {re.escape(word)}"):
        Run.resume(path)
    with pytest.raises(ValueError, match=r"the run .* is of '.*', got .*wrong"):
        Run.resume(path, NamedFamily(selector=f"{file}:wrong"))
    longer = Run.resume(path, NamedFamily(selector=word), length=3)
    train_run(longer, Silent())
    whole = begun(tmp_path / "whole", word, num_tasks=3)
    train_run(whole, Silent())
    assert [r.to_dict() for r in longer.state.records] == [r.to_dict() for r in whole.state.records]
    file.write_text(SEARCH + "\n# changed\n")
    with pytest.raises(ValueError, match="has changed since"):
        Run.resume(path, NamedFamily(selector=word), length=4)


def test_the_command_line_takes_it(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    word = f"{file}:Corner"
    run = prepared(Train(family="point_robot", selector=word, preset="smoke", config=small()))
    assert run.path.name == f"point_robot-{file.stem}-Corner-0"
    Train().execute(run)
    command = SearchWorst(run.path, search=word, budget=2, batch=2, num_probes=0, difference=0.0)
    run_command(replace(command, config=replace(command.config, num_updates=1, num_samples=80,
                num_reference_samples=80, num_reference_updates=1)))  # fmt: skip
    assert (run.path / "worst" / "worst.json").is_file()
    with pytest.raises(ValueError, match=r"selector: the run .* is of .*leave it out"):
        prepared(Train(resume=_plain(tmp_path / "plain"), selector="gaussian"))


def _plain(path):
    begun(path, "uniform").release()
    return path


def test_an_installed_package_may_register_a_search_and_a_method(tmp_path, monkeypatch):
    """By entry points, which name them in the command line and in the run."""
    module = f"package_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(
        SEARCH + "\n\ndef straight(family):\n    return lambda obs: torch.ones_like(obs)\n"
    )
    info = tmp_path / f"{module}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        f"[admrl_searches]\ncorner = {module}:Corner\n\n[admrl_adapters]\nstraight = {module}:straight\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check_own_search("selector", "corner")
    with pytest.raises(ValueError, match="did you mean 'corner'"):
        check_own_search("selector", "cornr")
    run = begun(tmp_path / "run", "corner")
    run.release()
    assert run.info.selector == "corner"
    assert read_config(run.path)["selector_source"]["distribution"] == f"{module} 1.5"
    assert Run.resume(run.path, NamedFamily(selector="corner")).state.search.num == 0
    (method,) = parse_methods([], ["straight"], False)
    assert load_outside(method, make("point_robot")).origin.distribution == f"{module} 1.5"
