"""The user guide is true: its code runs, and every test that its table points to exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "policy_opt.md").read_text()


def test_the_guides_code_runs():
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(block, namespace)
    assert namespace["answer"].ok


def test_the_readmes_code_runs(capsys):
    """The block that needs nothing but policy_opt; the others need run folders."""
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(block, {})
    assert "CONVERGED" in capsys.readouterr().out


def test_every_test_named_in_the_feature_table_exists():
    defined = re.findall(
        r"def (test_\w+)", "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    )
    named = re.findall(r"`(test_\w+)(?:\.\.\.)?(\w*)`", GUIDE)
    assert len(named) > 20
    for start, end in named:
        assert any(name.startswith(start) and name.endswith(end) for name in defined), f"{start}...{end}"
