"""Functions that a GPU records once and repeats as a whole: CUDA graphs.

A rollout in a learned model is thousands of small operations, a gradient step hundreds. A host that starts one after
the other may be slower than the GPU that computes them. What has been recorded starts at once; what cannot be
recorded runs as it is.

Nothing of this has run on a GPU yet. The stand-in of the tests runs the same code, with a recorder that calls the
function again, and refuses inside of it what a GPU cannot record: values that are read back, uploads, and memory from
outside that has moved.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
Recorder = Callable[[Callable[[], Tensors], torch.device], Callable[[], Tensors]]
KEPT_STEPS = 4
"""Recorded gradient steps of an agent: of two kinds, or sizes of a minibatch, before and after something moved."""


def record_graph(function: Callable[[], Tensors], device: torch.device) -> Callable[[], Tensors]:
    """A function as a CUDA graph, which is recorded and not yet executed: what executes it and gives its answers,
    the same tensors each time.

    Args:
        device: of its tensors; what is on another one would be executed instead of recorded.

    Raises:
        RuntimeError: it does what cannot be recorded, such as waiting for a value. Nothing was executed.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                answers = function()
        finally:
            torch.cuda.set_stream(before)  # torch goes on with its own after a recording that failed

    def repeat() -> Tensors:
        graph.replay()
        return answers

    return repeat


RECORDERS: dict[str, Recorder] = {"cuda": record_graph}
"""By kind of device; what is on others is not recorded."""


class Captured:
    """A function of tensors of fixed shapes: its first call runs as it is, in the second one it is recorded, and from
    then on it is repeated. It does the same operations whatever the values, reads none back, and changes no input.

    Other tensors that it uses or changes are where they were when it was recorded: whoever changes one does it in
    place.
    """

    def __init__(self, name: str, function: Callable[..., Tensors]) -> None:
        """name: for the message, if it cannot be recorded."""
        self._name, self._function = name, function
        self._num_calls = 0
        self._inputs: Tensors = ()
        self._repeat: Callable[[], Tensors] | None = None

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The answers; they are the caller's. Shapes and devices are those of the first call."""
        self._num_calls += 1
        if self._num_calls == 2:
            self._record(inputs)
        if self._repeat is None:
            return self._function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        return tuple(answer.clone() for answer in self._repeat())

    def _record(self, inputs: Tensors) -> None:
        device = inputs[0].device
        record = RECORDERS.get(device.type)
        if record is None:
            return
        mine = tuple(x.clone() for x in inputs)
        try:
            self._repeat = record(lambda: self._function(*mine), device)
        except RuntimeError as error:
            warnings.warn(
                f"{self._name} cannot be recorded as a CUDA graph, and goes on without: {error!s:.200}",
                stacklevel=3,
            )
        else:
            self._inputs = mine


class Newest:
    """Captured functions by what they depend on beside their inputs: the newest few, since each has memory of its
    own."""

    def __init__(self, most: int) -> None:
        """most: that are kept."""
        self._most = most
        self._kept: OrderedDict[Hashable, Captured] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Captured]) -> Captured:
        """The one of this key, made where there is none."""
        captured = self._kept.pop(key, None) or make()
        self._kept[key] = captured
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return captured


def layouts(tensors: Tensors) -> Hashable:
    """Shapes, dtypes and devices: a part of a key."""
    return tuple((tuple(x.shape), x.dtype, x.device) for x in tensors)


class CapturedSteps:
    """Gradient steps of a module as captured functions, which are recorded anew where something of the module or of
    its optimisers has moved: new moments, another device. A learning rate that is a tensor may change in place, one
    that is a number is recorded anew.

    The optimisers are `capturable` where the device is one of `RECORDERS`, and keep nothing but tensors.
    """

    def __init__(self) -> None:
        self._kept = Newest(KEPT_STEPS)
        self._reported: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(
        self,
        name: str,
        module: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        step: Callable[..., dict[str, Tensor]],
        *inputs: Tensor,
    ) -> dict[str, Tensor]:
        """step(*inputs): detached tensors by name.

        Args:
            name: of the step, for the message, too; for one name it is always the same one.
            module: its parameters and buffers are all that the step uses beside its inputs, or changes.
        """
        if inputs[0].device.type not in RECORDERS:
            return step(*inputs)

        def flat(*inputs: Tensor) -> Tensors:
            reported = step(*inputs)
            self._reported[name] = tuple(reported)
            return tuple(reported.values())

        key = (name, layouts(inputs), _places(module, optimizers))
        values = self._kept.get(key, lambda: Captured(name, flat))(*inputs)
        return dict(zip(self._reported[name], values, strict=True))


def _places(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> Hashable:
    """Where everything is that a gradient step uses or changes, and rates that are numbers."""
    used: list[Tensor | float] = [*module.parameters(), *module.buffers()]
    for optimizer in optimizers:
        used += [x for moments in optimizer.state.values() for x in moments.values()]
        used += [group["lr"] for group in optimizer.param_groups]
    return tuple(x.data_ptr() if isinstance(x, Tensor) else x for x in used)
