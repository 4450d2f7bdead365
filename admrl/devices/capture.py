"""Functions that a GPU records once and repeats as a whole: CUDA graphs.

A rollout in a learned model is thousands of small operations. A host that starts one after the other may be slower
than the GPU that computes them. What has been recorded starts at once; what cannot be recorded runs as it is.

Nothing of this has run on a GPU yet. The stand-in of the tests runs the same code, with a recorder that calls the
function again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Recorder = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]


def record_graph(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    """A function as a CUDA graph: what repeats it, and its answers, which every repetition overwrites.

    Raises:
        RuntimeError: it does what cannot be recorded, such as waiting for a value.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = function()
    return graph.replay, answers


RECORDERS: dict[str, Recorder] = {"cuda": record_graph}
"""By kind of device; what is on others is not recorded."""


class Captured:
    """A function of tensors of fixed shapes: its first call runs as it is, the second one is recorded, and from then
    on it is repeated. It does the same operations whatever the values, reads none back, and changes no input.

    Other tensors that it uses are where they were when it was recorded: whoever changes one does it in place.
    """

    def __init__(self, name: str, function: Callable[..., Tensors]) -> None:
        """name: for the message, if it cannot be recorded."""
        self._name, self._function = name, function
        self._num_calls = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The answers; they are the caller's. Shapes and devices are those of the first call."""
        self._num_calls += 1
        if self._num_calls == 2:
            self._record(inputs)
        if self._replay is None:
            return self._function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._replay()
        return tuple(answer.clone() for answer in self._answers)

    def _record(self, inputs: Tensors) -> None:
        record = RECORDERS.get(inputs[0].device.type)
        if record is None:
            return
        self._inputs = tuple(x.clone() for x in inputs)
        try:
            self._replay, self._answers = record(lambda: self._function(*self._inputs))
        except RuntimeError as error:
            warnings.warn(
                f"{self._name} cannot be recorded as a CUDA graph, and goes on without: {error!s:.200}",
                stacklevel=3,
            )
