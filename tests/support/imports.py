"""Which modules a piece of code loads, in a fresh interpreter."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

MARK = "loaded by then:"


def is_module(name: str) -> bool:
    """Whether a module of this name is installed."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def check_modules(names: Sequence[str]) -> None:
    """Fail for names that are no module: a misspelt one would never be found loaded."""
    missing = [name for name in names if not is_module(name)]
    assert not missing, f"no modules of these names: {missing}"


def output_and_loaded(
    code: str, names: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None
) -> tuple[str, list[str]]:
    """What code prints in a fresh interpreter, and which of the names it has loaded when it ends."""
    check_modules(names)
    report = f"print({MARK!r}, *[name for name in {tuple(names)!r} if name in sys.modules])"
    code = f"import atexit, sys\natexit.register(lambda: {report})\n{code}"  # also if it ends by sys.exit
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env, timeout=300
    )
    assert result.returncode == 0, result.stderr
    output, found, loaded = result.stdout.rpartition(MARK)
    assert found, result.stdout
    return output, loaded.split()


def loaded_by(code: str, names: Sequence[str], cwd: Path | None = None) -> list[str]:
    """Which of the names a fresh interpreter has loaded after it ran the code."""
    return output_and_loaded(code, names, cwd)[1]
