"""Which products go through oneDNN."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dynamics.onednn import has_onednn


class OnednnCalls(TorchDispatchMode):
    """Notes every product that goes through oneDNN."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.found.append(args[0].shape)
        return func(*args, **(kwargs or {}))


@contextmanager
def onednn_calls():
    """The products that went through oneDNN so far; skips where torch has none."""
    if not has_onednn(torch.zeros(1)):
        pytest.skip("this torch has no oneDNN operations: everything goes one way")
    with OnednnCalls() as mode:
        yield mode.found
