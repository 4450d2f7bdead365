"""What every searcher must do: exact resume, feasible tasks in every space, clear refusals, failed evaluations."""

import json
import math
import sys

import pytest
import torch
from imports import loaded_by

from admrl.search import (
    SEARCHES,
    ArchiveReplay,
    CmaSearch,
    CrossEntropySearch,
    GaussianProcessSearch,
    GridSearch,
    GuidedSearch,
    MixtureSearch,
    MultiStartAscent,
    PopulationSearch,
    ProjectedAscent,
    RandomSearch,
    ScreenedSearch,
    SearchConfig,
    load_search,
    make_search,
    save_search,
)
from admrl.search.conformance import go_on, hidden_gap
from task_families import TaskBall, TaskBox, TaskCircle, TaskProduct

DOUBLE = torch.float64
BOX = TaskBox(torch.tensor([-2.0, 1.2]), torch.tensor([2.0, 2.0]), ("velocity", "height"), ("m/s", "m"))
FIRST = torch.tensor([[0.6, 1.72]])
BALL = TaskBall(torch.zeros(2), 1.0, ("x", "y"), ("m", "m"))
OPTIONAL = {"cmaes": "cma", "botorch": "botorch"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def searcher(name, space=BOX, first=None, seed=0, **settings):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    config = SearchConfig(drift=0.0, num_initial=4, num_candidates=16, **settings)
    search = make_search(name, space, first, generator=generator(seed), step_size=0.2, config=config)
    if isinstance(search, ScreenedSearch):
        search.scorer = lambda psi: hidden_gap(space, psi)[0]
    if isinstance(search, PopulationSearch):
        search.prober = lambda psi: hidden_gap(space, psi)[0]
    return search


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".safetensors") for name in SEARCHES), ("cem", ".json"), ("default", ".json")],
)
def test_every_search_resumes_exactly_from_a_file(tmp_path, name, suffix):
    """Saved while a task waits for its answer, loaded into a search of another seed, and bit-identical after it."""
    num_before, num_after = (6, 2) if name == "botorch" else (11, 5)
    search = searcher(name, first=FIRST)
    go_on(search, BOX, num_before, failing=(4,))
    waiting = search.ask()
    save_search(search, tmp_path / f"state{suffix}")
    resumed = searcher(name, first=FIRST, seed=77)
    load_search(resumed, tmp_path / f"state{suffix}")
    assert torch.equal(resumed.ask(), waiting)
    expected = go_on(search, BOX, num_after, failing=(2,))
    assert torch.equal(go_on(resumed, BOX, num_after, failing=(2,)), expected)
    assert search.best().psi.equal(resumed.best().psi) and search.best().index == resumed.best().index
    for key, value in search.state_dict().items():
        # nan marks what is not known
        torch.testing.assert_close(resumed.state_dict()[key], value, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", SEARCHES)
def test_asking_is_repeatable_and_the_first_task_comes_first(name):
    search = searcher(name, first=FIRST)
    assert torch.equal(search.ask(), FIRST) and torch.equal(search.ask(), FIRST)
    search.tell(FIRST, math.nan)
    assert torch.equal(search.ask(), search.ask())


@pytest.mark.parametrize("name", [n for n in SEARCHES if n != "botorch"])
def test_batches_may_be_told_in_parts_and_in_any_order(name):
    search = searcher(name)
    for _ in range(2):
        psi = search.ask(5)
        assert psi.shape == (5, 2) and torch.equal(search.ask(3), psi[:3])
        gap, gradient = hidden_gap(BOX, psi)
        search.tell(psi[3:].flip(0), gap[3:].flip(0), gradient[3:].flip(0))
        search.tell(psi[:3], gap[:3], gradient[:3])
        assert len(search.waiting) == 0
    assert len(search.history) == 10


@pytest.mark.parametrize("name", SEARCHES)
def test_failed_evaluations_are_recorded_and_never_chosen(name):
    search = searcher(name)
    psi = search.ask()
    search.tell(psi, math.nan, torch.full((1, 2), math.nan))
    assert search.num_failed == 1
    with pytest.raises(ValueError, match="no gap is known"):
        search.best()
    go_on(search, BOX, 7, failing=range(1, 7))
    assert search.num_failed == 7 and search.best().index == 1


@pytest.mark.parametrize("name", SEARCHES)
def test_bad_input_is_refused_and_changes_nothing(name):
    search = searcher(name, first=FIRST)
    before = search.state_dict()
    bad = [
        (lambda: search.tell(torch.tensor([[1.0, 1.5]]), 0.0), "was not asked for"),
        (lambda: search.tell(FIRST, math.inf), "expected finite numbers, or nan"),
        (lambda: search.tell(FIRST, 0.0, torch.tensor([[math.nan, 0.0]])), "gradient: expected finite"),
        (lambda: search.tell(FIRST, 0.0, torch.zeros(2)), "gradient: expected shape"),
        (lambda: search.tell(FIRST, [0.0, 1.0]), "expected one for each of 1 tasks, got 2"),
        (lambda: search.tell(torch.tensor([[9.0, 1.5]]), 0.0), "velocity = 9 m/s"),
        (lambda: search.tell(FIRST, 0.0, None, {"noise": [0.1]}), "unknown entry 'noise'"),
        (lambda: search.tell(FIRST, 0.0, None, {"standard_error": [-1.0]}), "standard_error"),
        (lambda: search.ask(0), "1 or more"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
    for key, value in search.state_dict().items():
        torch.testing.assert_close(before[key], value, equal_nan=True, rtol=0, atol=0)
    search.tell(FIRST, 0.5)
    with pytest.raises(ValueError, match="was not asked for"):
        search.tell(FIRST, 0.5)


def test_tell_before_ask():
    search = searcher("default")
    with pytest.raises(ValueError, match=r"not asked for \(0 tasks wait.*ask first, or use add"):
        search.tell(FIRST, 1.0)
    search.add(FIRST, 1.0)
    assert search.best().gap == 1.0


@pytest.mark.parametrize("name", SEARCHES)
def test_an_infeasible_start_is_refused(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    with pytest.raises(ValueError, match="outside"):
        make_search(name, BOX, torch.tensor([[0.0, 5.0]]), generator=generator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectedAscent(BOX, FIRST, -1.0, generator()), "step_size"),
        (lambda: ProjectedAscent(BOX, FIRST, 1.0, generator(), rule="adm"), "did you mean 'adam'"),
        (lambda: ProjectedAscent(BOX, FIRST.repeat(2, 1), 1.0, generator()), "one task"),
        (lambda: MultiStartAscent(BOX, generator(), num_climbers=0), "num_climbers"),
        (lambda: RandomSearch(BOX, None, "unifrm", generator()), "did you mean 'uniform'"),
        (lambda: GridSearch(BOX, generator(), budget=0), "budget"),
        (lambda: GridSearch(BOX, generator(), shape=(3,)), "positive counts"),
        (lambda: GridSearch(BOX, generator(), shape=(3000, 3000)), "9e.06 points"),
        (lambda: CrossEntropySearch(BOX, generator(), alpha=0.0), "alpha"),
        (lambda: CrossEntropySearch(BOX, generator(), batch_size=1), "batch_size"),
        (lambda: GaussianProcessSearch(BOX, generator(), drift=-1.0), "drift"),
        (lambda: GuidedSearch(BOX, generator(), patience=0), "patience"),
        (lambda: ArchiveReplay(BOX, generator(), searcher("uniform"), staleness=2.0), "staleness"),
        (lambda: MixtureSearch(BOX, generator(), ((0.5, searcher("uniform")),)), "add up to 1"),
        (lambda: MixtureSearch(BOX, generator(), ()), "add up to 1"),
        (lambda: ScreenedSearch(BOX, generator(), num_candidates=1), "num_candidates"),
        (lambda: ScreenedSearch(BOX, generator()).ask(), "scorer is not set"),
        (lambda: ScreenedSearch(BOX, generator(), scorer=lambda psi: psi).ask(), "expected .64,. scores"),
        (
            lambda: ScreenedSearch(BOX, generator(), scorer=lambda psi: psi[:, 0] * math.nan).ask(),
            "64 of 64 scores are nan",
        ),
        (lambda: PopulationSearch(BOX, generator(), num_candidates=2), "num_candidates"),
        (lambda: PopulationSearch(BOX, generator(), decay=1.5), "decay"),
        (lambda: PopulationSearch(BOX, generator(), nominal_share=-0.1), "nominal_share"),
        (lambda: PopulationSearch(BOX, generator(), min_distance=math.nan), "min_distance"),
        (lambda: PopulationSearch(BOX, generator(), polish_step=0.0), "polish_step"),
        (lambda: PopulationSearch(BOX, generator()).ask(13), "at most 12 tasks"),
        (lambda: make_search("defualt", BOX, generator=generator()), "did you mean 'default'"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_package_names_the_remedy(monkeypatch, name):
    monkeypatch.setitem(sys.modules, OPTIONAL[name], None)
    with pytest.raises(ImportError, match=r'pip install "admrl\[search\]"'):
        make_search(name, BOX, generator=generator())


def test_cma_needs_two_parameters():
    pytest.importorskip("cma")
    line = TaskBox(torch.zeros(1), torch.ones(1), ("x",), ("m",))
    with pytest.raises(ValueError, match="2 task parameters"):
        CmaSearch(line, generator())


def test_states_of_other_searches_spaces_and_damaged_files_are_refused(tmp_path):
    save_search(searcher("cem"), tmp_path / "cem.json")
    with pytest.raises(ValueError, match=r"cem\.json: .*of another search"):
        load_search(searcher("default"), tmp_path / "cem.json")
    with pytest.raises(ValueError, match="2 task parameters, expected 5"):
        load_search(searcher("cem", TaskProduct((BALL, TaskCircle(), BOX))), tmp_path / "cem.json")
    with pytest.raises(ValueError, match="ending in"):
        save_search(searcher("cem"), tmp_path / "cem.pkl")
    for suffix, content in ((".json", "{}"), (".json", "[1"), (".safetensors", "x" * 50)):
        (tmp_path / f"bad{suffix}").write_text(content)
        with pytest.raises(ValueError, match="bad"):
            load_search(searcher("cem"), tmp_path / f"bad{suffix}")
    assert json.loads((tmp_path / "cem.json").read_text())["format"] == "admrl search 1"


def test_searching_imports_no_trainer_and_no_simulator():
    ours = ("admrl.training.meta_training", "admrl.solving.virtual_training", "dynamics.ensemble")
    theirs = ("mujoco", "gymnasium", "matplotlib", "cma", "botorch", "rich", "tyro")
    assert loaded_by("import admrl.search", (*ours, *theirs)) == []
