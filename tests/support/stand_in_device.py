"""A second device without hardware: torch's backend for devices of one's own, whose kernels all run on the CPU.

`DEVICE` is to torch a device like any other: autograd, torch.func, views, copies and factory functions (`device=`)
take the paths that they take for a GPU, and only the innermost call of every operation is computed on the CPU, on the
same memory. So values are real. In addition it

* refuses tensors of another device (as a GPU does; numbers and 0-d tensors excepted, which a GPU takes, too), also as
  indices, which a GPU would copy first;
* refuses a generator of another device, as a GPU does (torch lets nobody make one for it in Python);
* notes every read-back, an operation for which the host of a GPU waits, and every upload: `watch`;
* refuses both inside of what a GPU would have recorded as a graph (`policy_opt.capture`), and memory from outside
  that is not where it was the first time: a graph would go on with what was there.

It does not show: how fast anything is, races between streams, rounding in another order, kernels that a GPU lacks,
generators of its own, autocast, sparse layouts. Registering is for the rest of the process: torch knows no way back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from policy_opt.capture import RECORDERS
from policy_opt.krylov import method

NAME = "standin"


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module(backend_registration._DummyBackendModule):
    """What is `torch.standin`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Nothing is cast inside of autocast."""
        return [torch.float32]


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hooks())
DEVICE = torch.device(NAME, 0)

# What a GPU's host waits for: the size of the answer, a value, or the error code of a decomposition.
READING = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive"),
    *("_linalg_svd", "_linalg_eigh", "_linalg_eigvals", "linalg_eig", "linalg_lstsq"),
}
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}
STORAGES_BEFORE_A_SWEEP = 2000


@dataclass
class Seen:
    """Names of operations, in order."""

    read_backs: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    operations: int = 0
    late_flags: int = 0
    """Flags of the solvers' loops, which arrive while the host goes on; no read-back."""


_watching: list[Seen] = []
_recorded: list[_Recorded] = []  # not empty: inside of what a GPU would have recorded


@contextmanager
def watch() -> Iterator[Seen]:
    """What happens on the device inside the block, in backward passes, too."""
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


class _Memory:
    """The device's storages: each is the memory of a storage of the CPU, kept while the device's own one lives."""

    def __init__(self) -> None:
        self.storages: dict[
            int, tuple[torch.UntypedStorage, int]
        ] = {}  # address -> the CPU's, weak: the device's
        self.sweep_at = STORAGES_BEFORE_A_SWEEP

    def of(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """The device's storage on that memory."""
        address = storage.data_ptr()
        if address in self.storages:
            found = torch.UntypedStorage._new_with_weak_ptr(self.storages[address][1])
            if found is not None:
                return found
            self._forget(address)
        if len(self.storages) > self.sweep_at:
            for other in [a for a, (_, weak) in self.storages.items() if torch.UntypedStorage._expired(weak)]:
                self._forget(other)
            self.sweep_at = 2 * len(self.storages) + STORAGES_BEFORE_A_SWEEP
        made = torch._C._construct_storage_from_data_pointer(address, DEVICE, storage.nbytes())
        self.storages[address] = storage, made._weak_ref()
        return made

    def _forget(self, address: int) -> None:
        torch.UntypedStorage._free_weak_ref(self.storages.pop(address)[1])


_memory = _Memory()
_CPU_KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _on_host(tensor: Tensor) -> Tensor:
    """The CPU's view of the memory of one of the device's tensors."""
    if tensor.untyped_storage().data_ptr() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage, _ = _memory.storages[tensor.untyped_storage().data_ptr()]
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, *place)


def _on_device(host: Tensor) -> Tensor:
    """A tensor of the device on the CPU tensor's memory."""
    if host.untyped_storage().data_ptr() == 0:
        return torch._C._acc.create_empty_tensor(tuple(host.shape), host.dtype)
    return _moved_to(torch._C._acc.create_empty_tensor((0,), host.dtype), host)


def _moved_to(tensor: Tensor, host: Tensor) -> Tensor:
    """The device's tensor, which has become one on that memory."""
    place = host.storage_offset(), tuple(host.shape), host.stride()
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    set_.redispatch(_CPU_KERNELS, tensor, _memory.of(host.untyped_storage()), *place)
    return tensor


class _Call:
    """One operation: its arguments on the host, and the way back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ours: dict[int, tuple[Tensor, Tensor]] = {}  # id of the host's -> the device's, the host's

    def to_host(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device == DEVICE:
                host = _on_host(value)
                self.ours[id(host)] = value, host
                return host
            if value.dim():
                raise RuntimeError(
                    f"{self.name}: expected all tensors on {DEVICE}, got one on {value.device}"
                )
        elif isinstance(value, list | tuple):
            return type(value)(self.to_host(one) for one in value)
        elif isinstance(value, torch.device):
            return torch.device("cpu")
        elif isinstance(value, torch.UntypedStorage):
            return _memory.storages[value.data_ptr()][0]
        elif isinstance(value, torch.Generator):
            raise RuntimeError(f"{self.name}: expected a generator of {DEVICE}, got one of {value.device}")
        return value

    def to_device(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.ours[id(value)][0] if id(value) in self.ours else _on_device(value)
        if isinstance(value, list | tuple):
            return type(value)(self.to_device(one) for one in value)
        return value

    def follow(self) -> None:
        """Arguments that the operation has resized (`out=`) are resized on the device, too."""
        for tensor, host in self.ours.values():
            if (
                tensor.shape != host.shape
                or tensor.untyped_storage().data_ptr() != host.untyped_storage().data_ptr()
            ):
                _moved_to(tensor, host)


def _copied(source: Tensor, target: Tensor, *_: Any, **__: Any) -> Tensor:
    on_host = [_on_host(t) if t.device == DEVICE else t for t in (target, source)]
    on_host[0].copy_(on_host[1])
    return target


def _note(name: str, args: tuple[Any, ...]) -> None:
    uploads = reads = False
    if name == "_copy_from":
        uploads, reads = args[0].device != DEVICE, args[1].device != DEVICE
    elif name == "_index_put_impl_":  # a single number is filled in without counting
        reads = args[2].numel() > 1 and any(i is not None and i.dtype == torch.bool for i in args[1])
    else:
        reads = name in READING
    if _recorded and (reads or uploads):
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
    for seen in _watching:
        seen.operations += 1
        seen.read_backs += [name] * reads
        seen.uploads += [name] * uploads


def _gru_cell(from_x, from_h, h, bias_x=None, bias_h=None):
    """What torch asks of every device but the CPU: the new state, and a workspace for the way back."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (
        (gates if bias is None else gates + bias).chunk(3, -1)
        for gates, bias in ((from_x, bias_x), (from_h, bias_h))
    )
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n), torch.cat([r, z, n, h, h_n], -1)


def _gru_cell_backward(gradient, workspace, has_bias):
    r, z, n, h, h_n = workspace.chunk(5, -1)
    of_n = gradient * (1 - z) * (1 - n * n)
    of_r, of_z = of_n * h_n * r * (1 - r), gradient * (h - n) * z * (1 - z)
    of_x, of_h = torch.cat([of_r, of_z, of_n], -1), torch.cat([of_r, of_z, of_n * r], -1)
    biases = (of_x.sum(0), of_h.sum(0)) if has_bias else (None, None)
    return of_x, of_h, gradient * z, *biases


WITHOUT_CPU_KERNEL = {
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}


@functools.cache
def _takes_tensors(operation: Any) -> list[bool]:
    """Which arguments are tensors: torch hands numbers over for 0-d ones, and does not take all of them back."""
    return [str(argument.type) == "Tensor" for argument in operation._schema.arguments]


def _kernel(operation: Any, *args: Any, **keywords: Any) -> Any:
    """Every operation of the device."""
    name = operation.__name__.partition(".")[0]
    if _watching or _recorded:
        _note(name, args)
    if _recorded:
        _recorded[-1].uses(args, keywords)
    if name == "_copy_from":
        return _copied(*args, **keywords)
    if name == "_efficientzerotensor":  # torch makes those without memory
        operation = torch.ops.aten.zeros.default
    call = _Call(name)
    args = tuple(
        torch.tensor(value, dtype=NUMBERS[type(value)]) if is_tensor and type(value) in NUMBERS else value
        for is_tensor, value in zip(_takes_tensors(operation), args, strict=False)
    )
    keywords = {key: call.to_host(value) for key, value in keywords.items()}
    if name == "mse_loss":  # torch's own resizes its output in between, with a warning unless it is empty
        keywords["out"].resize_(0)
    result = WITHOUT_CPU_KERNEL.get(name, operation)(*call.to_host(args), **keywords)
    call.follow()
    result = call.to_device(result)
    if _recorded:
        _recorded[-1].makes(result)
    return result


_clone_storage = torch.UntypedStorage.clone


def _clone(self: torch.UntypedStorage) -> torch.UntypedStorage:
    """For copy.deepcopy, which makes a storage without a tensor; torch would ask the device's allocator in C++."""
    if self.device != DEVICE:
        return _clone_storage(self)
    return _memory.of(_clone_storage(_memory.storages[self.data_ptr()][0]))


torch.UntypedStorage.clone = _clone  # type: ignore[method-assign]
_library = torch.library.Library("_", "IMPL")
_library.fallback(_kernel, "PrivateUse1")


class _OnItsWay(method.OnItsWay):
    """A flag of a solver's loop, which arrives as late as the loop allows."""

    def __init__(self, flag: Tensor) -> None:
        self.value, self.is_there = _on_host(flag).clone(), False
        for seen in _watching:
            seen.late_flags += 1

    def has_arrived(self) -> bool:
        return self.is_there

    def wait(self) -> None:
        self.is_there = True


method.ON_ITS_WAY[NAME] = _OnItsWay


class _Recorded:
    """What a GPU records as a graph is called again here; nothing is executed before."""

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], device: torch.device) -> None:
        self.function = function
        self.known: set[int] | None = None  # addresses from outside, of the first time
        self.outside: set[int] = set()
        self.inside: set[int] = set()

    def __call__(self) -> tuple[Tensor, ...]:
        self.outside, self.inside = set(), set()
        _recorded.append(self)
        try:
            answers = self.function()
        finally:
            _recorded.pop()
        if self.known is None:
            self.known = self.outside
        if self.outside != self.known:
            raise RuntimeError("a recorded function uses other memory than when it was recorded")
        return answers

    def uses(self, *values: Any) -> None:
        self.outside |= _addresses(values) - self.inside

    def makes(self, *values: Any) -> None:
        self.inside |= _addresses(values) - self.outside


def _addresses(values: Any) -> set[int]:
    tensors = (x for x in pytree.tree_leaves(values) if isinstance(x, Tensor) and x.device == DEVICE)
    return {x.untyped_storage().data_ptr() for x in tensors} - {0}


RECORDERS[NAME] = _Recorded
method.CAPTURING[NAME] = lambda: bool(_recorded)
