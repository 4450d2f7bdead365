"""The map of gaps that trainings estimate by themselves: read as it was written, drawn where there is one."""

from dataclasses import replace

import numpy as np
import pytest
from report_tools import any_records, any_tables

from admrl.reports.charts import plot_gap_map
from admrl.reports.comparison import compare_tables
from admrl.runs.records import read_records

HEADER = "a,b,bound,bound error,return,return error,gap,gap error,age\n"


def test_it_is_read_by_position_and_may_be_missing_or_damaged(tmp_path):
    (tmp_path / "config.json").write_text('{"selector": "population", "seed": 0}')
    (tmp_path / "tasks.json").write_text('[{"psi": [0.0, 1.0]}]')
    assert read_records(tmp_path).gap_map.shape == (0, 0)
    file = tmp_path / "gap_map.csv"
    file.write_text(HEADER)
    assert read_records(tmp_path).gap_map.shape == (0, 9)
    file.write_text(HEADER + "0.5,1.5,10,1,7,2,3,2.2,4\n0.5,-1,,,7,2,,,0\n")
    np.testing.assert_array_equal(
        read_records(tmp_path).gap_map,
        [[0.5, 1.5, 10, 1, 7, 2, 3, 2.2, 4], [0.5, -1, np.nan, np.nan, 7, 2, np.nan, np.nan, 0]],
    )
    file.write_text(HEADER + "0.5,1.5,ten,1,7,2,3,2.2,4\n")
    with pytest.raises(ValueError, match="damaged records"):
        read_records(tmp_path)
    file.write_text(HEADER + "0.5,1.5\n")
    with pytest.raises(ValueError, match="damaged records"):
        read_records(tmp_path)


def test_it_is_drawn_where_a_training_has_estimates(tmp_path):
    comparison = compare_tables(any_tables(("a", "b")))
    records, rng = any_records(("a", "b")), np.random.default_rng(0)
    records = [replace(r, gap_map=np.zeros((0, 0))) for r in records]  # of older runs
    assert plot_gap_map(records, comparison, tmp_path / "no.png") is False
    rows = rng.uniform(-1, 1, (6, 9))
    unknown = np.full((6, 9), np.nan)
    assert plot_gap_map([replace(records[0], gap_map=unknown)], comparison, tmp_path / "no.png") is False
    assert not (tmp_path / "no.png").exists()
    drawn = [replace(records[0], gap_map=rows), records[1]]
    assert plot_gap_map(drawn, comparison, tmp_path / "map.png") is True
    assert (tmp_path / "map.png").stat().st_size > 5000
