"""Environment variables that libraries below us read, checked before they do: theirs is a traceback, or a warning
and another number of threads than was asked for.

MUJOCO_GL is checked where MuJoCo is imported (`task_families.mujoco_simulator`).
"""

from __future__ import annotations

import os
import re

_THREADS = r"\s*[1-9][0-9]{0,8}\s*"
_OPENMP = {  # name: (what is accepted, in words)
    "OMP_NUM_THREADS": (
        rf"{_THREADS}(,{_THREADS})*",
        "a number of threads from 1 on (or several, apart by commas)",
    ),
    "GOMP_SPINCOUNT": (
        r"\s*([0-9]{1,15}\s*[kmgt]?|infinite|infinity)\s*",
        "a count such as 10000 or 30k, or INFINITE",
    ),
}


def check_environment() -> None:
    """Refuse what OpenMP or matplotlib would not understand; imports neither, but for a MPLBACKEND that is set.

    Raises:
        ValueError: names the variable, what was expected, what it is and the remedy.
    """
    for name, (pattern, expected) in _OPENMP.items():
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(pattern, value, re.IGNORECASE):
            raise _refusal(name, expected, value)
    if value := os.environ.get("MPLBACKEND"):
        try:
            import matplotlib  # noqa: F401  (it looks at the variable)
        except ValueError:
            raise _refusal("MPLBACKEND", "a backend of matplotlib such as agg", value) from None


def _refusal(name: str, expected: str, value: str) -> ValueError:
    return ValueError(
        f"{name}: expected {expected} in this environment variable, got {value!r}; set it anew, or leave it out: "
        f"unset {name}"
    )
