"""Policies from elsewhere as functions obs (rows, S) -> act (rows, A): TorchScript and ONNX, checked when loaded.

`admrl.baselines.sb3` reads the files of stable-baselines3, `admrl.baselines.subprocess_policy` speaks with another
process. `StaticAdapter.of_function` makes an adapter of any of them.

A TorchScript or ONNX file is a program: it runs in the interpreter of its library, not as Python. Only the files of
stable-baselines3 are read as plain numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from task_families.family import TaskFamily

Function = Callable[[Tensor], Any]
ONNX_HINT = 'ONNX policies need onnxruntime: pip install -c constraints.txt "admrl[onnx]"'


def check_spaces(name: str, function: Function, family: TaskFamily, *, sees_psi: bool = False) -> None:
    """Refuse a policy whose observations or actions are not the family's, by asking it for two actions.

    Args:
        sees_psi: it takes the observation and psi behind it.

    Raises:
        ValueError: says which sizes the family has.
    """
    size = family.obs_size + (family.box.size if sees_psi else 0)
    inputs = f"{family.obs_size} numbers" + (f" and {family.box.size} of psi" if sees_psi else "")
    expected = f"{family.name} has observations of {inputs} and actions of {family.act_size} numbers"
    remedy = "" if sees_psi else "; for one that takes psi behind the observation, set `sees_psi`"
    try:
        action = torch.as_tensor(function(torch.zeros(2, size, dtype=torch.float32)))
    except Exception as error:  # whatever a stranger's function raises is the user's to see
        raise ValueError(
            f"{name}: it fails on two observations of zeros: {error!s:.300}; {expected}{remedy}"
        ) from error
    if tuple(action.shape) != (2, family.act_size):
        raise ValueError(
            f"{name}: it answers two observations with {tuple(action.shape)}; {expected}, so expected "
            f"(2, {family.act_size})"
        )


def torchscript_policy(path: Path | str, family: TaskFamily, *, sees_psi: bool = False) -> Function:
    """A policy saved with `torch.jit.save`: float32 observations (rows, S) -> actions (rows, A).

    Raises:
        ValueError: no such file, not TorchScript, or of other spaces.
    """
    path = _existing(path)
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, its files are not gone
            warnings.filterwarnings("ignore", "`torch.jit.load` is", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a TorchScript file ({error!s:.200}); torch.jit.save writes them"
        ) from error

    @torch.no_grad()
    def function(obs: Tensor) -> Tensor:
        return module(obs.float())

    check_spaces(str(path), function, family, sees_psi=sees_psi)
    return function


def onnx_policy(path: Path | str, family: TaskFamily, *, sees_psi: bool = False) -> Function:
    """An ONNX policy with one input, float32 observations (rows, S), whose first output is the actions (rows, A).

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: no such file, not ONNX, or of other spaces.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(ONNX_HINT) from error
    path = _existing(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ValueError(f"{path}: not an ONNX file that onnxruntime reads ({error!s:.200})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise ValueError(
            f"{path}: expected one input, the observations, got {names}; export one without hidden state"
        )

    def function(obs: Tensor) -> Tensor:
        return torch.from_numpy(
            np.asarray(session.run(None, {inputs[0].name: obs.detach().float().numpy()})[0])
        )

    check_spaces(str(path), function, family, sees_psi=sees_psi)
    return function


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path
