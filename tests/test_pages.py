"""Every block on every page of the documentation runs, or the page says why not and what it names exists."""

import importlib.util
import os
import re
import stat
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from page_tools import LANGUAGES, PAGES, ROOT, blocks, commands, smaller

import admrl
from admrl.cli import main, parse

TOGETHER = (  # pages with commands that are run, each group in one folder, in this order
    ("README.md",),
    ("docs/tutorials/own_policy.md",),
    ("docs/baselines.md",),
)
ELSEWHERE = {
    "docs/own_family.md": "tests/test_own_family_guide.py",  # from a wheel, killed and resumed
    "docs/data.md": "tests/test_data_guide.py",
}
WITH_COMMANDS = {page for pages in TOGETHER for page in pages} | set(ELSEWHERE)
AFTER_COMMANDS = {*TOGETHER[0], "docs/data.md"}  # pages whose Python needs what their commands have written
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OUTCOME = {  # what the page says about its results
    "docs/policy_opt.md": "answer.ok",
    "docs/search.md": "torch.equal(search.best().psi, torch.tensor([0.3, 35.0]))",
    "docs/tutorials/worst_case.md": "min(report.tasks[0].psi) > 1.3"
    " and report.tasks[0].gap > 100 * report.bound.largest"
    " and all(task.low < task.gap < task.high for task in report.tasks)",
}
OTHERS = {"ruff", "mypy", "pytest", "ray", "pre-commit", "mkdocs", "mkdir", "cp"}
THEIRS = f"""#!{sys.executable}
import json, sys
hello = json.loads(sys.stdin.readline())
print(json.dumps({{"id": hello["id"], "obs_size": hello["obs_size"], "act_size": hello["act_size"]}}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    act = [row[: hello["act_size"]] for row in question["obs"]]
    print(json.dumps({{"id": question["id"], "act": act}}), flush=True)
"""
MINE = """
from admrl.baselines import StaticAdapter
def stand(obs): return 0 * obs[:, :3]
def make(family): return StaticAdapter.of_function("made", stand)
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_says_why(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- not run:") == sum(block.reason is not None for block in blocks(page))
    assert text.count("\n```") == 2 * len(blocks(page)), "a fence that is no block"
    for block in blocks(page):
        assert block.language in LANGUAGES, block.line
        if block.reason is not None:
            assert block.language in ("python", "bash") and len(block.reason.split()) > 3, block.line
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")


def test_every_page_with_commands_is_run():
    assert {page for page in PAGES if any(b.reason is None for b in blocks(page, "bash"))} == WITH_COMMANDS


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_parse_and_name_what_exists(page, tmp_path):
    """Those that are not run, too: `admrl` knows the options, a script is there and has them, so do extras."""
    for block in blocks(page, "bash"):
        for words in commands(block, tmp_path):
            _check(words, f"{page}:{block.line}: {' '.join(words)}")


def _check(words, where):
    program, *rest = words
    if program == "admrl":
        try:
            parse(rest)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{where}: {error}")
    elif program in ("python", "python3", "sh", "bash") and rest[0] != "-m":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        options = {word for word in rest[1:] if word.startswith("--")}
        assert {option for option in options if f'"{option}"' not in source} == set(), where
    elif program in ("python", "python3"):
        assert importlib.util.find_spec(rest[1]), where
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", rest[-1]):
            assert set(extra.split(",")) <= set(EXTRAS), where
    else:
        assert program in OTHERS, where


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty one to work in, whose modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `main` sets its own
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_python(block, namespace):
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    exec(compile(block.text, f"line {block.line}", "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in AFTER_COMMANDS and blocks(p, "python")])
def test_python_blocks_run(page, folder):
    """One after the other, as a reader runs them who runs no commands."""
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.reason is None:
            run_python(block, namespace)
    assert eval(OUTCOME.get(page, "True"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("pages", TOGETHER, ids=lambda pages: pages[0])
def test_pages_with_commands_run(pages, folder, monkeypatch):
    """Everything in order in one folder, with the sizes of a smoke test."""
    _policies_from_elsewhere(folder)
    full = admrl.EvaluationConfig
    small = dict(num_policy_seeds=2, num_episodes=2, num_updates=1, num_samples=1200)
    small |= dict(num_reference_stages=1, num_reference_samples=600, num_reference_updates=1)
    monkeypatch.setattr(admrl, "EvaluationConfig", lambda **given: replace(full(**given), **small))
    for page in pages:
        namespace = {"__name__": "page"}
        for block in blocks(page):
            if block.reason is not None:
                continue
            if block.language == "python":
                run_python(block, namespace)
            if block.language == "bash":
                for words in commands(block, folder):
                    _run(smaller(words), monkeypatch)


def _run(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", words)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # a command says its warnings, and goes on
        try:
            main()
        except SystemExit as end:
            pytest.fail(f"{' '.join(words)}: exit code {end.code}")


def _policies_from_elsewhere(folder):
    """The files that docs/baselines.md names, for Hopper2D with psi behind the observation."""
    onnx, sb3 = pytest.importorskip("onnx"), pytest.importorskip("stable_baselines3")
    pytest.importorskip("onnxruntime")
    import numpy as np

    from task_families import make

    sb3.SAC("MlpPolicy", make("hopper2d").make_env(None, shows_psi=True), device="cpu", buffer_size=100).save(
        "sac.zip"
    )
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["obs", "W"], ["act"])],
        "policy",
        [onnx.helper.make_tensor_value_info("obs", number, ["rows", 13])],
        [onnx.helper.make_tensor_value_info("act", number, ["rows", 3])],
        [onnx.numpy_helper.from_array(np.zeros((13, 3), np.float32), "W")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "policy.onnx")
    (folder / "mine.py").write_text(MINE)
    (folder / "policy").write_text(THEIRS)
    os.chmod(folder / "policy", stat.S_IRWXU)
