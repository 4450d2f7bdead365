"""What an installation gives to others: types, and a word about modules of theirs that hide ours."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("admrl", "dynamics", "policy_opt", "task_families")


def _script(folder, code):
    """A script in a folder, run as a user does: its folder comes first on sys.path."""
    file = folder / "script.py"
    file.write_text(code)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, str(file)], cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES[1:])
@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_module_that_hides_ours_is_named(tmp_path, name, kind):
    hides = tmp_path / f"{name}.py" if kind == "file" else tmp_path / name / "__init__.py"
    hides.parent.mkdir(exist_ok=True)
    hides.write_text("MASS = 1.0\n")
    for first in ("", f"import {name}\n"):
        result = _script(tmp_path, f"{first}import admrl\nadmrl.load_run\n")
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith(
            f"ImportError: {hides} hides the package {name!r} of admrl, which is {ROOT / name}"
        )


def test_a_script_of_such_a_name_and_a_folder_without_code(tmp_path):
    (tmp_path / "dynamics").mkdir()  # no package: ours is found all the same
    result = _script(tmp_path, "import admrl, dynamics\nprint(dynamics.__file__)\n")
    assert result.stdout.strip() == str(ROOT / "dynamics" / "__init__.py"), result.stderr


@pytest.mark.slow
def test_types_are_seen_through_an_editable_install(tmp_path):
    """The wheel of `pip install -e .`, in a virtual environment of its own, for a project outside."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("mypy")
    source, outside = tmp_path / "source", tmp_path / "outside"
    outside.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (outside / "use.py").write_text(
        "from admrl.config import EvaluationConfig\nfrom dynamics.config import FitConfig\n"
        "from policy_opt.config import ValueConfig\nfrom task_families.choices import nearest\n"
        "reveal_type(EvaluationConfig().num_episodes)\nreveal_type(FitConfig())\nreveal_type(ValueConfig())\n"
        "wrong: int = nearest('a', ('b',))\n"
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(tmp_path / "venv" / "bin" / "python")]
    result = subprocess.run([*command, "use.py"], cwd=outside, capture_output=True, text=True, timeout=300)
    assert "import-not-found" not in result.stdout and "import-untyped" not in result.stdout, result.stdout
    for seen in ('"int"', '"dynamics.config.FitConfig"', '"policy_opt.config.ValueConfig"'):
        assert f"Revealed type is {seen}" in result.stdout
    assert 'expression has type "str", variable has type "int"' in result.stdout
