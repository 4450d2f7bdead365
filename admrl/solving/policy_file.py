"""One solved policy as a file that runs without this package: ONNX or TorchScript, the normaliser inside.

    float32 observations (rows, S)  ->  float32 mean actions (rows, A), in the family's units, as they are before the
                                        simulator clamps them

A file is read back and compared with our own forward pass before anybody relies on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from admrl.solving.solution import Solution
from admrl.storage.files import write_bytes

TOLERANCE = 1e-6  # of a unit action, or of the action's size where that is larger
OPSET, IR = 17, 8  # of ONNX: onnxruntime 1.13 and later read it
HINT = 'onnx files need two packages: pip install -c constraints.txt "admrl[onnx]"'
OBS, ACT = "obs", "act"  # names of the input and the output


class PolicyModule(nn.Module):
    """The mean action of one policy: obs (rows, S) -> (rows, A)."""

    mean: Tensor
    std: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, solution: Solution) -> None:
        """
        Raises:
            ValueError: several policies.
        """
        super().__init__()
        if len(solution.theta) != 1:
            raise ValueError(f"solution: expected one policy, got {len(solution.theta)}")
        solution = solution.to("cpu")
        policy, theta = solution.policy, solution.theta.detach().float()
        zero, one = torch.zeros(policy.obs_size), torch.ones(policy.obs_size)
        self.register_buffer("mean", _row(policy.obs_mean, zero))
        self.register_buffer("std", _row(policy.obs_std, one))
        self.register_buffer("center", _row(policy.act_center, torch.zeros(policy.act_size)))
        self.register_buffer("scale", _row(policy.act_scale, torch.ones(policy.act_size)))
        self.layers = nn.ModuleList()
        for W, b in policy.mlp.layers(theta[:, : policy.mlp.num_params]):
            layer = nn.Linear(*W.shape[1:])
            layer.weight = nn.Parameter(W[0].T.contiguous(), requires_grad=False)
            layer.bias = nn.Parameter(b[0, 0].clone(), requires_grad=False)
            self.layers.append(layer)

    def forward(self, obs: Tensor) -> Tensor:
        """See the class."""
        x = (obs - self.mean) / self.std
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.center + self.scale * self.layers[-1](x)


def _row(value: Tensor | None, otherwise: Tensor) -> Tensor:
    return (otherwise if value is None else value.detach()).float().reshape(-1).clone()


def write_policy(solution: Solution, path: Path, kind: str, note: str) -> None:
    """Write one policy.

    Args:
        kind: "onnx" or "torchscript".
        note: what it is, kept in the file.

    Raises:
        ImportError: onnx is not installed.
        StorageError: see `write_bytes`.
    """
    module = PolicyModule(solution).eval()
    write_bytes(path, _onnx(module, note) if kind == "onnx" else _torchscript(module, note))


def _torchscript(module: PolicyModule, note: str) -> bytes:
    example = torch.zeros(2, len(module.get_buffer("mean")), dtype=torch.float32)
    with warnings.catch_warnings():  # TorchScript is deprecated, what reads its files is not gone
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(module, example).save_to_buffer({"note": note})


def _onnx(module: PolicyModule, note: str) -> bytes:
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ImportError(HINT) from error
    values = {name: module.get_buffer(name) for name in ("mean", "std", "center", "scale")}
    nodes = [
        helper.make_node("Sub", [OBS, "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["x0"]),
    ]
    last = len(module.layers) - 1
    for i, layer in enumerate(module.layers):
        assert isinstance(layer, nn.Linear)
        values |= {f"W{i}": layer.weight, f"b{i}": layer.bias}
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"W{i}", f"b{i}"], [f"z{i}"], transB=1))
        if i < last:
            nodes.append(helper.make_node("Tanh", [f"z{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("Mul", [f"z{last}", "scale"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["scaled", "center"], [ACT]))
    sizes = {OBS: len(values["mean"]), ACT: len(values["center"])}
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in sizes.items()
    }
    stored = [numpy_helper.from_array(value.numpy(), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "policy", [ends[OBS]], [ends[ACT]], stored, doc_string=note)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="admrl"
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def difference(solution: Solution, read: Callable[[Tensor], Tensor], obs: Tensor) -> float:
    """Largest difference of a file that was read back from our own mean action, in states (n, S); in unit actions,
    relative to the action where that is larger than 1.

    Args:
        read: obs (rows, S) -> act (rows, A)
    """
    solution = solution.to("cpu")
    ours = solution.policy.mean(solution.theta, obs.to(solution.theta)[None])[0]
    unit, theirs = (solution.policy.to_unit(x.double()) for x in (ours, read(obs)))
    return float(np.max(((theirs - unit).abs() / unit.abs().clamp(min=1)).numpy(), initial=0.0))
