"""Names of devices, and the device that a name means on this machine.

    cpu, cuda, cuda:1    the processor, the first GPU, the second one
    auto                 the faster one for the sizes (`admrl.devices.choice`)

A device is a property of the machine, not of a run: no setting names one, and what was begun on one may go on on
another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from task_families.choices import check_name

if TYPE_CHECKING:
    import torch

AUTO, CPU = "auto", "cpu"


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


AVAILABLE: dict[str, Callable[[], int]] = {CPU: lambda: 1, "cuda": _num_gpus}
"""Kinds of devices, and how many of each are here."""


def check_device_name(name: str) -> None:
    """Refuse what names no device, wherever it may be. Needs no torch.

    Raises:
        ValueError: says what was expected and the nearest name.
    """
    kind, colon, number = name.partition(":")
    check_name("device", kind, (*AVAILABLE, AUTO))
    if colon and (kind == AUTO or not (number.isascii() and number.isdecimal())):
        raise ValueError(f"device: expected auto, or a kind and a number as in cuda:0, got {name!r:.40}")


def find_device(name: str) -> torch.device:
    """The device of a name other than auto.

    Raises:
        ValueError: there is none of that kind or number here; says what there is, and why.
    """
    import torch

    check_device_name(name)
    kind, _, number = name.partition(":")
    if int(number or 0) >= AVAILABLE[kind]():
        raise ValueError(
            f"device: expected one that is here, {' or '.join(devices_here())}, got {name:.40}{_why(kind)}"
        )
    return torch.device(CPU) if kind == CPU else torch.device(kind, int(number or 0))


def devices_here() -> list[str]:
    """Names of all devices of this machine, the CPU first."""
    gpus = [f"{kind}:{i}" for kind, count in AVAILABLE.items() if kind != CPU for i in range(count())]
    return [CPU, *gpus]


def _why(kind: str) -> str:
    """Why there is no GPU, and what to do."""
    import torch

    if kind != "cuda" or AVAILABLE[kind]():
        return ""
    if torch.version.cuda is None:
        return f"; torch {torch.__version__} was built without CUDA: install a build with it"
    return "; torch sees no GPU: `nvidia-smi` shows those of the machine, CUDA_VISIBLE_DEVICES may hide them"


def begin_on(devices: list[str], device: str) -> str | None:
    """Note that a training begins or goes on on a device (`described`), behind those that it was on so far.

    Returns:
        what the user should know, if it is another one.
    """
    before = devices[-1] if devices else None
    if before == device:
        return None
    devices.append(device)
    if before is None:
        return None
    return f"trained on {before} so far, and on {device} from here on: numbers differ by rounding between devices"


def described(device: torch.device) -> str:
    """A device as records have it: cpu, or a GPU by its name; its number means nothing on other machines."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
