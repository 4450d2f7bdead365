"""One reader and one writer of JSON: deep nesting is an error like others, what is written is valid everywhere."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from table_tools import toy_table

import admrl
from admrl.evaluation.gap_table import GapTable
from admrl.evaluation.task_lists import read_tasks
from admrl.runs.records import read_records
from admrl.search import RandomSearch, load_search
from admrl.search.storage import state_from_json, state_to_json
from admrl.search.worst import WorstReport, mass_bound
from admrl.storage.files import DamagedFileError, parse_json, without_nan, write_json
from task_families import make

DEEP = "[" * 100_000


def test_deep_nesting_is_a_clear_error_wherever_json_is_read(tmp_path):
    family = make("point_robot")
    (tmp_path / "config.json").write_text(json.dumps({"selector": "uniform", "seed": 0}))
    for name in ("tasks.json", "list.json", "search.json"):
        (tmp_path / name).write_text(DEEP)
    search = RandomSearch(family.box, None, "uniform", torch.Generator())
    for read in (
        lambda: read_records(tmp_path),
        lambda: read_tasks(family, tmp_path / "list.json"),
        lambda: load_search(search, tmp_path / "search.json"),
        lambda: parse_json(DEEP),
    ):
        with pytest.raises(ValueError, match="nested too deeply"):
            read()


def test_what_is_not_finite_is_null(tmp_path):
    data = {"a": [1.0, math.inf, (math.nan, -math.inf)], "b": {"c": 2}}
    assert without_nan(data) == {"a": [1.0, None, [None, None]], "b": {"c": 2}}
    write_json(tmp_path / "x.json", data)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)["a"][1] is None


def test_a_report_with_a_failed_probe_is_valid_json(tmp_path):
    bound = mass_bound(torch.tensor([1.0, math.nan]))
    assert bound.largest == math.inf
    WorstReport((), ("x",), ("m",), 2, 1, 2, bound, 0.95).save(tmp_path / "worst.json")
    read = json.loads((tmp_path / "worst.json").read_text(), parse_constant=pytest.fail)
    assert read["bound"]["largest"] is None


def test_no_page_reads_or_writes_json_files_by_itself():
    """json.loads belongs to parse_json; json.dumps into a file belongs to write_json."""
    allowed = {
        "storage/files.py": {"loads", "dumps"},
        "storage/sealed_file.py": {"dumps"},
        "search/storage.py": {"dumps"},  # nan and infinities as words, to the bit
        "runs/log.py": {"dumps"},  # a journal of lines
        "jobs/progress.py": {"loads", "dumps"},  # now and then, of what may be lost
        "studies/pulse.py": {"loads", "dumps"},  # of every attempt: without what takes long to import
        "evaluation/gap_files.py": {"loads", "dumps"},  # settings as a file would hold them
        "datasets/fitting.py": {"loads", "dumps"},  # settings as a file would hold them
        "baselines/subprocess_policy.py": {"dumps"},  # a line to a program
        "reports/comparison.py": {"dumps"},  # a key
        "reports/page.py": {"dumps"},  # text of a page
    }
    root = Path(admrl.__file__).parent
    for file in root.rglob("*.py"):
        used = {
            node.func.attr
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "json"
        }
        name = str(file.relative_to(root))
        assert used <= allowed.get(name, set()), f"{name}: json.{', json.'.join(sorted(used))}"


def test_a_byte_order_mark_is_no_part_of_json():
    for content in ("\ufeff[1]", b"\xef\xbb\xbf[1]"):
        assert parse_json(content) == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("psi", [["1", "2"], [1, 3], [2, 1], [2, 2]]),
        ("psi", [[True, False], [1, 3], [2, 1], [2, 2]]),
        ("optimal_return", ["10", 8, 9, 6]),
        ("num_samples", [0.5]),
        ("num_samples", [1e300]),
    ],
)
def test_a_table_takes_no_texts_nor_truth_values_for_numbers(tmp_path, field, value):
    """numpy reads "1" and true as 1, and cuts 0.5 to 0."""
    toy_table().save(tmp_path / "table.json")
    data = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(data | {field: value}))
    with pytest.raises(DamagedFileError, match=f"{field}: expected"):
        GapTable.load(tmp_path / "table.json")


@pytest.mark.parametrize("change", [{"data": [1.5]}, {"data": [True]}, {"data": ["1"]}, {"shape": [-1]}])
def test_a_search_takes_only_what_it_wrote(change):
    """torch reads 1.5 and True as the whole number 1."""
    data = json.loads(state_to_json({"counts": torch.tensor([1])}))
    data["state"]["counts"] |= change
    with pytest.raises(ValueError, match="counts: expected"):
        state_from_json(json.dumps(data))


@pytest.mark.parametrize("psi", [["0.5"], [True], [None]])
def test_records_take_only_numbers(tmp_path, psi):
    (tmp_path / "config.json").write_text(json.dumps({"selector": "uniform", "seed": 0}))
    (tmp_path / "tasks.json").write_text(json.dumps([{"psi": [0.5]}, {"psi": psi}]))
    with pytest.raises(ValueError, match="psi of task 2: expected a number"):
        read_records(tmp_path)


HUGE = 10**30  # a whole number that numpy has no dtype for, but real ones


def test_records_keep_whole_numbers_of_any_size_as_real_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"selector": "uniform", "seed": 0}))
    task = {"psi": [HUGE], "gradient": {"total": [HUGE]}, "split_half_cosine": HUGE}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    records = read_records(tmp_path)
    for numbers in (records.psi, records.gradients, records.split_half):
        assert numbers.dtype == float and numbers.ravel().tolist() == [1e30]


@pytest.mark.parametrize(
    "damage", [{"gradient": {"total": ["a"]}}, {"gradient": [1]}, {"split_half_cosine": "a"}, {"psi": [1, 2]}]
)
def test_damaged_records_are_refused_when_they_are_read(tmp_path, damage):
    (tmp_path / "config.json").write_text(json.dumps({"selector": "uniform", "seed": 0}))
    (tmp_path / "tasks.json").write_text(json.dumps([{"psi": [0.5]}, {"psi": [0.5], **damage}]))
    with pytest.raises(ValueError, match="damaged records"):
        read_records(tmp_path)
