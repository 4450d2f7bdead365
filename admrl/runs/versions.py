"""Versions of everything that results depend on, and what identifies a model."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from admrl.config.earlier import KEY, SETTINGS
from admrl.streams import VERSION


def weights_digest(model: torch.nn.Module) -> str:
    """Identifies the numbers of a model."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that results depend on; physics differs between MuJoCo versions."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine(), "streams": str(VERSION)}
    found[KEY] = str(SETTINGS)
    for package in ("admrl", "torch", "mujoco", "gymnasium", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if commit := _commit():
        found["commit"] = commit
    return found


def _commit() -> str | None:
    """Of the source tree that this file is tracked in; None for an installed package, wherever it lies."""
    here = Path(__file__)
    try:
        if _git("ls-files", "--error-unmatch", here.name, cwd=here.parent) is None:
            return None
        return _git("describe", "--always", "--dirty", cwd=here.parent)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown (git did not answer)"


def _git(*arguments: str, cwd: Path) -> str | None:
    """What git prints; None if it fails."""
    answer = subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, encoding="utf-8", errors="replace", timeout=5
    )
    return answer.stdout.strip() if answer.returncode == 0 else None
