"""Versions of everything that results depend on, and what identifies a model."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def weights_digest(model: torch.nn.Module) -> str:
    """Identifies the numbers of a model."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that results depend on; physics differs between MuJoCo versions."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("admrl", "torch", "mujoco", "gymnasium", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5
        )
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found["commit"] = "unknown (git did not answer)"
    return found
