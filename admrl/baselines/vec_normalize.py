"""Statistics of stable-baselines3's VecNormalize, as arrays: what a policy trained under it sees.

    clip((obs - mean) / sqrt(var + epsilon), -clip_obs, clip_obs)

`VecNormalize.save` writes a pickle. Whoever trained the policy writes arrays instead:

    np.savez("FILE.npz", mean=v.obs_rms.mean, var=v.obs_rms.var, clip_obs=v.clip_obs, epsilon=v.epsilon)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from admrl.storage.files import parse_json

NAMES = {"mean", "var", "clip_obs", "epsilon"}
MAX_BYTES = 2**26
EXPORT = (
    'of the VecNormalize v: np.savez("FILE.npz", mean=v.obs_rms.mean, var=v.obs_rms.var, clip_obs=v.clip_obs, '
    "epsilon=v.epsilon)"
)


@dataclass(frozen=True)
class ObservationStatistics:
    """obs (..., S) -> normalised observations (..., S), float32."""

    mean: Tensor  # (S,) float64
    var: Tensor  # (S,) float64
    clip_obs: float
    epsilon: float

    def __call__(self, obs: Tensor) -> Tensor:
        normalised = (obs.double() - self.mean) / (self.var + self.epsilon).sqrt()
        return normalised.clamp(-self.clip_obs, self.clip_obs).float()


def observation_statistics(path: Path | str, size: int) -> ObservationStatistics:
    """Statistics from a file of arrays: .npz, .json (an object) or .safetensors with mean, var, clip_obs and epsilon.

    Args:
        size: numbers in an observation; mean and var are in its order.

    Raises:
        ValueError: no such file, another kind of file (a pickle is not opened), or other arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the statistics of VecNormalize")
    if path.suffix not in READERS:
        raise ValueError(
            f"{path}: what VecNormalize.save writes is a pickle, which can run code and is read with trust=True "
            f"alone; without it, expected arrays in .npz, .json or .safetensors, {EXPORT}"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        content = READERS[path.suffix](path)
        names = set(content) if isinstance(content, dict) else {type(content).__name__}
        if names != NAMES:
            raise ValueError(f"expected {', '.join(sorted(NAMES))}, got {', '.join(sorted(names))!s:.200}")
        arrays = {name: np.asarray(content[name], dtype=np.float64) for name in NAMES}
    except Exception as error:  # damaged files have errors of many kinds
        raise ValueError(f"{path}: not the statistics of VecNormalize as arrays ({error!s:.300})") from error
    return _checked(path, size, arrays)


def _checked(path: Path, size: int, arrays: dict[str, Any]) -> ObservationStatistics:
    mean, var, clip, epsilon = (arrays[name] for name in ("mean", "var", "clip_obs", "epsilon"))
    if mean.shape != (size,) or var.shape != (size,) or clip.size != 1 or epsilon.size != 1:
        raise ValueError(
            f"{path}: expected mean and var of {size} numbers, clip_obs and epsilon of one, got shapes {mean.shape}, "
            f"{var.shape}, {clip.shape} and {epsilon.shape}"
        )
    clip, epsilon = float(clip.item()), float(epsilon.item())
    finite = np.isfinite(mean).all() and np.isfinite(var).all() and np.isfinite(epsilon)
    if (
        not finite
        or not clip > 0
        or not epsilon >= 0
        or not (var >= 0).all()
        or not (var + epsilon > 0).all()
    ):
        raise ValueError(
            f"{path}: expected a finite mean, var and epsilon of 0 or more, not both 0, and clip_obs above 0, got "
            f"mean {mean}, var {var}, clip_obs {clip}, epsilon {epsilon}"
        )
    return ObservationStatistics(torch.from_numpy(mean), torch.from_numpy(var), clip, epsilon)


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        if any(info.file_size > MAX_BYTES for info in archive.zip.infolist()):
            raise ValueError(f"an array is larger than {MAX_BYTES} bytes")
        return dict(archive)


READERS = {
    ".npz": _npz,
    ".json": lambda path: parse_json(path.read_bytes()),
    ".safetensors": load_file,
}
SUFFIXES = tuple(READERS)
