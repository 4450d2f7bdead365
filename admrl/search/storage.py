"""A search's state in a file: JSON or safetensors. Loading executes no code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from admrl.search.base import Search
from admrl.storage.files import parse_json, write_bytes, write_text

FORMAT = "admrl search 1"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.int64)}
DTYPES |= {"bool": torch.bool, "uint8": torch.uint8}
WORDS = ("nan", "inf", "-inf")  # JSON has no such numbers


def state_to_json(state: Mapping[str, Tensor]) -> str:
    """Exact: numbers are written with all their digits; nan and infinities as words."""
    entries = {
        name: {
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": list(x.shape),
            "data": [_word(v) for v in x.flatten().tolist()],
        }
        for name, x in state.items()
    }
    return json.dumps({"format": FORMAT, "state": entries})


def state_from_json(text: str) -> dict[str, Tensor]:
    """Inverse of `state_to_json`.

    Raises:
        ValueError: not such a text.
    """
    try:
        data = parse_json(text)
        if data["format"] != FORMAT:
            raise ValueError(f"unknown format {data['format']!r}, expected {FORMAT!r}")
        return {name: _tensor(name, x) for name, x in data["state"].items()}
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"not the state of a search: {error}") from error


def save_search(search: Search, path: Path | str) -> None:
    """Write the state atomically.

    Raises:
        ValueError: a suffix other than .json or .safetensors.
    """
    path = _checked(path)
    state = search.state_dict()
    if path.suffix == ".json":
        write_text(path, state_to_json(state))
    else:
        write_bytes(path, save({k: v.contiguous() for k, v in state.items()}, metadata={"format": FORMAT}))


def load_search(search: Search, path: Path | str) -> None:
    """Fill a search that was made with the same settings; it goes on exactly where the saved one stopped.

    Raises:
        ValueError: another suffix, a damaged file, or the state of another search; names the file.
    """
    path = _checked(path)
    try:
        if path.suffix == ".json":
            state = state_from_json(path.read_text(encoding="utf-8"))
        else:
            state = load(path.read_bytes())
        search.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(path: Path | str) -> Path:
    if (path := Path(path)).suffix not in (".json", ".safetensors"):
        raise ValueError(f"{path}: expected a name ending in .json or .safetensors")
    return path


def _tensor(name: str, entry: Any) -> Tensor:
    """Inverse of what `state_to_json` makes of a tensor: torch would read 1.5 as the whole number 1, True as 1.0."""
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    values = [float(v) if isinstance(v, str) and v in WORDS else v for v in entry["data"]]
    kind = bool if dtype == torch.bool else float if dtype.is_floating_point else int
    if any(type(v) not in (kind, int if kind is float else kind) for v in values):
        raise ValueError(f"{name}: expected {kind.__name__} values, got {entry['data']!r:.60}")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != len(values):
        raise ValueError(f"{name}: expected {len(values)} values, got the shape {shape!r:.60}")
    return torch.tensor(values, dtype=dtype).reshape(shape)


def _word(value: Any) -> Any:
    """JSON has no nan and no infinities."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
