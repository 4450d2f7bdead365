"""Which OpenGL backend can take pictures without a screen. Imports no MuJoCo.

MuJoCo chooses its backend when it is imported, from MUJOCO_GL, and by default wants a screen; with a backend that is
named but not installed, even the import fails. So it is tried in a process of its own, and before that import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache

BACKENDS = ("egl", "osmesa")
TIMEOUT = 60.0  # seconds that a backend may take to start
PROBE = "from mujoco.{0} import GLContext; c = GLContext(64, 64); c.make_current(); c.free()"


@lru_cache(maxsize=1)
def backend() -> str:
    """The OpenGL backend to use: ``egl`` or ``osmesa``.

    Raises:
        RuntimeError: neither works; names the Debian packages.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (wanted,) if wanted in BACKENDS else BACKENDS
    reasons = []
    for name in candidates:
        # a new process: an attempt that fails leaves PyOpenGL bound to the backend that does not work
        try:
            probe = subprocess.run(
                [sys.executable, "-c", PROBE.format(name)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=os.environ | {"PYOPENGL_PLATFORM": name, "MUJOCO_GL": name},
                check=False,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:  # a driver that hangs
            reasons.append(f"{name}: no answer within {TIMEOUT:g} s")
            continue
        if probe.returncode == 0:
            return name
        reasons.append(f"{name}: {(probe.stderr.strip().splitlines() or ['no message'])[-1]}")
    raise RuntimeError(
        "no picture can be taken without a screen; expected a working EGL or OSMesa, got\n  "
        + "\n  ".join(reasons)
        + "\ninstall one of them, on Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri (EGL), "
        "or: apt install libosmesa6 (OSMesa)"
    )
