"""Files that are either the old or the new one, never half of one, and that cannot harm whoever reads them.

A *sealed* file holds tensors and plain data:

    bytes 0-79    "admrl/1 sha256 ", the SHA-256 of everything after byte 80 as 64 hexadecimal digits, a newline
    bytes 80-     a safetensors file; its uint8 tensor `meta.json` is the plain data as JSON

Reading executes no code, whatever the file holds. A flipped bit or a missing end is always detected. The checksum
guards against accidents, not against an enemy, who can compute one: readers check what they are given, too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from admrl.storage.files import DamagedFileError, parse_json, write_bytes

MAGIC = b"admrl/1 sha256 "
HEADER_SIZE = len(MAGIC) + 64 + 1
META = "meta.json"


def write_sealed(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> str:
    """Write a sealed file atomically; returns its checksum.

    Raises:
        StorageError: see `write_bytes`.
    """
    text = json.dumps(meta).encode("utf-8")
    contents = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    body = save(contents | {META: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
    digest = hashlib.sha256(body).hexdigest()
    write_bytes(path, MAGIC + digest.encode("ascii") + b"\n" + body)
    return digest


def read_sealed(path: Path, digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The tensors, the plain data and the checksum of a sealed file.

    Args:
        digest: refuse the file, however sound, unless this is its checksum.

    Raises:
        DamagedFileError: says what is wrong with the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror})") from error
    head, body = content[:HEADER_SIZE], content[HEADER_SIZE:]
    if not head.startswith(MAGIC) or len(head) < HEADER_SIZE or head[-1:] != b"\n":
        raise DamagedFileError(f"{path}: not a file of this program, or its beginning is damaged")
    found = hashlib.sha256(body).hexdigest()
    if head[len(MAGIC) : -1] != found.encode("ascii"):
        raise DamagedFileError(f"{path}: the checksum does not match: truncated or altered")
    if digest is not None and digest != found:
        raise DamagedFileError(
            f"{path}: belongs to another checkpoint (checksum {found[:8]}, not {digest[:8]})"
        )
    try:
        tensors = load(body)
        meta = parse_json(bytes(tensors.pop(META).numpy()))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DamagedFileError(f"{path}: its contents cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise DamagedFileError(f"{path}: its contents cannot be read: expected an object, got {type(meta)}")
    return tensors, meta, found


def check_tensor(
    tensors: dict[str, Tensor], name: str, shape: tuple[int | None, ...], dtype: torch.dtype
) -> Tensor:
    """The tensor of that name, if it has this shape (None: any size) and type.

    Raises:
        ValueError: names the tensor, what was expected and what came.
    """
    if name not in tensors:
        raise ValueError(f"{name}: missing")
    found = tensors[name]
    fits = found.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype != dtype:
        expected = " x ".join("any" if size is None else str(size) for size in shape)
        got = " x ".join(map(str, found.shape))
        raise ValueError(f"{name}: expected {expected} {dtype}, got {got} {found.dtype}")
    return found
