"""One reader and one writer of JSON: deep nesting is an error like others, what is written is valid everywhere."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch

import admrl
from admrl.evaluation.task_lists import read_tasks
from admrl.runs.records import read_records
from admrl.search import RandomSearch, load_search
from admrl.search.worst import WorstReport, mass_bound
from admrl.storage.files import parse_json, without_nan, write_json
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
        "evaluation/gap_files.py": {"loads", "dumps"},  # settings as a file would hold them
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
