"""The package as a library: importing it is light, the README's code runs, the tests that the guide names exist."""

from __future__ import annotations

import re
from pathlib import Path

from imports import output_and_loaded

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "policy_opt.md").read_text()


def test_the_readmes_code_runs(capsys):
    """The block that needs nothing but policy_opt; the others need run folders."""
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(block, {})
    assert "CONVERGED" in capsys.readouterr().out


def test_every_test_named_in_the_feature_table_exists():
    files = (ROOT / "tests").rglob("test_*.py")
    defined = re.findall(r"def (test_\w+)", "\n".join(p.read_text() for p in files))
    named = re.findall(r"`(test_\w+)(?:\.\.\.)?(\w*)`", GUIDE)
    assert len(named) > 20
    for start, end in named:
        assert any(name.startswith(start) and name.endswith(end) for name in defined), f"{start}...{end}"


def test_import_is_light():
    """Nothing but torch, numpy and scipy is loaded, in under a sixth of torch's CPU time (0.05 s of 1.3 s)."""
    code = (
        "import time; begin = time.process_time(); import torch; start = time.process_time();"
        "from policy_opt import hvp, conjugate_gradient, normal_cg, minres, lanczos_solve, root_vjp;"
        "print((time.process_time() - start) / (start - begin))"
    )
    runs = [output_and_loaded(code, ("mujoco", "gymnasium", "matplotlib")) for _ in range(2)]
    assert min(float(share) for share, _ in runs) < 1 / 6
    assert runs[0][1] == []
