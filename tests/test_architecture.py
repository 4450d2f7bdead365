"""The rules that keep the packages apart, and the README's equation map true."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from imports import check_modules

import admrl

ROOT = Path(__file__).parent.parent
PACKAGES = ("task_families", "dynamics", "policy_opt", "admrl")
MAY_IMPORT = {
    "task_families": set(),
    "dynamics": {"task_families"},
    "policy_opt": {"task_families"},
    "admrl": {"task_families", "dynamics", "policy_opt"},
}


def imports(file):
    """(top-level package, full module name) of every import in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module.split(".")[0], node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_import_rule(package):
    for file in (ROOT / package).rglob("*.py"):
        for top, _ in imports(file):
            if top in PACKAGES and top != package:
                assert top in MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {top}"


def test_policy_opt_needs_torch_alone():
    blocked = ("mujoco", "gymnasium", "matplotlib", "rich", "tyro", "safetensors")
    check_modules(blocked)
    code = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import policy_opt\n"
        "for name in policy_opt.__all__: getattr(policy_opt, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package):
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_the_version_and_the_module_on_the_command_line():
    command = [sys.executable, "-m", "admrl", "--version"]
    assert subprocess.check_output(command, text=True, timeout=60).strip() == f"admrl {admrl.__version__}"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", admrl.__version__)


OWN_CHILD = ROOT / "task_families" / "conformance_envs.py"
"""Pickles an environment for a child of its own, through a pipe: no file is read."""


def test_no_unsafe_loading_anywhere():
    """Nothing in the packages can execute code from a file."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if file == OWN_CHILD:
                text = text.replace("pickle.load(sys.stdin.buffer)", "")
            for forbidden in ("pickle.load", "weights_only=False", "eval(", "exec("):
                assert not re.search(rf"(?<![\w.]){re.escape(forbidden)}", text), f"{file}: {forbidden}"
            assert not re.search(r"torch\.load\((?![^()]*weights_only=True\))", text), f"{file}: torch.load"


def test_nothing_in_the_packages_unpacks_archives_uses_a_shell_or_unpickles():
    """By the syntax tree: calls that could execute or write what a file says."""
    forbidden = {"extractall", "extract", "system", "popen", "unpack_archive", "loads_pickle", "Unpickler"}
    seen = 0
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [a.name for a in node.names] + [getattr(node, "module", None)]
                    unwanted = {"pickle", "shelve", "marshal", "dill", "zipfile", "tarfile"}
                    if file == ROOT / "admrl" / "baselines" / "sb3_file.py":
                        unwanted -= {
                            "zipfile"
                        }  # two members into memory, of limited size; nothing is extracted
                    unwanted -= {"pickle"} if file == OWN_CHILD else set()
                    assert not unwanted & set(names), file
                if not isinstance(node, ast.Call):
                    continue
                seen += 1
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in forbidden, f"{file}:{node.lineno}: {name}"
                for keyword in node.keywords:
                    value = getattr(keyword.value, "value", None)
                    assert (keyword.arg, value) not in {("shell", True), ("allow_pickle", True)}, file
    assert seen > 1000


def test_equation_map_of_the_readme_is_true():
    """Every row names functions and tests that exist."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Equations, functions, tests")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|([^|]*)\|$", section, flags=re.M)[2:]  # the head and its line
    assert len(rows) >= 30
    for functions, tests in rows:
        for target in re.findall(r"`([\w.]+)`", functions):
            module, _, name = target.rpartition(".")
            assert hasattr(import_module(module), name), target
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", tests):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
        assert "::" in tests, f"no test named beside {functions}"
