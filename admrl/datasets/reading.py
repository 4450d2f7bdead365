"""Logged transitions from whatever they are in."""

from __future__ import annotations

from pathlib import Path

from admrl.datasets.logged import Logged, read_npz
from admrl.datasets.minari_files import read_minari


def read_data(path: Path | str) -> Logged:
    """Logged transitions: an .npz file of the form of `admrl.datasets.logged`, or the folder of a Minari data set
    (needs admrl[minari]).

    Raises:
        ValueError: neither of them, or see `Logged.checked`.
        ImportError: minari is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    return read_minari(path) if path.is_dir() else read_npz(path)
