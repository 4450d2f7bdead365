"""What is saved is loaded, however large."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from table_tools import toy_table

from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.reference import Candidate, Reference
from admrl.evaluation.tables import method_labels
from admrl.storage.files import DamagedFileError


@pytest.mark.parametrize("size", [1e-300, 1e-6, 1e16, 1e100, 1e300])
def test_returns_of_every_size_are_saved_and_loaded(tmp_path, size):
    """Returns of 1e16 were written and then refused."""
    table = toy_table(optimal_return=size * np.array([10.0, np.nan, -9.0, 6.0]))
    table.save(tmp_path / "gaps.json")
    loaded = GapTable.load(tmp_path / "gaps.json")
    np.testing.assert_array_equal(loaded.optimal_return, table.optimal_return)
    candidate = Candidate((1.0, 2.0), "slbo", 0, 1, 1000, 0, (size, -size, None), {}, {})
    Reference("hopper2d", "released", (candidate,)).save(tmp_path / "reference.json")
    assert Reference.load(tmp_path / "reference.json").candidates[0].episode_return == (size, -size, None)


def test_a_reference_of_tasks_that_are_no_tasks_is_refused_when_it_is_read(tmp_path):
    """A finite number beyond float32 was read, and ended in an OverflowError where tasks are compared."""
    file = tmp_path / "reference.json"
    candidate = Candidate((1.0, 1e300), "slbo", 0, 1, 1000, 0, (1.0, 2.0), {}, {})
    Reference("hopper2d", "released", (candidate,)).save(file)
    with pytest.raises(DamagedFileError, match=r"psi: expected numbers from -1e\+09 to 1e\+09, got 1e\+300"):
        Reference.load(file)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_what_no_writer_writes_is_refused(tmp_path, number):
    file = tmp_path / "gaps.json"
    toy_table(optimal_return=np.array([123.5, 8.0, 9.0, 6.0])).save(file)
    file.write_text(file.read_text().replace("123.5", number))
    with pytest.raises(DamagedFileError, match="not a gap table"):
        GapTable.load(file)


def test_runs_have_the_shortest_names_that_tell_them_apart():
    """Two methods of one selector, in folders of their own: whole paths once filled the tables."""

    def labels(*runs):
        return method_labels(
            [SimpleNamespace(path=Path(p), info=SimpleNamespace(selector=s, seed=n)) for p, s, n in runs]
        )

    population, random = ("a/b/population-0", "population", 0), ("a/b/random-0", "population", 0)
    assert labels(population) == ["population"]
    assert labels(population, ("a/b/uniform-3", "uniform", 3)) == ["population", "uniform"]
    assert labels(population, ("a/b/population-1", "population", 1)) == [
        "population, seed 0",
        "population, seed 1",
    ]
    assert labels(population, random) == ["population-0", "random-0"]
    assert labels(population, ("c/population-0", "population", 0)) == ["a/b/population-0", "c/population-0"]
    twice = [("a/uniform", "population", 0), ("a/x", "population", 0), ("a/y", "uniform", 0)]
    assert labels(*twice) == ["a/uniform", "x", "uniform"], "a folder that is called like another's selector"
