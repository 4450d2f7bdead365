"""The documentation site: all pages are in its navigation; it builds without a warning, and fetches nothing."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from page_tools import BESIDE, PAGES, ROOT

PUBLIC = (
    "admrl",
    "admrl.search",
    "admrl.gradient",
    "admrl.baselines",
    "policy_opt",
    "dynamics",
    "task_families",
)
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
FETCHED = re.compile(r"""<(?:script|img|link|source|iframe)[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>""")


def test_every_page_is_in_the_navigation_once():
    nav = CONFIG.partition("\nnav:\n")[2].partition("\n\n")[0]
    listed = re.findall(r": ([\w/]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page if page in BESIDE else page.removeprefix("docs/") for page in PAGES)


def test_every_package_has_a_page_of_its_names():
    made = {
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (.*)$", page.read_text(), re.M)
    }
    assert made == set(PUBLIC)


def test_the_tools_are_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = re.findall(r"^(.+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {re.split("[<>=]", line)[0] for line in extras["docs"]} <= set(pinned)


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    """Every public name is on its page, pages of beside docs/ are linked, and no page needs a network to be read."""
    pytest.importorskip("mkdocstrings_handlers.python", reason='pip install -c constraints.txt -e ".[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    run = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "WARNING -" not in run.stderr, run.stderr
    pages = {
        path.relative_to(tmp_path / "site"): path.read_text() for path in (tmp_path / "site").rglob("*.html")
    }
    for package in PUBLIC:
        page = pages[Path("api", package.rpartition(".")[2], "index.html")]
        names = importlib.import_module(package).__all__
        assert [name for name in names if f'id="{package}.{name}"' not in page] == []
    assert [found for page in pages.values() for found in FETCHED.findall(page)] == []
    assert 'href="CONTRIBUTING/"' in pages[Path("index.html")]
    assert 'src="quickstart.png"' in pages[Path("index.html")]
